"""Shared set-up: the contracts explain their failures as tests do."""

import pytest

pytest.register_assert_rewrite("tests.contracts")

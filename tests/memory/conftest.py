"""A place for large files."""

import shutil

import pytest


@pytest.fixture
def room(tmp_path):
    """A folder that is emptied when the test is over, whatever happened."""
    folder = tmp_path / "room"
    folder.mkdir()
    yield folder
    shutil.rmtree(folder)

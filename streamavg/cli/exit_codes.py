"""What the exit code of a command says, beside 0: done."""

from __future__ import annotations

REFUSED = 1
"""The data or the machine says no."""
USAGE = 2
GATE = 3
"""A gate did not pass."""
INTERRUPTED, TERMINATED = 130, 143

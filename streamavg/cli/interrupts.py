"""Ctrl-C and SIGTERM end a command, wherever they come.

Python raises an exception for them. One that is raised while the HDF5 library calls back into
Python may be lost there, so it is also remembered, and raised again at the next slab.
"""

from __future__ import annotations

import signal
from typing import NoReturn

_remembered: list[BaseException] = []


class Terminated(BaseException):
    """SIGTERM came. Not an Exception, so that only the end of the program handles it."""


def listen() -> None:
    """Raises KeyboardInterrupt on SIGINT and Terminated on SIGTERM from now on."""
    signal.signal(signal.SIGINT, _raise_interrupt)
    signal.signal(signal.SIGTERM, _raise_interrupt)


def raise_remembered() -> None:
    """Raises an interrupt that came before, if one did."""
    if _remembered:
        raise _remembered[0]


def _raise_interrupt(signum: int, frame: object) -> NoReturn:
    interrupt = KeyboardInterrupt() if signum == signal.SIGINT else Terminated()
    _remembered.append(interrupt)
    raise interrupt

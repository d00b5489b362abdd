"""Shows how far a merge is: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Protocol

import click

from streamavg.units import format_size

if TYPE_CHECKING:
    from types import TracebackType

SECONDS_BETWEEN_LINES = 5.0


class Progress(Protocol):
    """Is told of bytes that were read."""

    def begin(self, total_bytes: int) -> None:
        """Starts at zero."""
        ...

    def advance(self, count: int) -> None:
        """Takes note of `count` more bytes."""
        ...

    def __enter__(self) -> Progress: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def choose_progress(*, shown: bool, task: str = "averaging") -> Progress:
    """The progress that fits stderr, or none. `task` is what the bar is called."""
    if not shown:
        return _Silence()
    return _Bar(task) if sys.stderr is not None and sys.stderr.isatty() else _Lines()


class _Silence:
    def begin(self, total_bytes: int) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def __enter__(self) -> _Silence:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Bar(_Silence):
    """tqdm's bar: bytes, rate and time left."""

    def __init__(self, task: str) -> None:
        self._task = task

    def begin(self, total_bytes: int) -> None:
        from tqdm import tqdm

        self._bar = tqdm(
            total=total_bytes, unit="B", unit_scale=True, unit_divisor=1024, desc=self._task,
            leave=False, file=sys.stderr,
        )  # fmt: skip

    def advance(self, count: int) -> None:
        self._bar.update(count)

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()


class _Lines(_Silence):
    """A line every few seconds, for logs."""

    def begin(self, total_bytes: int) -> None:
        self._total = total_bytes
        self._done = 0
        self._started = self._last = time.monotonic()

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        rate = self._done / (now - self._started)
        left = (self._total - self._done) / rate
        click.echo(
            f"{format_size(self._done)} of {format_size(self._total)} read "
            f"({self._done / self._total:.0%}), {format_size(rate)}/s, {left:.0f} s left",
            err=True,
        )


class BatchProgress(Protocol):
    """Is told of batches that went through models."""

    def begin(self, total: int | None) -> None:
        """Starts at zero; the total may be unknown."""
        ...

    def name(self, what: str) -> None:
        """Says what the next batches go through."""
        ...

    def advance(self, count: int) -> None:
        """Takes note of `count` more batches."""
        ...

    def __enter__(self) -> BatchProgress: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def choose_batch_progress(*, shown: bool) -> BatchProgress:
    """The progress that fits stderr, or none."""
    if not shown:
        return _BatchSilence()
    return _BatchBar() if sys.stderr is not None and sys.stderr.isatty() else _BatchLines()


class _BatchSilence:
    def begin(self, total: int | None) -> None:
        pass

    def name(self, what: str) -> None:
        pass

    def advance(self, count: int) -> None:
        pass

    def __enter__(self) -> _BatchSilence:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _BatchBar(_BatchSilence):
    """tqdm's bar over all batches of all models, with the name of the one at work."""

    def begin(self, total: int | None) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, unit=" batches", leave=False, file=sys.stderr)

    def name(self, what: str) -> None:
        self._bar.set_description(what)

    def advance(self, count: int) -> None:
        self._bar.update(count)

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()


class _BatchLines(_BatchSilence):
    """A line every few seconds, for logs."""

    def begin(self, total: int | None) -> None:
        self._total = total
        self._done = 0
        self._what = ""
        self._last = time.monotonic()

    def name(self, what: str) -> None:
        self._what = what

    def advance(self, count: int) -> None:
        self._done += count
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        total = "" if self._total is None else f" of {self._total:,}"
        click.echo(f"{self._done:,}{total} batches done, at {self._what}", err=True)

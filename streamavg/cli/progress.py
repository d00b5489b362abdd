"""Shows how far a command is: a bar on a terminal, a plain line every few seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol

import click

from streamavg.cli.interrupts import raise_remembered
from streamavg.units import format_size

if TYPE_CHECKING:
    from types import TracebackType

SECONDS_BETWEEN_LINES = 5.0


class Progress(Protocol):
    """Is told of work that was done: bytes that were read, batches or trials."""

    def begin(self, total: int | None) -> None:
        """Starts at zero; the total may be unknown."""
        ...

    def name(self, what: str, *, short: str | None = None) -> None:
        """Says what is at work; `short` is for where there is little room."""
        ...

    def advance(self, count: int) -> None:
        """Takes note of more work that was done.

        Raises: an interrupt that came before, and was lost on its way.
        """
        ...

    def __enter__(self) -> Progress: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


def choose_progress(*, shown: bool, task: str = "averaging") -> Progress:
    """The progress of bytes that fits stderr, or none. `task` is what the bar is called."""
    bar = _Bar(unit="B", unit_scale=True, unit_divisor=1024, desc=task)
    return _choose(bar, _ByteLines(), shown=shown)


def choose_batch_progress(*, shown: bool) -> Progress:
    """The progress of batches through models that fits stderr, or none."""
    return _choose(_Bar(unit=" batches"), _BatchLines(), shown=shown)


def choose_trial_progress(*, shown: bool) -> Progress:
    """The progress of trials of soups that fits stderr, or none."""
    return _choose(_TrialBar(unit="trial", desc="souping"), _TrialLines(), shown=shown)


def _choose(bar: Progress, lines: Progress, *, shown: bool) -> Progress:
    if not shown:
        return _Silence()
    return bar if sys.stderr is not None and sys.stderr.isatty() else lines


class _Silence:
    def begin(self, total: int | None) -> None:
        pass

    def name(self, what: str, *, short: str | None = None) -> None:
        pass

    def advance(self, count: int) -> None:
        raise_remembered()

    def __enter__(self) -> _Silence:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class _Bar(_Silence):
    """tqdm's bar: what was done, the rate and the time left."""

    def __init__(self, **look: Any) -> None:
        self._look = look

    def begin(self, total: int | None) -> None:
        from tqdm import tqdm

        self._bar = tqdm(total=total, leave=False, file=sys.stderr, **self._look)

    def name(self, what: str, *, short: str | None = None) -> None:
        self._bar.set_description(short or what)

    def advance(self, count: int) -> None:
        super().advance(count)
        self._bar.update(count)

    def __exit__(self, *_: object) -> None:
        if hasattr(self, "_bar"):
            self._bar.close()


class _TrialBar(_Bar):
    """Has the latest score behind it."""

    def name(self, what: str, *, short: str | None = None) -> None:
        self._bar.set_postfix_str(short or what, refresh=False)


class _Lines(_Silence):
    """A line every few seconds, for logs."""

    def begin(self, total: int | None) -> None:
        self._total = total
        self._done = 0
        self._what = ""
        self._started = self._last = time.monotonic()

    def name(self, what: str, *, short: str | None = None) -> None:
        self._what = what

    def advance(self, count: int) -> None:
        super().advance(count)
        self._done += count
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LINES:
            return
        self._last = now
        click.echo(self._line(now - self._started), err=True)

    def _line(self, seconds: float) -> str:
        raise NotImplementedError


class _ByteLines(_Lines):
    def _line(self, seconds: float) -> str:
        rate, total = self._done / seconds, self._total or 0
        return (
            f"{format_size(self._done)} of {format_size(total)} read "
            f"({self._done / total:.0%}), {format_size(rate)}/s, "
            f"{(total - self._done) / rate:.0f} s left"
        )


class _BatchLines(_Lines):
    def _line(self, seconds: float) -> str:
        total = "" if self._total is None else f" of {self._total:,}"
        return f"{self._done:,}{total} batches done, at {self._what}"


class _TrialLines(_Lines):
    def _line(self, seconds: float) -> str:
        return f"trial {self._done} of at most {self._total}: {self._what}"

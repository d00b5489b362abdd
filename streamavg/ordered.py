"""Work done by several threads whose results come in the order of the work."""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterable

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int
) -> Generator[Result, None, None]:
    """Calls a function with each item, and yields what it returns in the order of the items.

    Items are asked for as threads become free, so that their producer may heed earlier results; at
    most one more than there are threads is at work or waiting to be yielded.

    Close it (`contextlib.closing`) where its user may fail half-way: no further item is begun then.

    Args:
        function: called in `threads` threads.
        items: what it is called with.
        threads: at least 1.

    Raises: what the function raises for the first item for which it does.
    """
    with ThreadPoolExecutor(threads) as pool:
        pending: deque[Future[Result]] = deque()
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) > threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:  # an interrupt comes to this thread; the others stop after the item at hand
            pool.shutdown(cancel_futures=True)

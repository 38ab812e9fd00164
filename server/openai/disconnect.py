"""Work that nobody needs any more once the client has closed its connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

_T = TypeVar("_T")


class ClientGone(Exception):
    """The client closed its connection."""


async def unless_gone(
    receive: Receive,
    work: Awaitable[_T],
    *ends: Coroutine[Any, Any, None],
    unused: Callable[[_T], None] | None = None,
) -> _T:
    """The result of `work`, which is cancelled when the client goes away first.

    Args:
        ends: what counts as going away too, when it returns.
        unused: gets a result that came in the moment in which nobody wanted it any more.

    Raises:
        ClientGone: it did.
    """
    task = asyncio.ensure_future(work)
    gone = [asyncio.ensure_future(one) for one in (_disconnect(receive), *ends)]
    try:
        try:
            await asyncio.wait({task, *gone}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGone
            return task.result()
        finally:
            for one in (task, *gone):
                one.cancel()
            await asyncio.wait({task, *gone})
    except BaseException:  # also where we are cancelled while we clean up after a good end
        if unused is not None:
            task.add_done_callback(lambda done: _hand_back(done, unused))
        raise


def _hand_back(task: asyncio.Future[_T], unused: Callable[[_T], None]) -> None:
    if not task.cancelled() and task.exception() is None:
        unused(task.result())


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

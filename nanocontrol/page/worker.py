"""One thread computes for all users, a step or a short call at a time."""

import asyncio
import sys
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from nanocontrol.page.asked import Refused
from nanocontrol.plumbing.errors import InputError, one_line

MOST = 64  # waiting calls, and streams


class Worker:
    """Pieces of work are computed in the order in which they are asked for. A stream asks for its
    next piece when it has the last one, so streams are interleaved, and one that nobody reads
    stops. `latest` has each client's newest stream: an older one ends after its current step."""

    def __init__(self) -> None:
        # Next to other work, two threads are far slower than one. The command that makes a picture
        # again has one, too.
        self.pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self.waiting, self.latest = 0, dict[str, object]()

    async def compute(self, function: Callable[[], Any]) -> Any:
        """The function's result. Raises Refused for errors that are not InputErrors."""
        try:
            without_gradients = torch.no_grad()(function)
            return await asyncio.get_running_loop().run_in_executor(self.pool, without_gradients)
        except InputError:
            raise
        except Exception as error:
            raise Refused(internal(error), 500) from None

    async def call(self, function: Callable[[], Any]) -> Any:
        """As `compute`, for a single answer. Raises Refused if too many wait."""
        if self.waiting >= MOST:
            raise Refused("too many requests wait: try again in a moment", 429)
        self.waiting += 1
        try:
            return await self.compute(function)
        finally:
            self.waiting -= 1

    async def stream(self, client: str, events: Iterator[dict]) -> AsyncIterator[dict]:
        """The events, until the client leaves or begins another stream."""
        mine = self.latest[client] = object()
        try:
            while self.latest.get(client) is mine:
                event = await self.compute(lambda: next(events, None))
                if event is None:
                    return
                yield event
            yield {"event": "cancelled"}
        except InputError as error:
            yield {"event": "error", "error": str(error)}
        finally:
            if self.latest.get(client) is mine:
                del self.latest[client]


def internal(error: Exception) -> str:
    """An unexpected error as the browser shows it. Its trace is printed here."""
    traceback.print_exception(error, file=sys.stderr)
    return one_line(f"internal error: {type(error).__name__}: {error}")

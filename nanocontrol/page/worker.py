"""One thread computes for all users, a step or a short call at a time."""

import asyncio
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

from nanocontrol.page.asked import Refused
from nanocontrol.plumbing.errors import InputError, one_line

MOST = 64  # pieces of work that wait, and of streams


class Worker:
    """Pieces of work are computed in the order in which they are asked for. A stream asks for its
    next piece when it has the last one, so streams are interleaved, and one that nobody reads
    stops. `latest` has each client's newest stream: an older one ends after its current step."""

    def __init__(self) -> None:
        # Next to other work, two threads are far slower than one. The command that makes a picture
        # again has one, too.
        self.pool = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        self.waiting, self.latest = 0, dict[str, Iterator[dict]]()

    async def call(self, function: Callable[[], Any], others: int = 0) -> Any:
        """The function's result. Raises Refused if too many others wait, and for errors that are
        not InputErrors."""
        if others >= MOST:
            raise Refused("too many requests wait: try again in a moment", 429)
        self.waiting += 1
        try:
            without_gradients = torch.no_grad()(function)
            return await asyncio.get_running_loop().run_in_executor(self.pool, without_gradients)
        except Exception as error:
            raise explained(error) from None
        finally:
            self.waiting -= 1

    async def stream(self, client: str, events: Iterator[dict]) -> AsyncIterator[dict]:
        """The events, until the client leaves or begins another stream."""
        self.latest[client] = events
        try:
            while self.latest.get(client) is events:
                event = await self.call(lambda: next(events, None))
                if event is None:
                    return
                yield event
            yield {"event": "cancelled"}
        except InputError as error:
            yield {"event": "error", "error": str(error)}
        finally:
            if self.latest.get(client) is events:
                del self.latest[client]


def explained(error: Exception) -> InputError:
    """An error as the browser shows it. The trace of an unexpected one is printed here."""
    if isinstance(error, InputError):
        return error
    traceback.print_exception(error)
    return Refused(one_line(f"internal error: {type(error).__name__}: {error}"), 500)

"""One thread computes for all users: short calls first, then a step of each picture in turn."""

import asyncio
import sys
import threading
import traceback
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from nanocontrol.page.asked import Refused
from nanocontrol.plumbing.errors import InputError, one_line

MOST = 64  # waiting calls, and pictures in the making
CANCELLED = {"event": "cancelled"}


@dataclass(eq=False)
class Job:
    """A generator of events, of which each `next` is a short piece of work."""

    client: str
    events: Iterator[dict]
    loop: asyncio.AbstractEventLoop | None = None
    out: asyncio.Queue = field(default_factory=asyncio.Queue)
    cancelled: bool = False

    def tell(self, event: dict | None) -> None:
        """Hand an event to the server's thread; None is the end."""
        if self.loop and not self.loop.is_closed():
            self.loop.call_soon_threadsafe(self.out.put_nowait, event)


class Worker:
    """prepare: called first, in the worker's thread; with its error nothing else is computed."""

    def __init__(self, prepare: Callable[[], None]):
        self.prepare, self.error = prepare, ""
        self.calls: deque[tuple[Callable, asyncio.Future]] = deque()
        self.jobs: deque[Job] = deque()
        self.latest: dict[str, Job] = {}  # of each client
        self.work = threading.Condition()
        threading.Thread(target=self.run, daemon=True, name="worker").start()

    def run(self) -> None:
        torch.set_num_threads(1)  # of this thread; next to other work, two are far slower than one
        try:
            self.prepare()
        except Exception as error:
            self.error = sentence_of(error)
        while True:
            with self.work:
                self.work.wait_for(lambda: self.calls or self.jobs)
                call = self.calls.popleft() if self.calls else None
                job = self.jobs.popleft() if self.jobs else None
            if call:
                self.answer(*call)
            if job and self.step(job):
                with self.work:
                    self.jobs.append(job)

    @torch.no_grad()
    def step(self, job: Job) -> bool:
        """The next piece of a job's work. Whether there is more to do."""
        try:
            event = CANCELLED if job.cancelled else next(job.events, None)
        except Exception as error:
            event = {"event": "error", "error": sentence_of(error)}
        job.tell(event)
        if event is not None and event.get("event") not in ("cancelled", "error", "done"):
            return True
        job.tell(None)
        with self.work:
            if self.latest.get(job.client) is job:
                del self.latest[job.client]
        return False

    @torch.no_grad()
    def answer(self, function: Callable, future: asyncio.Future) -> None:
        try:
            result, failed = function(), None
        except Exception as error:
            result, failed = None, error
            sentence_of(error)

        def resolve() -> None:
            if not future.done():  # whoever asked may have left
                future.set_exception(failed) if failed else future.set_result(result)

        loop = future.get_loop()
        if not loop.is_closed():
            loop.call_soon_threadsafe(resolve)

    # -------------------------------------------------------------- called in the server's thread

    async def call(self, function: Callable[[], Any]) -> Any:
        """The function's result, computed by the worker. Raises Refused if too many calls wait."""
        future = asyncio.get_running_loop().create_future()
        with self.work:
            if len(self.calls) >= MOST:
                raise Refused("too many requests wait: try again in a moment", 429)
            self.calls.append((function, future))
            self.work.notify()
        return await future

    def start(self, job: Job) -> None:
        """Begin a job. An older one of the same client ends after its current step."""
        with self.work:
            if job.client in self.latest:
                self.latest.pop(job.client).cancelled = True
            if sum(not other.cancelled for other in self.jobs) >= MOST:
                raise Refused("too many pictures are in the making: try again in a moment", 429)
            self.jobs.append(job)
            self.latest[job.client] = job
            self.work.notify()

    async def stream(self, job: Job) -> AsyncIterator[dict]:
        """The job's events. If whoever reads them leaves, its work ends after its current step."""
        try:
            while (event := await job.out.get()) is not None:
                yield event
        finally:
            job.cancelled = True


def sentence_of(error: Exception) -> str:
    """What the browser shows of an error; the trace of an unexpected one is printed here."""
    if isinstance(error, InputError):
        return str(error)
    traceback.print_exception(error, file=sys.stderr)
    return one_line(f"internal error: {type(error).__name__}: {error}")

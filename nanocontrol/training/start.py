"""A training begins in a folder that no other one has, and stops without losing a step."""

import os
import shlex
import signal
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

from nanocontrol.plumbing.errors import InputError, Stopped
from nanocontrol.plumbing.locked_folder import folder_held
from nanocontrol.training.processes import is_first


class Signals:
    """Ctrl-C, and SIGTERM, which a machine sends before it goes down. They stop the program at
    once, but while `noting` the first one is only noted: `Watch` has the step finished and saved.

    A second Ctrl-C stops at once all the same. A second SIGTERM does not: where a machine sends it
    to every process, torchrun passes it on to those that have it already.
    """

    def __init__(self) -> None:
        self.noting, self.noted = False, 0  # the number of the signal

    def __enter__(self) -> "Signals":
        both = signal.SIGINT, signal.SIGTERM
        self.before = {number: signal.signal(number, self.receive) for number in both}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)

    def receive(self, number: int, frame: FrameType | None) -> None:
        if self.noted and number == signal.SIGTERM:
            return
        if not self.noting or self.noted:
            raise Stopped(number)
        self.noted = number


def run_alone(train: Callable, settings: Any, resume: bool, kind: str, command: str) -> None:
    """Call train(settings, signals, resume) with a folder of its own as `out`: if none is given,
    the first free one of runs/kind-1, runs/kind-2, ... Where it is stopped, say how it goes on.

    Processes that torchrun started are one run: the first of them has the folder.
    """
    first = is_first()
    held = folder_held(settings.out, kind, resume) if first else nullcontext(settings.out or kind)
    with Signals() as signals, held as out:
        try:
            train(replace(settings, out=out), signals, resume)
        except KeyboardInterrupt as stop:
            number = getattr(stop, "number", signal.SIGINT)
            if not first:  # one sentence is enough
                sys.exit(128 + number)
            raise Stopped(number, how_to_go_on(Path(out), command)) from None


def how_to_go_on(out: Path, command: str) -> str:
    if not (out / "settings.json").exists():
        return "stopped before the run began: nothing was written"
    python = "python"
    if "LOCAL_WORLD_SIZE" in os.environ:
        python = f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}"
    how = f"{python} {command} --resume {typed(out)}"
    if not (out / "state.pt").exists():
        return f"stopped before anything was saved; to begin again: {how}"
    return f"stopped; to go on from the last save: {how}"


def typed(path: str | Path) -> str:
    """As one would type it here."""
    here, path = Path.cwd(), Path(path).resolve()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def check_new(out: str | None) -> None:
    """Refuse a folder that holds a run."""
    if out and (Path(out) / "settings.json").exists():
        raise InputError(f"--out {out} already holds a run: expected a new folder, or --resume")

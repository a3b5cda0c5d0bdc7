"""Starting a training in a folder of its own, and stopping it without losing a step."""

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

from nanocontrol.plumbing.errors import LONGEST_LINE, InputError, Stopped
from nanocontrol.plumbing.locked_folder import folder_held
from nanocontrol.training.processes import is_first, is_of_others


class Signals:
    """Handlers for Ctrl-C, and for SIGTERM, which a machine sends before it shuts down.

    They stop the program at once. During training, while `noting` is set, the first signal only
    sets `noted`; `Watch` finishes the step, saves, and exits. A second Ctrl-C stops at once. A
    second SIGTERM is ignored: if a machine sends it to every process, torchrun forwards it to
    processes that have received it already.
    """

    def __init__(self) -> None:
        self.noting, self.noted = False, 0  # noted: the signal's number, 0 for none

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
    """Call train(settings, signals, resume), with `out` locked for this run. If no folder is given,
    it is the first free one of runs/kind-1, runs/kind-2, ... If the training is stopped, the
    message says how to resume it.

    Processes that torchrun started are one run, and the first of them holds the lock.
    """
    first = is_first()
    held = folder_held(settings.out, kind, resume) if first else nullcontext(settings.out or kind)
    with Signals() as signals, held as out:
        try:
            train(replace(settings, out=out), signals, resume)
        except KeyboardInterrupt as stop:
            number = getattr(stop, "number", signal.SIGINT)
            if not first:  # the first process prints the message
                sys.exit(128 + number)
            raise Stopped(number, how_to_go_on(Path(out), command)) from None
        except RuntimeError as error:
            if not is_of_others(error):
                raise
            what = "another process ended, or did not answer in time; its output says why"
            raise InputError(f"{what}; {how_to_go_on(Path(out), command)}", LONGEST_LINE) from None


def how_to_go_on(out: Path, command: str) -> str:
    if not (out / "settings.json").exists():
        return "stopped before the run began: nothing was written"
    python = "python"
    if "LOCAL_WORLD_SIZE" in os.environ:
        python = f"torchrun --nproc-per-node {os.environ['LOCAL_WORLD_SIZE']}"
    if (machines := os.environ.get("GROUP_WORLD_SIZE", "1")) != "1":
        python += f" --nnodes {machines} --rdzv-backend c10d --rdzv-endpoint HOST:PORT"
    how = f"{python} {command} --resume {typed(out)}"
    if not (out / "state.pt").exists():
        return f"stopped before anything was saved; to start again: {how}"
    return f"stopped; to resume from the last save: {how}"


def typed(path: str | Path) -> str:
    """The path as one would type it in a shell in the current folder."""
    here, path = Path.cwd(), Path(path).resolve()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def check_new(out: str | None) -> None:
    """Raises InputError if the folder already holds a run."""
    if out and os.path.exists(Path(out) / "settings.json"):
        raise InputError(f"--out {out} already holds a run: expected a new folder, or --resume")

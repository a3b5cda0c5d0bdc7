"""What a training does beside learning: log losses, measure and draw sheets of pictures, save."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from nanocontrol.plumbing.errors import InputError, Stopped
from nanocontrol.training.curves import draw_curves
from nanocontrol.training.measure import step_of_jump
from nanocontrol.training.optimizer import Optimizer
from nanocontrol.training.processes import Processes
from nanocontrol.training.run import RunFolder, finite_or_none
from nanocontrol.training.start import Signals

LOG_EVERY = 10  # steps: reading a loss makes the CPU wait for the GPU, so it is done seldom
TOO_MANY = 10  # steps skipped in a row: the run is stopped
HALVINGS = 16  # of fp16's scale of the loss, 65536 at first: as many steps may be skipped for that

Look = Callable[[], tuple[list[Tensor], dict]]  # rows of pictures, and numbers
Save = Callable[[Path], None]  # into a folder


class Watch:
    """In a run of several processes, the first one evaluates, saves and writes.

    folder: of the run, which ends after `steps` steps; signals: the first one stops the run after
    its step.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        look_every: int,
        save_every: int,
        optimizer: Optimizer,
        processes: Processes,
        signals: Signals,
    ):
        self.total, self.look_every, self.save_every = steps, look_every, save_every
        self.optimizer, self.processes, self.signals = optimizer, processes, signals
        self.run = RunFolder(folder)
        self.writes = processes.rank == 0
        self.losses: list[Tensor] = []  # those that are not logged yet
        self.too_many = TOO_MANY + (HALVINGS if optimizer.dtype == "fp16" else 0)
        self.skipped_in_a_row = 0
        self.began = time.monotonic()

    def begin(
        self, settings: dict, resume: bool, pairs: str, look: Look, caption: str, save: Save
    ) -> int:
        """Write the folder with these settings, or restore its last save -> the first step.

        pairs: as Pairs.digest has it; look: measures the networks; caption: how its pictures are
        made; save: writes what sample.py takes into the folder.
        """
        self.pairs, self.look, self.caption, self.save = pairs, look, caption, save
        progress = self.progress(0)
        if resume:
            progress = self.run.restore(self.optimizer, progress)
        start, processes = progress["step"], progress["processes"]
        if processes != self.processes.size:  # each takes a batch of its own
            how = f"torchrun with {processes}" if processes > 1 else "no torchrun"
            both = f"{self.run.path} was trained by {processes} processes"
            raise InputError(f"--resume: {both}, not {self.processes.size}: expected {how}")
        if progress["pairs"] != self.pairs:
            raise InputError(
                f"--resume: {self.run.path} began with other pairs than --data has now"
            )
        self.began -= progress["seconds"]
        self.skipped_in_a_row = progress["skipped_in_a_row"]
        if self.writes:
            if resume and start == 0:
                print(f"{self.run.path} holds no saved state: beginning anew", file=sys.stderr)
            self.run.create(settings, start)
        return start

    def progress(self, step: int) -> dict:
        """What a run that goes on has to know, beside its weights and AdamW's numbers."""
        return {
            "step": step,
            "seconds": time.monotonic() - self.began,
            "processes": self.processes.size,
            "skipped_in_a_row": self.skipped_in_a_row,
            "pairs": self.pairs,
        }

    def steps(self, start: int) -> Iterator[int]:
        """The steps that are left, from `start` on, with a progress bar. After each call `done`."""
        self.signals.noting = True
        if start == 0 and self.writes:
            self.observe(0)
        left, hidden = range(start, self.total), not self.writes
        self.bar = tqdm(left, "training", self.total, initial=start, smoothing=0.05, disable=hidden)
        yield from self.bar
        self.signals.noting = False

    def done(self, step: int, loss: Tensor) -> None:
        """After each step, from 0 on. loss: as Optimizer.step returns it, of all processes."""
        self.losses.append(loss)
        done = step + 1
        last, stopped = done == self.total, self.processes.largest(self.signals.noted)
        looks = last or done % self.look_every == 0
        saves = last or stopped > 0 or done % self.save_every == 0
        if looks or saves or done % LOG_EVERY == 0:
            self.log_losses(done)
        if looks and self.writes:
            self.observe(done)
        if saves and self.writes:
            self.write(done)
        if stopped:
            self.processes.wait()
            self.processes.leave()
            raise Stopped(stopped)

    def log_losses(self, done: int) -> None:
        values, last_bad = torch.stack(self.losses).tolist(), 0
        for step, loss in enumerate(values, done - len(values) + 1):
            taken = math.isfinite(loss)
            self.skipped_in_a_row = 0 if taken else self.skipped_in_a_row + 1
            if self.skipped_in_a_row >= self.too_many:
                last_bad = step
            if self.writes and taken:
                self.run.log(step, loss=loss)
            elif self.writes:
                self.run.log(step, skipped=self.run.skipped + 1)
        self.losses.clear()
        self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if last_bad:
            if self.writes:
                self.write(done)  # it is good: bad steps changed nothing
            self.processes.wait()
            raise self.diverged(
                f"{self.too_many} steps in a row were skipped until step {last_bad}, as their "
                "losses or gradients were not finite"
            )

    def observe(self, step: int) -> None:
        rows, numbers = self.look()
        self.run.contact_sheet(step, rows, self.caption)
        self.run.log(step, **numbers)

    def write(self, step: int) -> None:
        if not all(weight.isfinite().all() for weight in self.optimizer.weights):
            raise self.diverged(f"the weights are not finite at step {step}")
        # In this order: where a kill comes between the two, the last weights are not missing from a
        # run that is taken for finished.
        self.save(self.run.path)
        self.run.save(self.progress(step), self.optimizer)

    def finish(
        self, look: Look, film_size: tuple[int, int] | None = None, bands: dict | None = None
    ) -> dict:
        """Measure once more and write the numbers; of a ControlNet, with pictures of film_size
        (height, width), also a film, the curves (over the bands of healthy runs) and the step of
        the jump -> the numbers."""
        if self.signals.noted:  # while the last step was looked at
            raise Stopped(self.signals.noted)
        metrics: dict = {}
        if self.writes:
            metrics = finite_or_none(look()[1])
            if film_size:
                metrics["step_of_jump"] = step_of_jump(self.run.measured)
                self.run.film(*film_size)
                draw_curves(self.run.history, self.run.path / "curves.png", bands or {})
            seconds = round(time.monotonic() - self.began, 1)
            self.run.finish(metrics | {"skipped": self.run.skipped, "seconds": seconds})
            print(f"{self.run.path}: {json.dumps(metrics)}")
        self.processes.leave()
        return metrics

    def diverged(self, why: str) -> InputError:
        precision = "" if self.optimizer.dtype == "fp32" else " or --dtype fp32"
        return InputError(
            f"--lr {self.optimizer.lr:g}: {why}; begin a new run with a lower rate{precision}, and "
            f"look for NaN in the data (the last good state, if any, is kept in {self.run.path})"
        )

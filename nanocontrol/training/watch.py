"""What a training does beside learning: log losses, measure and draw sheets of pictures, save."""

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from nanocontrol.plumbing.errors import InputError
from nanocontrol.training.measure import step_of_jump
from nanocontrol.training.optimizer import Optimizer
from nanocontrol.training.processes import Processes
from nanocontrol.training.run import RunFolder

LOG_EVERY = 10  # steps: reading a loss makes the CPU wait for the GPU, so it is done seldom

Look = Callable[[], tuple[list[Tensor], dict]]  # rows of pictures, and numbers


class Watch:
    """Of several processes the first one looks, saves and writes.

    settings: with out, steps, sample_every and save_every; look: measures the networks; caption:
    how its pictures are made; save: writes what sample.py takes into the folder.
    """

    def __init__(
        self,
        settings: Any,
        optimizer: Optimizer,
        processes: Processes,
        look: Look,
        caption: str,
        save: Callable[[Path], None],
    ):
        self.settings, self.optimizer, self.processes = settings, optimizer, processes
        self.look, self.caption, self.save = look, caption, save
        self.run = RunFolder(Path(settings.out))
        self.writes = processes.rank == 0
        self.losses: list[Tensor] = []  # those that are not logged yet
        self.began = time.monotonic()

    def begin(self, resume: bool) -> int:
        """Write the folder, or go back to its last save -> the step to begin with."""
        start, seconds = self.run.restore(self.optimizer) if resume else (0, 0.0)
        self.began -= seconds
        if self.writes:
            self.run.create(asdict(self.settings), start)
        return start

    def steps(self, start: int) -> Iterator[int]:
        """The steps that are left, from `start` on, with a progress bar. After each call `done`."""
        if start == 0 and self.writes:
            self.observe(0)
        left, total = range(start, self.settings.steps), self.settings.steps
        hidden = not self.writes
        self.bar = tqdm(left, "training", total, initial=start, smoothing=0.05, disable=hidden)
        yield from self.bar

    def done(self, step: int, loss: Tensor) -> None:
        """After each step, from 0 on. The loss is this process's own."""
        self.losses.append(loss)
        done = step + 1
        last = done == self.settings.steps
        looks = last or done % self.settings.sample_every == 0
        saves = last or done % self.settings.save_every == 0
        if looks or saves or done % LOG_EVERY == 0:
            self.log_losses(done)
        if looks and self.writes:
            self.observe(done)
        if saves and self.writes:
            self.write(done)

    def log_losses(self, done: int) -> None:
        values = self.processes.mean(torch.stack(self.losses)).tolist()
        for step, loss in enumerate(values, done - len(values) + 1):
            if not math.isfinite(loss):
                raise self.diverged(step)
            if self.writes:
                self.run.log(step, loss=loss)
        self.losses.clear()
        self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)

    def observe(self, step: int) -> None:
        rows, numbers = self.look()
        self.run.contact_sheet(step, rows, self.caption)
        self.run.log(step, **numbers)

    def write(self, step: int) -> None:
        if not all(parameter.isfinite().all() for parameter in self.optimizer.parameters):
            raise self.diverged(step)
        self.save(self.run.path)
        self.run.save(step, time.monotonic() - self.began, self.optimizer)

    def finish(self, look: Look, film_size: tuple[int, int] | None = None) -> dict:
        """Measure once more and write the numbers; of a ControlNet, with pictures of film_size
        (height, width), also a film and the step of the jump -> the numbers."""
        metrics: dict = {}
        if self.writes:
            _, metrics = look()
            if film_size:
                metrics["step_of_jump"] = step_of_jump(self.run.measured)
                self.run.film(*film_size)
            seconds = round(time.monotonic() - self.began, 1)
            self.run.finish(metrics | {"seconds": seconds})
            print(f"{self.run.path}: {json.dumps(metrics)}")
        self.processes.leave()
        return metrics

    def diverged(self, step: int) -> InputError:
        return InputError(
            f"--lr {self.settings.lr:g}: the loss or the weights are not finite at step {step}; "
            "start a new run with a lower rate (the last save, if any, is kept in "
            f"{self.run.path}; --init-control takes it)"
        )

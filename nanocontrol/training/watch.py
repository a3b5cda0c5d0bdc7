"""Everything around a training's steps: log losses, evaluate, draw contact sheets, save."""

import json
import math
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from nanocontrol.plumbing.errors import LONGEST, InputError, Stopped, say
from nanocontrol.training.batches import Batch
from nanocontrol.training.curves import draw_curves
from nanocontrol.training.measure import step_of_jump
from nanocontrol.training.moved import record
from nanocontrol.training.optimizer import Optimizer
from nanocontrol.training.pairs import Pairs
from nanocontrol.training.processes import Processes
from nanocontrol.training.run import RunFolder, finite_or_none, read_json, write_json
from nanocontrol.training.start import Signals

LOG_EVERY = 10  # steps; logging is rare because reading a loss makes the CPU wait for the GPU
TOO_MANY = 10  # consecutive skipped steps that stop a run
HALVINGS = 16  # more steps that fp16 may skip, one for each halving of its loss scale of 65536

Look = Callable[[], tuple[list[Tensor], dict]]  # rows of pictures, and numbers
Save = Callable[[Path], None]  # into a folder
Data = Pairs | None


class Watch:
    """Logs, evaluates and saves a run. Of several processes, only the first evaluates and writes.

    steps: the run's length; look_every, save_every: steps between evaluations and between saves;
    signals: the first one stops the run after the current step; bands: for a ControlNet, ranges of
    healthy runs, drawn behind its curves.
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
        bands: dict | None = None,
    ):
        self.total, self.look_every, self.save_every = steps, look_every, save_every
        self.optimizer, self.processes, self.signals = optimizer, processes, signals
        self.bands = bands
        self.run = RunFolder(folder)
        self.writes = processes.rank == 0
        self.losses: list[Tensor] = []  # not logged yet
        self.too_many = TOO_MANY + (HALVINGS if optimizer.dtype == "fp16" else 0)
        self.skipped_in_a_row = 0
        self.began = time.monotonic()

    def begin(
        self, settings: dict, resume: bool, pairs: Data, look: Look, caption: str, save: Save
    ) -> int:
        """Write the folder with these settings, or restore its last save -> the first step.

        pairs: the training's, which must not change; look: evaluates the networks; caption: how
        its pictures are made; save: writes the weights, as sample.py reads them, into the folder.
        """
        self.data, self.look, self.caption, self.save = pairs, look, caption, save
        self.pairs = pairs.digest() if pairs is not None else ""
        self.began_with = settings["base"], settings.get("init_control")
        self.keep, self.own = settings.get("keep", 0), len(settings.get("validation") or [])
        facts = {"their data": self.pairs, "their flags": json.dumps(settings, sort_keys=True)}
        for folder in filter(None, (str(self.run.path), settings.get("cache"))):
            self.processes.compare(Path(folder), facts)
        progress = self.progress(0)
        if resume:
            progress = self.run.restore(self.optimizer, progress, self.total)
            self.check_division(settings, progress["processes"])
        start = progress["step"]
        if progress["pairs"] != self.pairs:
            raise InputError(
                f"--resume: {self.run.path} began with other pairs than --data has now"
            )
        self.began -= progress["seconds"]
        self.skipped_in_a_row = progress["skipped_in_a_row"]
        if self.writes:
            if resume and start == 0:
                say(f"{self.run.path} holds no saved state: starting again", sys.stderr)
            self.run.create(settings, start)
            if start == self.total:  # there will be no other save, and the files may be missing
                self.save(self.run.path)
        return start

    def check_division(self, settings: dict, processes: int) -> None:
        """Refuse another number of pairs in a step than the run had. It may be divided otherwise
        among passes and processes. processes: that the run had."""
        kept = read_json(self.run.path / "settings.json")
        before, now = (
            every["batch_size"] * every.get("accumulate", 1) * n
            for every, n in ((kept, processes), (settings, self.processes.size))
        )
        if before != now:
            how = f"{before} ({processes} processes, each with --batch-size x --accumulate)"
            raise InputError(
                f"--resume: {self.run.path} has {how} pairs in a step; these are {now}"
            )

    def progress(self, step: int) -> dict:
        """The state that resuming needs, besides the weights and AdamW's moments."""
        return {
            "step": step,
            "seconds": time.monotonic() - self.began,
            "processes": self.processes.size,
            "skipped_in_a_row": self.skipped_in_a_row,
            "pairs": self.pairs,
        }

    def steps(self, start: int) -> Iterator[int]:
        """The remaining steps, from `start` on, with a progress bar. Call `done` after each."""
        if self.writes and self.data is not None:
            record(self.run.path, self.data)
        self.processes.wait()
        self.processes.hurry()
        self.signals.noting, self.finished = True, start
        if start == 0 and self.writes:
            self.observe(0)
        left, hidden = range(start, self.total), not self.writes
        self.bar = tqdm(left, "training", self.total, initial=start, smoothing=0.05, disable=hidden)
        yield from self.bar
        self.signals.noting = False

    def next(self, batches: Iterator[Batch]) -> Batch:
        """The next batch. If a process cannot read its pairs, the run is saved, and all end."""
        batch, wrong = None, ""
        try:
            batch = next(batches)
        except InputError as error:
            wrong = str(error)
        if batch is None or self.processes.size > 1:
            self.agree(wrong)
        assert batch is not None
        return batch

    def agree(self, wrong: str) -> None:
        """Save the run, and raise InputError in every process, if something is wrong in one."""
        if not self.processes.largest(len(wrong)):
            return
        (first, *_) = filter(None, self.processes.gather(wrong))
        if self.losses:
            self.log_losses(self.finished)
        if self.writes and self.finished:
            self.write(self.finished)
        self.processes.wait()
        saved = f"the run was saved after step {self.finished}"
        done = saved if self.finished else "no step is done"
        raise InputError(f"{first}; {done}: expected to read it again with --resume")

    def done(self, step: int, loss: Tensor) -> None:
        """Log, evaluate and save after step `step`, if it is time.

        step: counted from 0. loss: from Optimizer.step, averaged over the processes.
        """
        self.losses.append(loss.clone())  # a replayed step overwrites its output
        self.finished = done = step + 1
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
            if self.writes:
                entry = {"loss": loss} if taken else {"skipped": self.run.skipped + 1}
                self.run.log(step, **entry)
        self.losses.clear()
        self.bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        if last_bad:
            if self.writes:
                self.write(done)  # still good, because skipped steps changed nothing
            self.processes.wait()
            raise self.diverged(
                f"{self.too_many} steps in a row were skipped up to step {last_bad}, because their "
                "losses or gradients were not finite"
            )

    def observe(self, step: int) -> None:
        rows, numbers = self.look()
        self.run.contact_sheet(step, rows, self.caption)
        before = [loss for _, loss in self.run.measured("held_out_loss")]
        loss = numbers.get("held_out_loss", math.nan)  # not measured: never the lowest
        self.run.log(step, **numbers)
        self.draw_curves(note=False)
        best = math.isfinite(loss) and all(loss < other for other in before)
        self.run.keep_weights(self.save, step, best, self.keep)

    def draw_curves(self, note: bool) -> None:
        if self.bands is not None:
            draw_curves(self.run.history, self.run.path / "curves.png", self.bands, note)

    def write(self, step: int) -> None:
        if not all(weight.isfinite().all() for weight in self.optimizer.weights):
            raise self.diverged(f"the weights are not finite at step {step}")
        # The weights come first. If the process is killed in between, resuming repeats some steps
        # and writes the weights again. In the other order, a run whose state says that it is done
        # could lack its last weights.
        self.save(self.run.path)
        self.run.save(self.progress(step), self.optimizer)

    def finish(self, look: Look, film_size: tuple[int, int] | None = None) -> dict:
        """Evaluate once more and write metrics.json -> the final numbers.

        film_size: height and width of the pictures. For a ControlNet, where it is given, the step
        of the jump and the film are written too.
        """
        if self.signals.noted:  # during the last evaluation
            raise Stopped(self.signals.noted)
        metrics: dict = {}
        if self.writes:
            metrics = finite_or_none(look()[1])
            if film_size:
                metrics["step_of_jump"] = step_of_jump(self.run.measured)
                self.run.film(*film_size, self.own)
                self.draw_curves(note=True)
            seconds = round(time.monotonic() - self.began, 1)
            more = {"skipped": self.run.skipped, "seconds": seconds}
            write_json(self.run.path / "metrics.json", metrics | more)
            say(f"{self.run.path}: {json.dumps(metrics)}")
        self.processes.leave()
        return metrics

    def diverged(self, why: str) -> InputError:
        precision = "" if self.optimizer.dtype == "fp32" else " or --dtype fp32"
        if not self.run.measured("loss"):
            files = " or ".join(filter(None, self.began_with))
            return InputError(
                f"{why}; no loss was ever finite: weights of {files} may be too large; expected "
                f"others{precision} (python -m nanocontrol.tools.explain FILE --check)",
                longest=3 * LONGEST,
            )
        return InputError(
            f"--lr {self.optimizer.lr:g}: {why}; start a new run with a lower rate{precision}, and "
            f"check the data for NaN (the last good state, if any, is kept in {self.run.path})"
        )

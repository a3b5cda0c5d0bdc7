"""The folder of a training run: writing and reading it. The README.md here lists its files."""

import json
import math
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanocontrol.formats.tensors import read_tensors, write_tensors
from nanocontrol.plumbing.errors import InputError, memory_is_full
from nanocontrol.plumbing.files import make_folder, remove_temporary_files, sync, write_atomically
from nanocontrol.plumbing.pictures import CAPTION, grid, read_image, save_picture, with_caption
from nanocontrol.training.film import chosen, film
from nanocontrol.training.optimizer import Optimizer, entries_like

FOLLOWED = ("follows", "score", "iou")  # the film plots the first one that was measured


@dataclass(frozen=True)
class Run:
    """The contents of a run's folder."""

    folder: Path
    settings: dict[str, Any]  # settings.json
    log: list[dict[str, Any]]  # log.jsonl
    metrics: dict[str, Any]  # metrics.json; empty if the run did not finish

    def measured(self, name: str) -> list[tuple[int, float]]:
        return measured(self.log, name)

    @property
    def steps(self) -> int:
        """The number of steps done."""
        return max((entry["step"] for entry in self.log), default=0)


def read_run(folder: Path) -> Run:
    """The run in a folder. Raises InputError, naming the file, if the folder holds no run."""
    ended = os.path.exists(folder / "metrics.json")
    metrics = read_json(folder / "metrics.json") if ended else {}
    return Run(folder, read_json(folder / "settings.json"), read_log(folder), metrics)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The entries of log.jsonl; none without that file. A truncated last line is dropped."""
    file = folder / "log.jsonl"
    if not os.path.exists(file):
        return []
    try:
        log = [json.loads(x) for x in file.read_text().splitlines() if x.endswith("}")]
        # A value that is no number raises TypeError in `finite_or_none`.
        if not all(type(x["step"]) is int and finite_or_none(x) == x for x in log):
            raise ValueError("expected finite numbers")
    except (OSError, ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise InputError(f"{file} cannot be read ({error})") from None
    return log


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{file} is missing or damaged; expected a run's folder")
    return content


class RunFolder:
    def __init__(self, path: Path):
        self.path = path
        self.history: list[dict] = []  # what is in log.jsonl

    def create(self, settings: dict, start: int) -> None:
        """Prepare the folder for a run that begins after step `start`. Log entries and sheets of
        later steps, which a killed run left, are removed."""
        make_folder("--out", self.path / "samples")
        for name in ("", "samples", "weights"):
            remove_temporary_files(self.path / name)
        if (self.path / "settings.json").exists():  # in any other folder, files are the user's
            for file in self.path.glob(".tmp??????"):  # safetensors' temporary files
                file.unlink()
            for sheet in self.sheets():
                if int(sheet.stem) > start:
                    sheet.unlink()
        write_json(self.path / "settings.json", settings)
        self.forget_after(start)

    def log(self, step: int, **numbers: float | None) -> None:
        self.history.append({"step": step, **finite_or_none(numbers)})
        try:
            with open(self.path / "log.jsonl", "a") as file:
                file.write(json.dumps(self.history[-1]) + "\n")
        except OSError as error:
            raise InputError(f"{self.path / 'log.jsonl'} could not be written: {error}") from None

    def measured(self, name: str) -> list[tuple[int, float]]:
        return measured(self.history, name)

    @property
    def skipped(self) -> int:
        """The number of steps skipped so far."""
        return len(self.measured("skipped"))

    def save(self, progress: dict, optimizer: Optimizer) -> None:
        """Write everything that resuming needs, apart from the log, into one file."""
        state = progress | optimizer.state()

        def write(temporary: Path) -> None:
            sync(self.path / "log.jsonl")  # first, so that the log is never behind the state
            torch.save(state, temporary)

        write_atomically(self.path / "state.pt", write)

    def restore(self, optimizer: Optimizer, progress: dict, steps: int) -> dict:
        """Restore the last save -> its progress, with the keys of `progress`.

        progress: that of a new run, which is returned if nothing was saved. steps: the run's
        length.
        """
        file = self.path / "state.pt"
        if not file.exists():
            return progress
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            optimizer.restore(state)
            progress = entries_like(progress, state)
            if 0 < progress["step"] <= steps:
                return progress
        except Exception as error:  # a damaged file can raise nearly anything
            if memory_is_full(error):
                raise
        raise InputError(f"--resume: {file} is damaged or of another version")

    def forget_after(self, step: int) -> None:
        """Drop log entries after the last save, because those steps will be repeated."""
        entries = read_log(self.path) if step else []
        self.history = [entry for entry in entries if entry["step"] <= step]
        text = "".join(json.dumps(entry) + "\n" for entry in self.history)
        write_atomically(self.path / "log.jsonl", lambda temporary: temporary.write_text(text))

    def contact_sheet(self, step: int, rows: Sequence[Tensor], caption: str) -> None:
        """Save rows of pictures, each [n, 3, H, W] in [-1, 1]; the last row is the model's output.
        caption: how it was made."""
        sheet = with_caption(grid(rows), f"step {step}: {caption}")
        save_picture(sheet, self.path / "samples" / f"{step:06d}.png")

    def sheets(self) -> list[Path]:
        """The contact sheets in the order of their steps."""
        files = [file for file in (self.path / "samples").glob("*.png") if file.is_file()]
        return sorted((f for f in files if f.stem.isdecimal()), key=lambda file: int(file.stem))

    def keep_weights(self, save: Callable[[Path], None], step: int, best: bool, n: int) -> None:
        """Write this step's weights in half precision, as `control-best.safetensors` if they are
        the best and into the folder `weights`, where the last n evaluations' stay. Each file is
        complete or absent, and has its step in its metadata. save: writes the weights into a
        folder."""
        if not best and not n:
            return
        whole = self.path / "keeping"  # a killed process may have left it
        shutil.rmtree(whole, ignore_errors=True)
        save(make_folder("--out", whole))
        files = sorted(whole.iterdir())  # a ControlNet, and the base if it is trained
        for file in files:  # all of them, before the first one takes its place
            tensors, metadata = read_tensors(file)
            half = {name: in_half(tensor) for name, tensor in tensors.items()}
            write_tensors(file, half, metadata | {"step": step})
        if n:
            keep_last(files, make_folder("--out", self.path / "weights"), step, n)
        for file in files if best else []:
            os.replace(file, self.path / f"{file.stem}-best.safetensors")
        shutil.rmtree(whole)

    def film(self, height: int, width: int, first: int = 0) -> None:
        """Save the film, made from the log and the contact sheets. A sheet's first row has the
        hints, its last row the model's output. height, width: of a picture, in pixels; first: how
        many columns of a sheet come before the held-out pairs. Sheets of another size than the
        last one's are left out. Without sheets there is no film."""
        best = next((name for name in FOLLOWED if self.measured(name)), "control_gain")
        # Sheets of steps that this run did not evaluate are not its own.
        looked = {e["step"] for e in self.history if not e.keys() & {"loss", "skipped"}}
        files = {int(file.stem): file for file in self.sheets() if int(file.stem) in looked}
        own = {step: read_image(files[step]) for step in chosen([*files])}
        fit = [x.size for x in own.values() if not x.width % width and x.height >= height + CAPTION]
        sheets = {step: np.asarray(x) for step, x in own.items() if x.size in fit[-1:]}
        if not sheets:
            return
        hints = next(iter(sheets.values()))[:height]
        made = {step: sheet[-height - CAPTION : -CAPTION] for step, sheet in sheets.items()}
        curves = {name: x for name in (best, "held_out_loss") if (x := self.measured(name))}
        save_picture(film(hints, made, width, curves, first), self.path / "film.png")


def measured(history: Sequence[dict], name: str) -> list[tuple[int, float]]:
    """(step, value) of a number, for the log entries that have it."""
    return [(entry["step"], entry[name]) for entry in history if entry.get(name) is not None]


def write_json(path: Path, content: dict) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def finite_or_none(numbers: dict) -> dict:
    """The numbers, with None for NaN and infinity, which JSON does not have."""
    return {name: x if x is None or math.isfinite(x) else None for name, x in numbers.items()}


def keep_last(files: list[Path], folder: Path, step: int, n: int) -> None:
    """Copy these files into the folder, then delete all but n of each kind: first those of later
    steps, which a killed run left, then the oldest."""
    names = [f"{file.stem}-{step:07d}.safetensors" for file in files]
    for file, new in zip(files, names):
        write_atomically(folder / new, partial(shutil.copy, file))
    for file, new in zip(files, names):
        kept = [(other.name <= new, other) for other in folder.glob(f"{file.stem}-*.safetensors")]
        for _, old in sorted(kept)[:-n]:
            old.unlink()


def in_half(tensor: Tensor) -> Tensor:
    half = tensor.half()
    return half if half.isfinite().all() else tensor  # what float16 cannot hold

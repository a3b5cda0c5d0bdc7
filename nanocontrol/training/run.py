"""The folder that a training run leaves behind. README.md in this folder lists its files."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanocontrol.plumbing.errors import InputError, memory_is_full
from nanocontrol.plumbing.files import make_folder, remove_temporary_files, sync, write_atomically
from nanocontrol.plumbing.pictures import CAPTION, grid, save_picture, with_caption
from nanocontrol.training.film import chosen, film
from nanocontrol.training.optimizer import Optimizer

FOLLOWED = ("follows", "score", "iou")  # of these the film has the first that was measured


@dataclass(frozen=True)
class Run:
    """The contents of a run's folder."""

    folder: Path
    settings: dict[str, Any]  # settings.json
    log: list[dict[str, Any]]  # log.jsonl
    metrics: dict[str, Any]  # metrics.json; empty if the run did not come to its end

    def measured(self, name: str) -> list[tuple[int, float]]:
        return measured(self.log, name)

    @property
    def steps(self) -> int:
        """How many were done."""
        return max((entry["step"] for entry in self.log), default=0)


def read_run(folder: Path) -> Run:
    """Raises InputError, naming the file, if this is not the folder of a run."""
    ended = (folder / "metrics.json").exists()
    metrics = read_json(folder / "metrics.json") if ended else {}
    return Run(folder, read_json(folder / "settings.json"), read_log(folder), metrics)


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The entries of log.jsonl; none without that file. A last line that was cut off is dropped."""
    file = folder / "log.jsonl"
    if not file.exists():
        return []
    try:
        lines = file.read_text().splitlines()
        log = [json.loads(line) for line in lines if line.endswith("}")]
        if not all("step" in entry for entry in log):
            raise ValueError("entries without a step")
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{file} cannot be read ({error})") from None
    return log


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{file} is missing or damaged; expected a run's folder")
    return content


class RunFolder:
    def __init__(self, path: Path):
        self.path = path
        self.history: list[dict] = []  # what is in log.jsonl

    def create(self, settings: dict, start: int) -> None:
        """The folder of a run that begins with this step: what a run that was killed left of later
        ones goes."""
        make_folder("--out", self.path / "samples")
        for folder in (self.path, self.path / "samples"):
            remove_temporary_files(folder)
        if (self.path / "settings.json").exists():  # (what else is in a folder is somebody's own)
            for file in self.path.glob(".tmp??????"):  # safetensors' temporary files
                file.unlink()
            self.forget_sheets_after(start)
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
        """How many steps were skipped till now."""
        return len(self.measured("skipped"))

    def save(self, progress: dict, optimizer: Optimizer) -> None:
        """All that a run goes on from is in one file, and the log until then."""
        state = progress | optimizer.state()

        def write(temporary: Path) -> None:
            sync(self.path / "log.jsonl")  # first: no state may outlive its log
            torch.save(state, temporary)

        write_atomically(self.path / "state.pt", write)

    def restore(self, optimizer: Optimizer, progress: dict) -> dict:
        """Go back to the last save -> its progress, with the keys of the one that is given: that is
        the beginning's, which is returned if nothing was saved."""
        file = self.path / "state.pt"
        if not file.exists():
            return progress
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
            optimizer.restore(state)
            return {key: state[key] for key in progress}
        except Exception as error:  # a damaged file can raise nearly anything
            if memory_is_full(error):
                raise
            raise InputError(f"--resume: {file} is damaged or of another version") from None

    def forget_sheets_after(self, step: int) -> None:
        """They will be made again."""
        for sheet in self.sheets():
            if int(sheet.stem) > step:
                sheet.unlink()

    def forget_after(self, step: int) -> None:
        """Drop from the log what came after the last save: it will be done again."""
        entries = read_log(self.path) if step else []
        self.history = [entry for entry in entries if entry["step"] <= step]
        text = "".join(json.dumps(entry) + "\n" for entry in self.history)
        file = self.path / "log.jsonl"
        write_atomically(file, lambda temporary: temporary.write_text(text))

    def finish(self, metrics: dict) -> None:
        write_json(self.path / "metrics.json", metrics)

    def contact_sheet(self, step: int, rows: Sequence[Tensor], caption: str) -> None:
        """Rows of pictures, each [n, 3, H, W] in [-1, 1]; what the model makes is the last row.
        caption: how it was made."""
        sheet = with_caption(grid(rows), f"step {step}: {caption}")
        save_picture(sheet, self.path / "samples" / f"{step:06d}.png")

    def sheets(self) -> list[Path]:
        """In the order of their steps."""
        files = [file for file in (self.path / "samples").glob("*.png") if file.stem.isdecimal()]
        return sorted(files, key=lambda file: int(file.stem))

    def film(self, height: int, width: int) -> None:
        """From the contact sheets, whose first row are the hints and whose last is what was made,
        and from the log."""
        best = next((name for name in FOLLOWED if self.measured(name)), "control_gain")
        # (Sheets of other steps are not this run's.)
        looked = {e["step"] for e in self.history if not e.keys() & {"loss", "skipped"}}
        files = {int(file.stem): file for file in self.sheets() if int(file.stem) in looked}
        sheets = {step: np.asarray(Image.open(files[step])) for step in chosen([*files])}
        hints = next(iter(sheets.values()))[:height]
        made = {step: sheet[-height - CAPTION : -CAPTION] for step, sheet in sheets.items()}
        curves = {name: self.measured(name) for name in (best, "held_out_loss")}
        curves = {name: curve for name, curve in curves.items() if curve}
        save_picture(film(hints, made, width, curves), self.path / "film.png")


def measured(history: Sequence[dict], name: str) -> list[tuple[int, float]]:
    """(step, value) of a number, where the log has it."""
    return [(entry["step"], entry[name]) for entry in history if entry.get(name) is not None]


def write_json(path: Path, content: dict) -> None:
    text = json.dumps(content, indent=2) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text))


def finite_or_none(numbers: dict) -> dict:
    """As JSON can have them: it knows no NaN and no infinity."""
    return {name: x if x is None or math.isfinite(x) else None for name, x in numbers.items()}

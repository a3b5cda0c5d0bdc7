"""What runs left, as one JSON file of an experiment; and that file, to be compared and drawn."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanocontrol.experiments.numbers import (
    Curve,
    area,
    half_way,
    spoken,
    step_of_jump,
    width_of_jump,
)
from nanocontrol.nano.healthy import read
from nanocontrol.plumbing.files import make_folder, write_atomically

ASSETS = Path(__file__).parents[2] / "assets" / "experiments"
PICTURES = 16  # that are followed one by one


def rounded(x: Any) -> Any:
    """Numbers within JSON, to five digits."""
    if isinstance(x, float):
        return float(f"{x:.5g}")
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    return [rounded(item) for item in x] if isinstance(x, list) else x


def run_as_json(folder: Path, afterwards: Path | None = None) -> dict:
    """A finished run: its looks as columns, the losses as means between two looks. afterwards: a
    file with more numbers of its end."""
    history, settings = read(folder, "log.jsonl"), read(folder, "settings.json")[0]
    end = read(folder, "metrics.json")[0]
    if afterwards:
        end |= json.loads(afterwards.read_text())
    looks = [entry for entry in history if not entry.keys() & {"loss", "skipped"}]
    columns = {name: [look.get(name) for look in looks] for name in looks[0]}
    steps = columns["step"]
    losses = [
        [e["loss"] for e in history if "loss" in e and before < e["step"] <= step]
        for before, step in zip([0, *steps], steps)
    ]
    columns["loss"] = [float(np.mean(some)) if some else None for some in losses]
    curves: dict[str, Curve] = {name: curve_of(columns, name) for name in columns}
    return {
        "seed": settings["seed"],
        "seconds": end["seconds"],
        "machine": read(folder, "machine.json")[0],
        "compared": compared(curves),
        "end": end,
        "looks": columns,
    }


def curve_of(columns: dict[str, list], name: str) -> list[tuple[float, float]]:
    return [(s, x) for s, x in zip(columns["step"], columns[name]) if x is not None]


def compared(curves: dict[str, Curve]) -> dict[str, Any]:
    """By what arms are compared: the area under `follows`, the step of the jump of the score; how
    wide the jump is, in the mean and in each picture."""
    pictures = [curves[f"score_{i}"] for i in range(PICTURES) if f"score_{i}" in curves]
    return {
        "area": area(curves["follows"]),
        "jump": step_of_jump(curves["score"]),
        "width": width_of_jump(curves["score"]),
        "picture_jumps": [half_way(curve) for curve in pictures],
        "picture_widths": [width_of_jump(curve) for curve in pictures],
    }


def write_results(path: Path, content: dict) -> None:
    """A line for each list of numbers, so that it can be read and compared."""
    text = json.dumps(rounded(content), indent=1)
    text = re.sub(r"\[[^\[\]{}]*\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n"
    make_folder("experiments", path.parent)
    write_atomically(path, lambda temporary: temporary.write_text(text))


class Results:
    """Of an experiment, as its JSON file has them."""

    def __init__(self, content: dict):
        self.content, self.arms = content, content["arms"]
        self.sampled = content["sampled"]
        self.both = self.arms | self.sampled

    def has(self, names: list[str]) -> bool:
        return all(self.both.get(name, {}).get("runs") for name in names)

    def runs(self, name: str) -> list[dict]:
        """Of an arm, or the measurements of a row: one for each seed."""
        return self.both[name]["runs"]

    def values(self, name: str, number: str) -> list:
        """One for each seed: of those that arms are compared by, or of the end's."""
        return [(run["end"] | run.get("compared", {}))[number] for run in self.runs(name)]

    def knows(self, name: str, number: str) -> bool:
        return all(number in run["end"] | run.get("compared", {}) for run in self.runs(name))

    def by_seed(self, names: list[str], number: str) -> list[list]:
        """For each seed that all of these arms have: the number of each."""
        found = [
            {run["seed"]: run["compared"][number] for run in self.runs(name)} for name in names
        ]
        seeds = [seed for seed in found[0] if all(seed in own for own in found)]
        return [[own[seed] for own in found] for seed in seeds]

    def jumps(self, arm: str) -> list[float]:
        """Infinite where there was none."""
        return [np.inf if x is None else x for x in self.values(arm, "jump")]

    def curves(self, arm: str, name: str) -> list[list[tuple[float, float]]]:
        """Of a number over the steps, one for each seed."""
        found = (curve_of(run["looks"], name) for run in self.runs(arm) if name in run["looks"])
        return [curve for curve in found if curve]

    def first(self, arm: str, name: str) -> list[float]:
        """Of a number at step 0, one for each seed."""
        return [curve[0][1] for curve in self.curves(arm, name)]

    def in_words(
        self, number: str, names: Sequence[str], digits: int = 2, titles: Mapping[str, str] = {}
    ) -> str:
        """Of several arms or rows: the mean over seeds, and the spread."""
        said = (
            f"{titles.get(name, name)} {spoken(self.values(name, number), digits)}"
            for name in names
        )
        return "; ".join(said)

    @property
    def minutes(self) -> float:
        return sum(run["seconds"] for arm in self.both.values() for run in arm["runs"]) / 60


def results_of(experiment: str) -> Results | None:
    """None if it was not run."""
    file = ASSETS / f"{experiment}.json"
    return Results(json.loads(file.read_text())) if file.exists() else None

"""An experiment's JSON file: how runs become one, how it is read, how it judges claims."""

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nanocontrol.plumbing.files import make_folder, write_atomically
from nanocontrol.training.run import read_run

ASSETS = Path(__file__).parents[2] / "assets" / "experiments"
DIGITS = {"jump": 0, "control_gain": 4, "held_out_loss": 4, "base_loss": 4}  # of others 2

Curve = Sequence[tuple[float, float]]  # (step, value), with growing steps

# The score at which the jump is said to happen. 16 scenes without control have 0.24, their true
# pictures 1. A level relative to a variant's own last value would depend on how long it runs.
JUMPED = 0.4
SHORTEST = 0.2  # a score that rises by less has no width

# ------------------------------------------------------------------------------ arithmetic


def area(curve: Curve) -> float:
    """The area under the curve divided by the steps: the mean value over the run."""
    steps, values = np.array(curve, dtype=float).T
    return float(np.trapezoid(values, steps) / (steps[-1] - steps[0]))


def step_at(curve: Curve, level: float) -> float | None:
    """The first step at which the curve reaches the level, on straight lines between its points;
    None if it never does."""
    if curve[0][1] >= level:
        return float(curve[0][0])
    for (before, low), (after, high) in zip(curve, curve[1:]):
        if high >= level:
            return float(before + (after - before) * (level - low) / (high - low))
    return None


def half_way(curve: Curve) -> float | None:
    """The step at half of a curve's way from its first to its last value. For the score of a single
    picture, which without control may be above or far below the fixed level."""
    return step_at(curve, (curve[0][1] + curve[-1][1]) / 2)


def width_of_jump(curve: Curve) -> float | None:
    """The steps from a quarter to three quarters of the way from the first to the last value: to
    the first time that three quarters are reached, from the last time before it that the curve was
    at a quarter. None if the whole way is too short."""
    begin, end = curve[0][1], curve[-1][1]
    if end - begin < SHORTEST:
        return None
    quarter, three_quarters = begin + (end - begin) / 4, end - (end - begin) / 4
    top = step_at(curve, three_quarters)
    assert top is not None  # the last value is above it
    backwards = [(-step, -value) for step, value in reversed(curve) if step < top]
    bottom = step_at([(-top, -three_quarters), *backwards], -quarter)
    assert bottom is not None
    return top + bottom


def all_below(*groups: Sequence[float]) -> bool:
    """Whether every value of each group is below every value of the next one. (Two groups of three
    seeds that do not differ are in one of the two orders in one case of ten.)"""
    return all(max(a) < min(b) for a, b in zip(groups, groups[1:]))


def spoken(values: Sequence[float | None], digits: int = 2) -> str:
    """The mean over seeds, the lowest and the highest: "0.55 (0.52 to 0.58)". Where some have no
    value: "none" or "none in 1 of 3"."""
    known = [value for value in values if value is not None]
    if not known:
        return "none"
    text = f"{np.mean(known):z.{digits}f}"  # z: no -0.00
    if len(known) > 1:
        text += f" ({min(known):z.{digits}f} to {max(known):z.{digits}f})"
    missing = len(values) - len(known)
    return text + (f", none in {missing} of {len(values)}" if missing else "")


# ------------------------------------------------------------------------------ the JSON file


def rounded(x: Any) -> Any:
    """Numbers within JSON, to five digits."""
    if isinstance(x, float):
        return float(f"{x:.5g}")
    if isinstance(x, dict):
        return {key: rounded(value) for key, value in x.items()}
    return [rounded(item) for item in x] if isinstance(x, list) else x


def run_as_json(folder: Path, afterwards: Path | None = None) -> dict:
    """A finished run: its evaluations as columns, the losses as means between two of them.
    afterwards: a file with more numbers of its end."""
    run = read_run(folder)
    end = json.loads(afterwards.read_text()) if afterwards else {}
    evaluations = [entry for entry in run.log if not entry.keys() & {"loss", "skipped"}]
    columns = {name: [one.get(name) for one in evaluations] for name in evaluations[0]}
    steps = columns["step"]
    losses = [
        [loss for at, loss in run.measured("loss") if before < at <= step]
        for before, step in zip([0, *steps], steps)
    ]
    columns["loss"] = [float(np.mean(some)) if some else None for some in losses]
    return {
        "seed": run.settings["seed"],
        "seconds": run.metrics["seconds"],
        **json.loads((folder / "origin.json").read_text()),
        "compared": compared({name: curve_of(columns, name) for name in columns}),
        "end": run.metrics | end,
        "looks": columns,
    }


def curve_of(columns: dict[str, list], name: str) -> list[tuple[float, float]]:
    return [(s, x) for s, x in zip(columns["step"], columns[name]) if x is not None]


def compared(curves: Mapping[str, Curve]) -> dict[str, Any]:
    """The numbers that variants are compared by: the area under `follows`, the step of the jump of
    the score, and how wide the jump is, in the mean and in each picture."""
    pictures = [curves[f"score_{i}"] for i in range(16) if f"score_{i}" in curves]
    return {
        "area": area(curves["follows"]),
        "jump": step_at(curves["score"], JUMPED),
        "width": width_of_jump(curves["score"]),
        "picture_jumps": [half_way(curve) for curve in pictures],
        "picture_widths": [width_of_jump(curve) for curve in pictures],
    }


def sections_in(file: Path) -> dict[str, dict]:
    """The results on each base, by the SHA-256 of its file; the newest base is last. Empty if there
    is no file."""
    return json.loads(file.read_text()) if file.exists() else {}


def write_results(path: Path, sections: Mapping[str, dict]) -> None:
    """Each list of numbers takes one line, so that files can be read and compared. Sections are not
    indented: with a new one the lines of the others stay as they are."""
    texts = (f'"{base}": {json.dumps(rounded(x), indent=1)}' for base, x in sections.items())
    text = "{\n" + ",\n".join(texts) + "\n}"
    text = re.sub(r"\[[^\[\]{}]*\]", lambda numbers: " ".join(numbers[0].split()), text) + "\n"
    make_folder("experiments", path.parent)
    write_atomically(path, lambda temporary: temporary.write_text(text))


class Results:
    """An experiment's results on one base: a section of its JSON file."""

    def __init__(self, content: dict, base: str = ""):
        self.content, self.base, self.arms = content, base, content["arms"]
        self.sampled = content["sampled"]
        self.both = self.arms | self.sampled

    def has(self, *names: str) -> bool:
        return not names or self.seeds(names) > 0

    def runs(self, name: str) -> list[dict]:
        """One run of a variant, or one measurement of a row, for each seed."""
        return self.both[name]["runs"]

    def seeds(self, names: Iterable[str]) -> int:
        """The number of seeds of the one with the fewest; 0 if not all of these have run."""
        return min((len(self.both.get(n, {}).get("runs", [])) for n in names), default=0)

    def values(self, name: str, number: str) -> list:
        """One value for each seed: of the numbers compared, or of those at the end."""
        return [(run["end"] | run.get("compared", {}))[number] for run in self.runs(name)]

    def knows(self, name: str, number: str) -> bool:
        return all(number in run["end"] | run.get("compared", {}) for run in self.runs(name))

    def by_seed(self, names: list[str], number: str) -> list[list]:
        """For each seed that all of these variants have: the number of each."""
        found = [{r["seed"]: r["compared"][number] for r in self.runs(name)} for name in names]
        seeds = [seed for seed in found[0] if all(seed in own for own in found)]
        return [[own[seed] for own in found] for seed in seeds]

    def jumps(self, name: str) -> list[float]:
        """The step of the jump for each seed, infinite where there was none."""
        return with_infinity(self.values(name, "jump"))

    def curves(self, variant: str, name: str) -> list[list[tuple[float, float]]]:
        """A number over the steps, one curve for each seed."""
        found = (curve_of(run["looks"], name) for run in self.runs(variant) if name in run["looks"])
        return [curve for curve in found if curve]

    def first(self, variant: str, name: str) -> list[float]:
        """A number at step 0, for each seed."""
        return [curve[0][1] for curve in self.curves(variant, name)]

    def spoken(self, name: str, number: str) -> str:
        """The mean over seeds and the range; nothing where a run does not have this number."""
        known = self.knows(name, number)
        return spoken(self.values(name, number), DIGITS.get(number, 2)) if known else ""

    def in_words(self, number: str, names: Sequence[str], titles: Mapping[str, str] = {}) -> str:
        """A number of several variants or rows."""
        return "; ".join(f"{titles.get(name, name)} {self.spoken(name, number)}" for name in names)

    @property
    def minutes(self) -> float:
        return sum(run["seconds"] for one in self.both.values() for run in one["runs"]) / 60


def results_in(file: Path) -> dict[str, Results]:
    """On each base on which the experiment was run, the newest last."""
    return {base: Results(content, base) for base, content in sections_in(file).items()}


def results_of(experiment: str) -> dict[str, Results]:
    return results_in(ASSETS / f"{experiment}.json")


# ---------------------------------------------------------------------------------- verdicts


def verdict(holds: bool) -> str:
    return "reproduced" if holds else "not reproduced"


def with_infinity(values: Sequence[float | None]) -> list[float]:
    """A jump that never came is later than any other."""
    return [math.inf if value is None else value for value in values]


def listed(
    label: str, number: str, names: Sequence[str], titles: Mapping[str, str] = {}
) -> tuple[str, list[tuple[str, str]]]:
    """A number of several variants or rows, for `comparison`: "label: a {}; b {}", and the
    samples."""
    places = "; ".join(f"{titles.get(name, name)} {{}}" for name in names)
    return f"{label}: {places}", of(number, *names)


def of(number: str, *names: str) -> list[tuple[str, str]]:
    """This number of these variants or rows, for `comparison`."""
    return [(name, number) for name in names]

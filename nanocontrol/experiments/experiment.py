"""What the file of an experiment says."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import NamedTuple

from nanocontrol.experiments.afterwards import Afterwards, Numbers
from nanocontrol.experiments.arm import Arm
from nanocontrol.experiments.results import Results
from nanocontrol.plumbing.errors import InputError

NAMES = (
    *("sudden_convergence", "zero_convolutions", "cause", "rule", "encoder_at_size"),
    *("middle", "unlocked", "data_size", "prompt_dropout", "prompt_settings", "concatenation"),
    *("limits", "nine_conditions"),
)
ROWS = {
    "follows": "share of things that are right",
    "score": "score of the condition",
    "control_gain": "control gain",
    "loss": "loss in training",
}


class Claim(NamedTuple):
    """A row of the table. judge: what we found, with its spread, and the verdict; it is asked only
    when what it compares has run."""

    claim: str
    evidence: str  # of the paper, or of who claims it, and where it stands; or "none ..."
    judge: Callable[[Results], tuple[str, str]]
    compares: tuple[str, ...] = ()  # the names of these arms and rows; if none, of all

    def judged(self, results: Results) -> tuple[str, str]:
        """What nobody claims cannot be reproduced: it is seen here, or not."""
        ours, verdict = self.judge(results)
        claimed = not self.evidence.startswith("none")
        return ours, verdict if claimed else verdict.replace("reproduced", "seen")


class Panel(NamedTuple):
    """A column of the plot: the curves of some arms, against steps or "pairs" seen."""

    title: str
    arms: tuple[str, ...]
    against: str = "step"


class Chart(NamedTuple):
    """A part of the plot: the last value of some numbers, for each of these arms or rows."""

    title: str
    names: tuple[str, ...]
    numbers: tuple[str, ...]
    joined: bool = False  # by a line, where the names are a quantity that grows


class Row(NamedTuple):
    """What takes no training: pictures made with networks that are there, and what they show."""

    name: str
    measure: Callable[[int, int], Numbers]  # of so many scenes, with the noise of this seed
    pictures: float = 1  # that it makes of each scene: how long it takes


@dataclass(frozen=True)
class Experiment:
    name: str
    expected: str  # written before the first run
    arms: tuple[Arm, ...]
    claims: tuple[Claim, ...]
    panels: tuple[Panel, ...] = ()
    rows: Mapping[str, str] = field(default_factory=lambda: ROWS)  # of the plot: number, title
    quick: tuple[str, ...] = ()  # the two arms of --quick
    once: Callable[[], dict] | None = None  # a table that takes no training: `head` and `rows`
    afterwards: Afterwards | None = None  # what else is measured of each run, when it is done
    sampled: tuple[Row, ...] = ()
    numbers: Mapping[str, str] = field(default_factory=dict)  # of afterwards or sampled: titles
    charts: tuple[Chart, ...] = ()
    titles: Mapping[str, str] = field(default_factory=dict)  # of arms that are others' elsewhere
    front: tuple[str, ...] = ()  # these rows of the first panel are a small plot of their own

    @property
    def names(self) -> list[str]:
        """Of all arms and rows."""
        return [arm.name for arm in self.arms] + [row.name for row in self.sampled]

    def title(self, name: str) -> str:
        return self.titles.get(name, name)

    def row(self, name: str) -> Row:
        return next(row for row in self.sampled if row.name == name)

    def arm(self, name: str) -> Arm:
        return next(arm for arm in self.arms if arm.name == name)


def experiment_of(name: str) -> Experiment:
    if name not in NAMES:
        raise InputError(f"no experiment is called {name}: expected one of {', '.join(NAMES)}")
    return import_module(f"nanocontrol.experiments.{name}").EXPERIMENT

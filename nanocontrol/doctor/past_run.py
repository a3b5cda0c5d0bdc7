"""A run of train.py, as the diagnosis reads it: settings, numbers, and some of its pairs."""

from argparse import ArgumentTypeError
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from nanocontrol import InputError
from nanocontrol.formats.tensors import open_tensors
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.data import Source, all_pairs, size_of_base
from nanocontrol.plumbing.errors import blame
from nanocontrol.plumbing.flags import at_least, positive, seed, width_and_height
from nanocontrol.training.check import evenly_spaced
from nanocontrol.training.measure import step_of_jump
from nanocontrol.training.pairs import Folder, Pairs
from nanocontrol.training.run import Run, read_run

NEEDED = {"base", "steps", "lr", "prediction", "seed"}
# Readers of the settings that the diagnosis uses, as train.Settings has them. It does not import
# train.py: in the folder where it is called, that may be somebody's own program.
READERS: dict[str, Callable[[str], Any]] = {
    **{"base": str, "init_control": str, "size": width_and_height, "lr": positive, "seed": seed},
    **{"steps": at_least(1), "scenes": at_least(1)},
    "prediction": {"auto": "auto", "eps": "eps", "v": "v"}.get,
    "condition": {name: name for name in CONDITIONS}.get,
}
# The control gain, as a share of the loss, that shows a ControlNet follows if it is measured on 8
# pairs. On fewer pairs more is required, because chance alone gives more.
FOLLOWS, MEASURED = 0.05, 8


@dataclass(frozen=True)
class PastRun(Run):
    """A run, and the conclusions from its numbers."""

    held_out: int = MEASURED  # pairs on which the log's numbers were measured

    @property
    def source(self) -> Source:
        """The settings that determine the run's pairs."""
        return Source.of(self.settings)

    @property
    def gain(self) -> tuple[float, float] | None:
        """The last control gain and held-out loss; None if they were not measured."""
        for entry in (self.metrics, *reversed(self.log)):
            gain, loss = entry.get("control_gain"), entry.get("held_out_loss")
            if gain is not None and loss is not None:
                return gain, loss
        return None

    @property
    def enough(self) -> float:
        """The control gain, as a share of the loss, above which the run surely follows."""
        return FOLLOWS * MEASURED / self.held_out

    @property
    def follows(self) -> bool:
        if self.gain is None:  # there is a single held-out pair; use the score if there is one
            return bool(self.measured("score")) and step_of_jump(self.measured) is not None
        return self.gain[0] > self.enough * self.gain[1]

    @property
    def way(self) -> float:
        """About how far AdamW can have moved a weight: by the learning rate per step."""
        return self.settings["lr"] * self.steps


class SomePairs(NamedTuple):
    """Some of a run's pairs, as training sees them."""

    images: list[Tensor]  # [3, H, W] in [-1, 1] each
    hints: list[Tensor]  # [3, H, W] in [0, 1] each
    prompts: list[str]


def read_past_run(folder: Path) -> PastRun:
    """The run in a folder. Raises InputError if it is not the run of a ControlNet, or if a setting
    has an impossible value."""
    run = read_run(folder)
    if missing := sorted(NEEDED - run.settings.keys()):
        found = f"{folder} is not a ControlNet's run: its settings.json has no {missing[0]}"
        raise InputError(f"{found}; expected a folder written by train.py")
    for name, value in run.settings.items():
        if name in ("data", *READERS) and not can_be(name, value):
            found = f"{name} = {value!r} in its settings.json"
            raise InputError(f"{folder}: {found}; expected a value of that flag of train.py")
    return PastRun(**vars(run))


def can_be(name: str, value: Any) -> bool:
    """Whether the setting's flag can give this value from a file."""
    if value is None:
        return name in ("data", "size", "condition", "init_control")
    if name == "data":
        return isinstance(value, list) and all(isinstance(folder, str) for folder in value)
    try:
        return READERS[name](str(value)) == value
    except (ValueError, ArgumentTypeError):
        return False


def base_size(past: PastRun) -> int:
    return size_of_base(past.settings["base"])


def pairs_of_run(past: PastRun) -> Pairs:
    """All pairs of the run's folders, held-out ones included, or the scenes it trains on."""
    with blame("--data"):
        pairs = all_pairs(past.source, base_size(past))
        if isinstance(pairs, Folder) and pairs.wrong:
            raise InputError(pairs.wrong[0])
        return pairs


def some_pairs(pairs: Pairs, most: int) -> SomePairs:
    """At most `most` pairs: evenly spaced ones of a folder, or the first drawn scenes."""
    n = len(pairs)
    numbers = evenly_spaced(n, most) if isinstance(pairs, Folder) else range(min(n, most))
    with blame("--data"):
        some = [pairs[i] for i in numbers]
    images, hints, prompts = zip(*some)
    return SomePairs([*images], [*hints], [*prompts])


def condition_said(past: PastRun) -> str | None:
    """The condition that the run names for its hints; None if it names none."""
    before = past.settings.get("init_control")
    if past.source.condition or not before:
        return past.source.condition
    with blame("--init-control"):
        return open_tensors(before).metadata.get("condition")

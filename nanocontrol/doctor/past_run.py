"""A run of train.py, as the diagnosis reads it: settings, numbers, and some of its pairs."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from nanocontrol import InputError
from nanocontrol.formats.tensors import open_tensors
from nanocontrol.nano.data import Source, all_pairs
from nanocontrol.plumbing.errors import blame
from nanocontrol.training.check import evenly_spaced
from nanocontrol.training.measure import step_of_jump
from nanocontrol.training.pairs import Folder, Pairs
from nanocontrol.training.run import Run, read_run

NEEDED = {"base", "steps", "lr", "prediction", "seed"}
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
    """The run in a folder. Raises InputError if it is not the run of a ControlNet."""
    run = read_run(folder)
    if not NEEDED <= run.settings.keys():
        raise InputError(
            f"{folder} is not a ControlNet's run: its settings.json has no "
            f"{min(NEEDED - run.settings.keys())}; expected a folder written by train.py"
        )
    return PastRun(**vars(run))


def base_size(past: PastRun) -> int:
    with blame("--base"):
        return open_tensors(past.settings["base"]).metadata.get("size", 512)


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

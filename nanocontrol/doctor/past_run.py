"""A run that train.py left: its settings and numbers, and some of its pairs."""

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
# Control gain, in shares of the loss, of a ControlNet that follows, measured on 8 pairs; on fewer
# there is more by chance.
FOLLOWS, MEASURED = 0.05, 8


@dataclass(frozen=True)
class PastRun(Run):
    """A run, and how much its numbers tell."""

    held_out: int = MEASURED  # pairs that the log's numbers are of

    @property
    def source(self) -> Source:
        """Which pairs it has."""
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
        """Of control gain, in shares of the loss, to be sure that it follows."""
        return FOLLOWS * MEASURED / self.held_out

    @property
    def follows(self) -> bool:
        if self.gain is None:  # of one held-out pair alone; a score may tell
            return bool(self.measured("score")) and step_of_jump(self.measured) is not None
        return self.gain[0] > self.enough * self.gain[1]

    @property
    def way(self) -> float:
        """About how far AdamW can have moved a weight: by the learning rate at every step."""
        return self.settings["lr"] * self.steps


class SomePairs(NamedTuple):
    """Some of a run's pairs, as training sees them."""

    images: list[Tensor]  # [3, H, W] in [-1, 1] each
    hints: list[Tensor]  # [3, H, W] in [0, 1] each
    prompts: list[str]


def read_past_run(folder: Path) -> PastRun:
    """Raises InputError if the folder is not the one of a ControlNet's run."""
    run = read_run(folder)
    if not NEEDED <= run.settings.keys():
        raise InputError(
            f"{folder} is not a ControlNet's run: its settings.json has no "
            f"{min(NEEDED - run.settings.keys())}; expected a folder that train.py left"
        )
    return PastRun(**vars(run))


def base_size(past: PastRun) -> int:
    with blame("--base"):
        return open_tensors(past.settings["base"]).metadata.get("size", 512)


def pairs_of_run(past: PastRun) -> Pairs:
    """All of its pairs, the held-out ones too."""
    with blame("--data"):
        pairs = all_pairs(past.source, base_size(past))
        if isinstance(pairs, Folder) and pairs.wrong:
            raise InputError(pairs.wrong[0])
        return pairs


def some_pairs(pairs: Pairs, most: int) -> SomePairs:
    """At so many of them, from everywhere; of drawn scenes the first."""
    n = len(pairs)
    numbers = evenly_spaced(n, most) if isinstance(pairs, Folder) else range(min(n, most))
    with blame("--data"):
        some = [pairs[i] for i in numbers]
    images, hints, prompts = zip(*some)
    return SomePairs([*images], [*hints], [*prompts])


def condition_said(past: PastRun) -> str | None:
    """What the run says that its hints are; None: nothing."""
    before = past.settings.get("init_control")
    if past.source.condition or not before:
        return past.source.condition
    with blame("--init-control"):
        return open_tensors(before).metadata.get("condition")

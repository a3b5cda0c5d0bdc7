"""A run that train.py left: its settings and numbers, and some of its pairs."""

import json
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from nanocontrol import InputError
from nanocontrol.formats.tensors import open_tensors
from nanocontrol.nano.scenes import Scenes
from nanocontrol.plumbing.errors import blame
from nanocontrol.training.check import spread
from nanocontrol.training.measure import step_of_jump
from nanocontrol.training.pairs import Folder, Pairs, View
from nanocontrol.training.run import measured

NEEDED = {
    "base",
    "data",
    "hints",
    "size",
    "condition",
    "init_control",
    "steps",
    "lr",
    "prediction",
    "seed",
}
# Control gain, in shares of the loss, of a ControlNet that follows, measured on 8 pairs; on fewer
# there is more by chance.
FOLLOWS, MEASURED = 0.05, 8


class Run(NamedTuple):
    """What a training left."""

    folder: Path
    settings: dict[str, Any]
    log: list[dict[str, Any]]
    metrics: dict[str, Any]  # empty: it did not come to its end
    held_out: int = MEASURED  # pairs that the log's numbers are of

    def measured(self, name: str) -> list[tuple[int, float]]:
        return measured(self.log, name)

    @property
    def steps(self) -> int:
        """How many were done."""
        return max((entry["step"] for entry in self.log), default=0)

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


class Seen(NamedTuple):
    """Some of a run's pairs, as training sees them."""

    images: list[Tensor]  # [3, H, W] in [-1, 1] each
    hints: list[Tensor]  # [3, H, W] in [0, 1] each
    prompts: list[str]


def read_run(folder: Path) -> Run:
    settings = read_json(folder / "settings.json")
    if not NEEDED <= settings.keys():
        raise InputError(
            f"{folder} is not a ControlNet's run: its settings.json has no "
            f"{min(NEEDED - settings.keys())}; expected a folder that train.py left"
        )
    log = []
    try:
        lines = (folder / "log.jsonl").read_text().splitlines()
        log = [
            json.loads(line) for line in lines if line.endswith("}")
        ]  # (the last may be cut off)
        if not all("step" in entry for entry in log):
            raise ValueError("entries without a step")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'log.jsonl'} cannot be read ({error})") from None
    ended = (folder / "metrics.json").exists()
    return Run(folder, settings, log, read_json(folder / "metrics.json") if ended else {})


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{file} is missing or damaged; expected a folder that train.py left")
    return content


def size_of(run: Run) -> tuple[int, int]:
    """Width and height of the training's pictures."""
    if run.settings["size"]:
        width, height = run.settings["size"].split("x")
        return int(width), int(height)
    return (base_size(run),) * 2


def base_size(run: Run) -> int:
    with blame("--base"):
        return open_tensors(run.settings["base"]).metadata.get("size", 512)


def pairs_of(run: Run) -> Pairs:
    """All of its pairs, the held-out ones too."""
    if not run.settings["data"]:
        return Scenes(run.settings["condition"], size=size_of(run)[0])
    with blame("--data"):
        view = View(size_of(run), hints=run.settings["hints"], seed=run.settings["seed"])
        folder = Folder(map(Path, run.settings["data"]), view)
        if folder.wrong:
            raise InputError(folder.wrong[0])
    return folder


def look(pairs: Pairs, most: int) -> Seen:
    """At so many of them, from everywhere; of drawn scenes the first."""
    numbers = spread(len(pairs), most) if isinstance(pairs, Folder) else range(most)
    with blame("--data"):
        some = [pairs[i] for i in numbers]
    images, hints, prompts = zip(*some)
    return Seen([*images], [*hints], [*prompts])


def condition_of(run: Run) -> str | None:
    """What the run says that its hints are; None: nothing."""
    if run.settings["condition"] or not run.settings["init_control"]:
        return run.settings["condition"]
    with blame("--init-control"):
        return open_tensors(run.settings["init_control"]).metadata.get("condition")

"""The pairs that a run trains and is evaluated on, as its settings determine them."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

from nanocontrol.formats.tensors import open_tensors
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.nano.scores import edge_scores, scorer
from nanocontrol.nano.world import SIZES
from nanocontrol.plumbing.errors import InputError, blame
from nanocontrol.training.check import usable
from nanocontrol.training.known import Known
from nanocontrol.training.measure import Scores, read_own
from nanocontrol.training.moved import check_moved
from nanocontrol.training.pairs import Folder, Pairs, View, split
from nanocontrol.training.processes import Processes
from nanocontrol.training.settings import check_together
from nanocontrol.training.start import check_new

MEASURED = 32  # drawn scenes that are held out
ROOM = 10**9  # bytes of pictures that stay in memory from their check until they are encoded


class Source(NamedTuple):
    """The settings of train.py that determine a run's pairs."""

    data: list[str] | None = None  # folders; None: drawn scenes
    hints: str | None = None
    size: str | None = None
    crop: str = "middle"
    mirror: bool = False
    skip_wrong: bool = False
    out: str = ""
    condition: str | None = None
    scenes: int = HELD_OUT
    seed: int = 0
    cache: str = ""
    validation: list[list[str]] | None = None  # files of hints, and prompts

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> Self:
        """The source named by a run's settings. A setting that an earlier version lacked has its
        default."""
        return cls(**{name: settings[name] for name in cls._fields if name in settings})

    def view(self, base_size: int) -> View:
        """The view of the folders' pictures. base_size: the base's picture size in pixels."""
        width, height = self.size.split("x") if self.size else (base_size, base_size)
        cache = Path(self.cache or "cache")
        return View((int(width), int(height)), self.crop, self.hints, self.seed, cache)

    def read(
        self, base: str, steps: int, n: int, processes: Processes | None = None
    ) -> tuple[Pairs, Pairs, Scores | None]:
        """The training pairs, the held-out pairs, and a function that scores pictures of the first
        held-out pairs. The function is None if the condition cannot be measured in pictures.

        base: its file; steps, n: the training's steps, and pairs per step. Notes are printed.
        Raises InputError for pairs that cannot be used.
        """
        size = size_of_base(base)
        if not self.data and size not in SIZES:
            drawn = f"scenes are drawn at {', '.join(map(str, SIZES))}: expected --data DIR"
            raise InputError(f"--base: {base} is for pictures of {size} pixels, but {drawn}")
        own = read_own(self.validation, self.view(size).size)
        with blame("--data"):
            pairs = all_pairs(self, size)
            if isinstance(pairs, Folder):
                pairs.known = Known(Path(self.cache) if self.cache else None, ROOM)
                run = Path(self.out) if self.out else None
                pairs = usable(pairs, steps, n, self.skip_wrong, run, processes)
                if not len(pairs):  # on this machine: the first process has some
                    raise InputError(pairs.wrong[0])
                if run:
                    check_moved(run, {"data": self.data, "hints": self.hints}, pairs)
            trained, kept, scores = divided(self, pairs)
            kept.own = own
            return trained, kept, scores


def size_of_base(base: str) -> int:
    """The width and height of the pictures that a base model was trained on."""
    with blame("--base"):
        return open_tensors(base).metadata.get("size", 512)


def check_training_flags(given: Mapping[str, Any]) -> None:
    """Raises InputError for flags of a new run that contradict each other, or name an old run."""
    check_together(given)
    check_new(given.get("out"))
    for name in ("hints", "size", "crop", "mirror", "skip-wrong"):
        if name.replace("-", "_") in given and "data" not in given:
            raise InputError(f"--{name} is for your own pictures: expected --data DIR")
    if "data" in given and "base" not in given:
        note = "--data without --base: training a ControlNet for nano, the bundled small model"
        print(note, file=sys.stderr)


def all_pairs(source: Source, base_size: int) -> Folder | Scenes:
    """All pairs of a run's folders, or the drawn scenes that it trains on."""
    if source.data:
        return Folder(map(Path, source.data), source.view(base_size))
    return Scenes(source.condition, n=source.scenes, size=base_size)


def divided(source: Source, pairs: Folder | Scenes) -> tuple[Pairs, Pairs, Scores | None]:
    """The training pairs, the held-out pairs, and the scoring function, as in `Source.read`."""
    if isinstance(pairs, Scenes):
        others = Scenes(pairs.condition, HELD_OUT, n=MEASURED, size=pairs.size)
        return pairs, others, scorer(str(pairs.condition), others)
    trained, kept = split(pairs, source.seed)
    scores = edge_scores(kept) if source.hints == "canny" else None
    return trained.mirrored() if source.mirror else trained, kept, scores

"""Training pairs of a picture and its hint. The user's own are all cropped to one size."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.pictures import cut_out, read_image
from nanocontrol.training.folders import Entry, ignored_in, read_folder
from nanocontrol.training.loader import generator_of, in_unit

Pair = tuple[Tensor, Tensor, str]  # image, hint, prompt
MIDDLE = 0.5, 0.5
# Third numbers for `generator_of`, so that these draws differ from those of steps and epochs.
CROP, THRESHOLDS, HELD_OUT, CAPTION = 3, 4, 5, 6


class Pairs(Dataset, ABC):
    """A data set of pairs: drawn scenes, or folders."""

    def __init__(self) -> None:
        self.kept: dict[int, Tensor] = {}  # cached hints
        self.listed: list[Entry] = []  # those of the whole, of which this may be a part

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, i: Any) -> Pair: ...

    @abstractmethod
    def picture(self, i: int) -> tuple[Tensor, str]:
        """Image and prompt, without computing the hint."""

    @abstractmethod
    def make_hint(self, i: int) -> Tensor: ...

    @abstractmethod
    def prompt(self, i: int) -> str: ...

    @abstractmethod
    def fingerprint(self, i: int) -> bytes:
        """Bytes that change whenever the image or a caption does."""

    @property
    def changes(self) -> bool:
        """Whether a pair differs from one time that it is seen to the next."""
        return False

    @property
    def moves(self) -> bool:
        """Whether its image does, so that the cache cannot have it."""
        return False

    def captions(self, i: int) -> list[str]:
        """The captions of which one is drawn whenever training sees the pair."""
        return [self.prompt(i)]

    def drawn(self, i: int, seen: int) -> int:
        """The number of the caption that is drawn for the n-th pair that training sees."""
        return 0

    def edges(self, i: int) -> str:
        """How hint i is made if it consists of edges of its image, else "". The cache on disk keeps
        such hints, and this text changes whenever the edges of an unchanged image do."""
        return ""

    def digest(self) -> str:
        """A hash of the data that the settings do not determine. It must not change on resume."""
        return ""

    def hint(self, i: int) -> Tensor:
        """The hint for `encoded`: as `make_hint` returns it, or a file's bytes [H, W, 3]."""
        return self.kept[i] if i in self.kept else self.keep(i, self.read_hint(i))

    def read_hint(self, i: int) -> Tensor:
        return self.make_hint(i)

    def keep(self, i: int, hint: Tensor) -> Tensor:
        """Cache a hint in memory, up to 400 MB per process -> the hint."""
        if len(self.kept) * hint.nbytes < 400e6:
            self.kept[i] = hint
        return hint


class View(NamedTuple):
    """How training sees the pictures of folders."""

    size: tuple[int, int]  # width and height of the crops, multiples of 64
    crop: str = "middle"  # or "random": a new place every time
    hints: str | None = None  # "canny": made from the pictures; a folder; None: the pairs' own
    seed: int = 0  # decides random places, thresholds and captions
    cache: Path = Path("cache")  # where pictures are unpacked


class Folder(Pairs):
    """The pairs of one or several folders (folders.py). Item i is

    image [3, H, W] RGB in [-1, 1], hint [3, H, W] in [0, 1], prompt.

    Picture and hint are cropped alike, to the largest part with the view's aspect ratio, and
    resized. Item (i, n) is pair i as the n-th pair that training sees: it determines a random place
    of the crop, and the caption where a pair has several.

    `wrong` has an error line for each folder or pair that cannot be used. `ignored` has the names
    of files that are neither pictures nor captions.
    """

    def __init__(self, folders: Iterable[Path], view: View):
        super().__init__()
        self.view = view
        self.entries: list[Entry] = []
        self.wrong: list[str] = []
        self.ignored: list[str] = []
        for folder, times in Counter(folders).items():
            try:
                form, entries, wrong = read_folder(folder, view.hints, view.cache)
            except InputError as error:
                form, entries, wrong = "", [], [str(error)]
            if form == "parquet" and view.crop == "random":
                wrong = [f"{folder}: --crop random is not for parquet; expected files of pictures"]
            self.ignored += ignored_in(folder) if form == "pictures" else []
            self.entries += entries
            self.wrong += wrong + [f"{folder} is given twice"] * (times > 1)
        self.entries = [entry._replace(number=i) for i, entry in enumerate(self.entries)]
        self.listed = self.entries

    def __len__(self) -> int:
        return len(self.entries)

    def some(self, indices: Iterable[int]) -> Self:
        """A copy with only these pairs."""
        part = copy(self)
        part.entries, part.kept = [self.entries[i] for i in indices], {}
        return part

    def mirrored(self) -> Self:
        """A copy with all pairs, followed by all pairs mirrored."""
        both = self.some(range(len(self)))
        both.entries += [entry._replace(mirrored=True) for entry in self.entries]
        return both

    def __getitem__(self, i: int | tuple[int, int]) -> Pair:
        i, seen = i if isinstance(i, tuple) else (i, None)
        random = self.view.crop == "random"
        place = MIDDLE if seen is None or not random else self.random_place(seen)
        image = self.image(i, place)
        caption = self.captions(i)[0 if seen is None else self.drawn(i, seen)]
        return image * 2 - 1, in_unit(self.hint_at(i, place, image)), caption

    def captions(self, i: int) -> list[str]:
        return [self.entries[i].prompt, *self.entries[i].others]

    def drawn(self, i: int, seen: int) -> int:
        n = len(self.entries[i].others) + 1
        generator = generator_of(self.view.seed, seen, CAPTION)
        return int(torch.randint(n, (), generator=generator)) if n > 1 else 0

    def picture(self, i: int) -> tuple[Tensor, str]:
        return self.image(i, MIDDLE) * 2 - 1, self.entries[i].prompt

    def make_hint(self, i: int) -> Tensor:
        return in_unit(self.read_hint(i))

    def read_hint(self, i: int) -> Tensor:
        return self.hint_at(i, MIDDLE)

    def prompt(self, i: int) -> str:
        return self.entries[i].prompt

    def edges(self, i: int) -> str:
        entry = self.entries[i]
        return "" if entry.hint else f"canny {self.thresholds(entry)}"

    def image(self, i: int, place: tuple[float, float]) -> Tensor:
        """The crop of picture i, [3, H, W] in [0, 1]. Transparent pixels become white."""
        entry = self.entries[i]
        return in_unit(self.cut(entry.picture, "white", place, entry.mirrored))

    def hint_at(self, i: int, place: tuple[float, float], image: Tensor | None = None) -> Tensor:
        """The crop of hint i: a file's bytes [H, W, 3], or edges [3, H, W] of 0 and 1. image: the
        picture's crop, if already read."""
        entry = self.entries[i]
        if entry.hint:
            return self.cut(entry.hint, "black", place, entry.mirrored)
        image = self.image(i, place) if image is None else image
        return canny(image, *self.thresholds(entry))

    def cut(self, file: Any, behind: str, place: tuple[float, float], mirrored: bool) -> Tensor:
        """The crop of a picture, bytes [H, W, 3]."""
        picture = cut_out(read_image(file, behind), self.view.size, place)
        pixels = torch.from_numpy(np.array(picture))
        return pixels.flip(1) if mirrored else pixels

    @property
    def changes(self) -> bool:
        return self.moves or any(entry.others for entry in self.entries)

    @property
    def moves(self) -> bool:
        return self.view.crop == "random"

    def random_place(self, seen: int) -> tuple[float, float]:
        right, down = torch.rand(2, generator=generator_of(self.view.seed, seen, CROP)).tolist()
        return right, down

    def thresholds(self, entry: Entry) -> tuple[int, int]:
        """Canny's thresholds for a picture, random as in the paper. The paper gives no range; this
        one is that of nano's hints."""
        generator = generator_of(self.view.seed, entry.number, THRESHOLDS)
        high = int(torch.randint(100, 300, (), generator=generator))
        return high // 2, high

    def digest(self) -> str:
        listed = [(e.picture.name, e.prompt, *e.others, e.size) for e in self.entries]
        return hashlib.sha256(repr(listed).encode()).hexdigest()

    def fingerprint(self, i: int) -> bytes:
        entry = self.entries[i]
        try:
            digest = hashlib.sha256(entry.picture.read_bytes()).digest()
        except OSError as error:
            raise InputError(f"{entry.picture} cannot be read: {error.strerror}") from None
        others = repr(entry.others) if entry.others else ""
        text = f"{self.view.size} {MIDDLE} {entry.mirrored} {entry.prompt}{others}"
        return digest + text.encode()


def held_out_of(n: int) -> int:
    """The number of pairs, out of n, that are held out for evaluation: a tenth, from two to eight.
    The control gain needs two. With fewer than four pairs, only one is held out."""
    return min(8, max(1 if n < 4 else 2, n // 10))


def split(folder: Folder, seed: int) -> tuple[Folder, Folder]:
    """Pairs to train on, and held-out pairs, chosen by the seed. A single pair serves as both."""
    n = len(folder)
    order = torch.randperm(n, generator=generator_of(seed, 0, HELD_OUT)).tolist()
    kept = held_out_of(n)
    return folder.some(sorted(order[kept:] or order)), folder.some(sorted(order[:kept]))

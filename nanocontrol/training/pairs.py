"""Training pairs of a picture and its hint. The user's own are all cropped to one size."""

import hashlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Container, Hashable, Iterable, Sequence
from copy import copy
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from PIL import Image, ImageChops
from torch import Tensor
from torch.utils.data import Dataset

from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.pictures import PictureFile, cut_out, picture_size, read_image
from nanocontrol.training.batches import generator_of, in_unit
from nanocontrol.training.folders import Entry, check_shapes, ignored_in, read_folder
from nanocontrol.training.forms import File
from nanocontrol.training.known import Facts, Known, OpenedOnce
from nanocontrol.training.store import key_of

Pair = tuple[Tensor, Tensor, str]  # image, hint, prompt
Size = tuple[int, int]  # width and height
Place = tuple[float, float]  # of a crop, right and down, as fractions of the free room
MIDDLE = 0.5, 0.5
# Third numbers for `generator_of`, so that these draws differ from those of steps and epochs.
CROP, THRESHOLDS, HELD_OUT, CAPTION = 3, 4, 5, 6


class Taken(NamedTuple):
    """A pair that was read for the cache."""

    image: Tensor  # [3, H, W] in [-1, 1]
    edges: Tensor | None = None  # packed, where they are the hint
    facts: Facts | None = None  # about the picture's file


class Pairs(Dataset, ABC):
    """A data set of pairs: drawn scenes, or folders. Item (i, n) is pair i as the n-th pair that
    training sees, and item i is the pair for evaluation."""

    moves = False  # whether images differ each time, so that the cache cannot have them

    def __init__(self) -> None:
        self.known = Known()
        self.kept: dict[int, Tensor] = {}  # cached hints
        self.own: tuple[Tensor, list[str]] | None = None  # hints and prompts for evaluation only

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, i: Any) -> Pair: ...

    @abstractmethod
    def captions(self, i: int) -> list[str]:
        """The captions of which one is drawn whenever training sees the pair."""

    @abstractmethod
    def take(self, i: int) -> Taken:
        """Pair i for the cache, read in a reader process."""

    @abstractmethod
    def read_hint(self, i: int, size: Sequence[int] = ()) -> Tensor:
        """See `hint`."""

    @abstractmethod
    def fingerprint(self, i: int) -> bytes:
        """Bytes that change whenever the image does; b"" if its file has to be read first."""

    def image_id(self, i: int) -> Hashable:
        """Equal for pairs of one image."""
        return i

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

    def hint(self, i: int, size: Sequence[int] = ()) -> Tensor:
        """The hint for `encoded`: [3, H, W] in [0, 1], or a file's bytes as from `pixels_of`. size:
        the whole picture's, with which that of a file has to agree; () if unknown."""
        return self.kept[i] if i in self.kept else self.keep(i, self.read_hint(i, size))

    def keep(self, i: int, hint: Tensor) -> Tensor:
        """Cache a hint in memory, up to 400 MB per process -> the hint."""
        if len(self.kept) * hint.nbytes < 400e6:
            self.kept[i] = hint
        return hint


class View(NamedTuple):
    """How training sees the pictures of folders."""

    size: Size  # of the crops, multiples of 64
    crop: str = "middle"  # or "random": a new place every time
    hints: str | None = None  # "canny": made from the pictures; a folder; None: the pairs' own
    seed: int = 0  # decides random places, thresholds and captions
    cache: Path = Path("cache")  # where pictures are unpacked


class Folder(Pairs):
    """The pairs of one or several folders (folders.py). Item i is

    image [3, H, W] RGB in [-1, 1], hint [3, H, W] in [0, 1], prompt.

    Picture and hint are cropped alike, to the largest part with the view's aspect ratio, and
    resized. The n of item (i, n) determines a random place of the crop, and the caption where a
    pair has several.

    `wrong` has an error line for each folder or pair that cannot be used, `refused` those of whole
    folders. `ignored` has the names of files that are neither pictures nor captions. Pictures are
    opened later; until one is checked or used, it may be missing or damaged.
    """

    def __init__(self, folders: Iterable[Path], view: View, known: Known | None = None):
        super().__init__()
        self.view, self.moves = view, view.crop == "random"
        self.known = known or self.known
        self.remembers = False  # whether the index keeps crops
        self.entries: list[Entry] = []
        self.wrong: list[str] = []
        self.refused: list[str] = []
        self.ignored: list[str] = []
        for folder, times in Counter(folders).items():
            try:
                form, entries, wrong = read_folder(folder, view.hints, view.cache)
                if form == "parquet" and view.crop == "random":
                    kinds = "--crop random is not for parquet; expected files of pictures"
                    raise InputError(f"{folder}: {kinds}")
                if times > 1:
                    raise InputError(f"{folder} is given twice")
            except InputError as error:
                self.refused.append(str(error))
                continue
            self.ignored += ignored_in(folder, view.hints) if form == "pictures" else []
            self.entries += entries
            self.wrong += wrong
        self.wrong += self.refused
        self.entries = [entry._replace(number=i) for i, entry in enumerate(self.entries)]
        self.listed = self.entries  # those of the whole, of which a copy may be a part

    def __len__(self) -> int:
        return len(self.entries)

    def some(self, indices: Iterable[int]) -> Self:
        """A copy with only these pairs."""
        part = copy(self)
        part.entries, part.kept = [self.entries[i] for i in indices], {}
        return part

    def without(self, places: Container[str]) -> Self:
        """A copy without the pairs listed in these places (`Entry.where`)."""
        rest = [entry for entry in self.entries if entry.where not in places]
        part = self.some([])
        part.listed = part.entries = [entry._replace(number=i) for i, entry in enumerate(rest)]
        return part

    def mirrored(self) -> Self:
        """A copy with all pairs, followed by all pairs mirrored."""
        both = self.some(range(len(self)))
        both.entries += [entry._replace(mirrored=True) for entry in self.entries]
        return both

    def __getitem__(self, i: int | tuple[int, int]) -> Pair:
        i, seen = i if isinstance(i, tuple) else (i, None)
        place = MIDDLE if seen is None or not self.moves else self.random_place(seen)
        image, size = self.image(i, place)
        caption = self.captions(i)[0 if seen is None else self.drawn(i, seen)]
        return image * 2 - 1, in_unit(self.read_hint(i, size, place, image)), caption

    def captions(self, i: int) -> list[str]:
        return [self.entries[i].prompt, *self.entries[i].others]

    def drawn(self, i: int, seen: int) -> int:
        if not (n := len(self.entries[i].others)):
            return 0  # at once, because this is asked for every pair of every step
        generator = generator_of(self.view.seed, seen, CAPTION)
        return int(torch.randint(n + 1, (), generator=generator))

    def edges(self, i: int) -> str:
        entry = self.entries[i]
        return "" if entry.hint else f"canny {self.thresholds(entry)}"

    def image(self, i: int, place: Place) -> tuple[Tensor, Size]:
        """The crop of picture i, [3, H, W] in [0, 1], and the whole picture's size. Transparent
        pixels become white."""
        entry = self.entries[i]
        pixels, size = self.crop(entry.picture, "white", place)
        return in_unit(pixels.flip(1) if entry.mirrored else pixels), size

    def read_hint(
        self, i: int, size: Sequence[int] = (), place: Place = MIDDLE, image: Tensor | None = None
    ) -> Tensor:
        """The crop of hint i: a file's bytes as from `pixels_of`, or edges [3, H, W] of 0 and 1.
        image: the picture's crop, if already read; size: the whole picture's, () if unknown."""
        entry = self.entries[i]
        if entry.hint is None:
            image = self.image(i, place)[0] if image is None else image
            return canny(image, *self.thresholds(entry))
        pixels, own = self.crop(entry.hint, "black", place)
        check_shapes(entry, size or own, own)
        return pixels.flip(1) if entry.mirrored else pixels

    def crop(self, file: File, behind: str, place: Place) -> tuple[Tensor, Size]:
        """The crop of a picture, bytes as from `pixels_of`, and the whole picture's size."""
        if not self.remembers or place != MIDDLE:
            return cropped(file, behind, self.view.size, place)
        facts, pixels = self.look(file, behind, again=True)
        assert pixels is not None
        key = key_of("crops", facts.content, behind, self.view.size)
        self.known.store.add("crops", key, pixels.expand(-1, -1, 3))
        return pixels, facts.size

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
        digest = hashlib.sha256()
        for entry in self.entries:
            digest.update(entry.text())
        return digest.hexdigest()

    # ------------------------------------------------------------- pictures that are opened once

    def look(self, file: File, behind: str, again: bool = False) -> tuple[Facts, Tensor | None]:
        """Facts about a picture and, if it was decoded or with `again`, its crop from the middle.
        The file is opened if its state is new, and decoded if its content is. behind: the colour
        that replaces transparent pixels; "" if no crop is needed."""
        known, crop = self.known, None
        with known.turn(file):
            facts = known.about(file)
            if facts:
                crop = known.crop(facts.content, behind, self.view.size, saved=again)
            if facts is None or again and crop is None:
                opened = OpenedOnce(file)
                size = picture_size(opened)  # which reads the file
                facts = opened.facts._replace(size=size)
                if again or behind and not known.seen(facts.content):
                    crop, _ = cropped(opened, behind, self.view.size, MIDDLE)
                    known.keep((facts.content, behind, self.view.size), crop)
                known.learn(facts)
            return facts, crop

    def fingerprint(self, i: int) -> bytes:
        entry = self.entries[i]
        how = f"{self.view.size} {MIDDLE} {entry.mirrored}".encode()
        facts = self.known.about(entry.picture)
        return facts.content + how if facts else b""

    def image_id(self, i: int) -> Hashable:
        return self.entries[i].picture, self.entries[i].mirrored

    def take(self, i: int) -> Taken:
        entry = self.entries[i]
        facts, pixels = self.look(entry.picture, "white", again=True)
        assert pixels is not None
        image = in_unit(pixels.flip(1) if entry.mirrored else pixels)
        edges = None if entry.hint else packed(canny(image, *self.thresholds(entry)))
        return Taken(image * 2 - 1, edges, facts)


def cropped(file: PictureFile, behind: str, size: Size, place: Place) -> tuple[Tensor, Size]:
    """The crop of a picture at a place, as from `pixels_of`, and the whole picture's size."""
    picture = read_image(file, behind)
    return pixels_of(cut_out(picture, size, place)), picture.size


def pixels_of(image: Image.Image) -> Tensor:
    """An RGB picture's bytes: [H, W, 3] or, if the channels are equal, [H, W, 1]. Most hints are
    grey, so reader processes pass on a third of the bytes."""
    few = image.resize((8, 8), Image.Resampling.NEAREST)  # enough for most coloured pictures
    for part in (few, image):
        red, *others = part.split()
        if any(ImageChops.difference(red, other).getbbox() for other in others):
            return torch.from_numpy(np.array(image))
    return torch.from_numpy(np.array(red))[..., None]


def packed(edges: Tensor) -> Tensor:
    """Edges [3, H, W] of zeros and ones, in equal channels -> a bit per pixel, [H, W / 8] bytes."""
    return torch.from_numpy(np.packbits(edges[0].bool().numpy(), axis=-1))


def unpacked(bits: Tensor) -> Tensor:
    """Packed edges -> [H, W, 1], bytes of 0 and 255."""
    return torch.from_numpy(np.unpackbits(bits.numpy(), axis=-1) * 255)[..., None]


def held_out_of(n: int) -> int:
    """The number of pairs, out of n, that are held out for evaluation: a tenth, from two to eight.
    The control gain needs two. With fewer than four pairs, only one is held out."""
    return min(8, max(1 if n < 4 else 2, n // 10))


def held_out_first(n: int, seed: int) -> Tensor:
    """The numbers of n pairs in an order that the seed determines."""
    return torch.randperm(n, generator=generator_of(seed, 0, HELD_OUT))


def split(folder: Folder, seed: int) -> tuple[Folder, Folder]:
    """Pairs to train on, and held-out pairs, chosen by the seed. A single pair serves as both."""
    order, kept = held_out_first(len(folder), seed), held_out_of(len(folder))
    rest = order[kept:] if len(folder) > 1 else order
    trained, held_out = (folder.some(some.sort().values.tolist()) for some in (rest, order[:kept]))
    held_out.remembers = True
    return trained, held_out

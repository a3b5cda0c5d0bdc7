"""Pairs of a picture and its hint to learn from: a folder of the user's own."""

import hashlib
import json
from abc import ABC, abstractmethod
from copy import copy
from pathlib import Path
from typing import Self

from torch import Tensor
from torch.utils.data import Dataset
from tqdm import tqdm

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.pictures import picture_size, read_picture

Pair = tuple[Tensor, Tensor, str]  # image, hint, prompt


class Pairs(Dataset, ABC):
    """A data set of pairs: drawn scenes, or a folder."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, i: int) -> Pair: ...

    @abstractmethod
    def picture(self, i: int) -> tuple[Tensor, str]:
        """Image and prompt, without the work for the hint."""

    @abstractmethod
    def hint(self, i: int) -> Tensor: ...

    @abstractmethod
    def fingerprint(self, i: int) -> bytes:
        """What changes whenever the image or the prompt does."""


# Files that list pairs, and what their entries call the picture, the hint and the prompt.
LISTS = {
    "prompt.json": (["target"], ["source"], ["prompt"]),  # Fill50K, as published
    "metadata.jsonl": (  # an image folder, as diffusers' trainer takes it
        ["file_name", "image", "image_file_name"],
        ["conditioning_image", "conditioning_image_file_name"],
        ["text", "prompt"],
    ),
}


def first_of(entry: dict, names: list[str]) -> str:
    """The entry's text under the first of these names that it has."""
    name = next((name for name in names if name in entry), names[0])
    if not isinstance(entry[name], str):
        raise TypeError(name)
    return entry[name]


class Folder(Pairs):
    """A folder with a list of pairs, `prompt.json` or `metadata.jsonl`: one JSON object a line,
    paths relative to the folder. Items as in `Scenes`.

    Pictures and hints are all of one size, both sides multiples of 64.
    Raises InputError, naming the file and line, for anything else.
    """

    def __init__(self, folder: Path):
        lists = [folder / name for name in LISTS if (folder / name).is_file()]
        if not lists:
            raise InputError(f"{folder}: expected a folder with {' or '.join(LISTS)}")
        self.size: tuple[int, int] | None = None
        self.pairs: list[tuple[Path, Path, str]] = []
        try:
            lines = lists[0].read_text(encoding="utf-8-sig").split("\n")
        except (OSError, ValueError) as error:
            raise InputError(f"{lists[0]} cannot be read as text ({error})") from None
        for number, line in enumerate(tqdm(lines, "checking pairs", leave=False), 1):
            if line.strip():
                self.pairs.append(self.check(lists[0], number, line))
        if not self.pairs:
            raise InputError(f"{lists[0]} lists no pairs: expected a JSON object on each line")

    def check(self, file: Path, number: int, line: str) -> tuple[Path, Path, str]:
        """One line of the list -> picture, hint, prompt. Only the pictures' headers are read."""
        where = f"{file}, line {number}"
        names = LISTS[file.name]
        try:
            entry = json.loads(line)
            target, source, prompt = (first_of(entry, ns) for ns in names)
            paths = file.parent / target, file.parent / source
        except (ValueError, TypeError, KeyError):  # no JSON, no object, no text, a name missing
            keys = ", ".join(ns[0] for ns in names)
            what = f"expected a JSON object with {keys}, not {line[:60]!r}"
            raise InputError(f"{where}: {what}") from None
        for path in paths:
            try:
                size = picture_size(path)
            except InputError as error:
                raise InputError(f"{where}: {error}") from None
            self.size = self.size or size
            if size != self.size or size[0] % 64 or size[1] % 64:
                first = f"{self.size[0]}x{self.size[1]}"
                raise InputError(
                    f"{where}: {path} is {size[0]}x{size[1]} and the first picture {first}; "
                    "expected one size, both sides multiples of 64"
                )
        return *paths, prompt

    def __len__(self) -> int:
        return len(self.pairs)

    def some(self, indices: slice) -> Self:
        """The same with these pairs only."""
        part = copy(self)
        part.pairs = self.pairs[indices]
        return part

    def __getitem__(self, i: int) -> Pair:
        image, prompt = self.picture(i)
        return image, self.hint(i), prompt

    def picture(self, i: int) -> tuple[Tensor, str]:
        picture, _, prompt = self.pairs[i]
        return read_picture(picture) * 2 - 1, prompt

    def hint(self, i: int) -> Tensor:
        return read_picture(self.pairs[i][1])

    def fingerprint(self, i: int) -> bytes:
        picture, _, prompt = self.pairs[i]
        try:
            return hashlib.sha256(picture.read_bytes()).digest() + prompt.encode()
        except OSError as error:
            raise InputError(f"{picture} cannot be read: {error.strerror}") from None


def split(folder: Folder) -> tuple[Folder, Folder]:
    """Pairs to train on, and the last tenth (at least one, at most eight) to measure with. A single
    pair is both."""
    first_held_out = len(folder) - min(8, max(1, len(folder) // 10))
    return folder.some(slice(max(1, first_held_out))), folder.some(slice(first_held_out, None))

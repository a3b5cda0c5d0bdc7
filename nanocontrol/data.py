"""Pairs of pictures to learn from: scenes drawn in memory, or a folder of the user's own.

    python -m nanocontrol.data [--n 8] [--seed 0] [--out FILE]

draws a sheet of scenes, each with its nine maps.
"""

import argparse
import hashlib
import json
from copy import copy
from functools import cache
from pathlib import Path
from typing import Protocol, Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from . import world
from .conditions import CONDITIONS, NEEDED
from .files import InputError, make_folder
from .flags import at_least, one_sentence, seed
from .pictures import columns_with_titles, picture_size, read_picture, save_picture
from .world import KINDS, Drawing, Scene, draw, random_scene

Pair = tuple[Tensor, Tensor, str]  # image, hint, prompt

# Scenes with seeds below this are for training, the same number from here on for measuring.
HELD_OUT = 1_000_000


class Pairs(Protocol):
    """What `Scenes` and `Folder` have in common."""

    def __len__(self) -> int: ...

    def __getitem__(self, i: int) -> Pair: ...

    def picture(self, i: int) -> tuple[Tensor, str]:
        """Image and prompt, without the work for the hint."""

    def hint(self, i: int) -> Tensor: ...

    def fingerprint(self, i: int) -> bytes:
        """What changes whenever the image or the prompt does."""


class Scenes:
    """n drawn scenes: item i is the one of seed `first` + i.

    image [3, 64, 64] RGB in [-1, 1], hint [3, 64, 64] in [0, 1] (black without a condition),
    prompt.
    """

    def __init__(self, condition: str | None, first: int = 0, n: int = HELD_OUT):
        self.condition, self.first, self.n = condition, first, n
        self.hints: dict[int, Tensor] = {}  # those that `hint` has drawn

    def __len__(self) -> int:
        return self.n

    def scene(self, i: int) -> Scene:
        """Of those in which the condition shows something."""
        if not 0 <= i < self.n:
            raise IndexError(i)
        return random_scene(self.first + i, NEEDED.get(self.condition, KINDS))

    def __getitem__(self, i: int) -> Pair:
        drawing = draw(self.scene(i))
        return self.image_of(drawing), self.hint_of(drawing), drawing.scene.prompt

    def picture(self, i: int) -> tuple[Tensor, str]:
        drawing = draw(self.scene(i))
        return self.image_of(drawing), drawing.scene.prompt

    def hint(self, i: int) -> Tensor:
        """Drawn once in each process, as long as they are few enough to be kept (50 KB each)."""
        if i in self.hints:
            return self.hints[i]
        hint = self.hint_of(draw(self.scene(i)))
        if len(self.hints) < 5000:
            self.hints[i] = hint
        return hint

    def fingerprint(self, i: int) -> bytes:
        return f"{code_of_the_world()} {self.scene(i)}".encode()

    def image_of(self, drawing: Drawing) -> Tensor:
        return torch.from_numpy(drawing.image * 2 - 1).permute(2, 0, 1)

    def hint_of(self, drawing: Drawing) -> Tensor:
        if self.condition is None:
            return torch.zeros(3, *drawing.shown.shape)
        return torch.from_numpy(CONDITIONS[self.condition](drawing)).permute(2, 0, 1)


@cache
def code_of_the_world() -> str:
    """A scene's picture follows from the scene and from the code that draws it."""
    return hashlib.sha256(Path(world.__file__).read_bytes()).hexdigest()


def held_out_scenes(
    condition: str | None, n: int
) -> tuple[Tensor, Tensor, tuple[str, ...], list[Scene]]:
    """The first n of those to measure with: images, hints, prompts as above, and the scenes."""
    data = Scenes(condition, HELD_OUT)
    images, hints, prompts = zip(*(data[i] for i in range(n)))
    return torch.stack(images), torch.stack(hints), prompts, [data.scene(i) for i in range(n)]


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


class Folder:
    """A folder with a list of pairs, `prompt.json` or `metadata.jsonl`: one JSON object a line,
    paths relative to the folder. Items as in `Scenes`.

    Pictures and hints are all of one size, both sides multiples of 64.
    Raises InputError, naming the file and line, for anything else.
    """

    def __init__(self, folder: Path):
        lists = [folder / name for name in LISTS if (folder / name).is_file()]
        if not lists:
            raise InputError(f"{folder} has no {' or '.join(LISTS)}; a folder of pairs is wanted")
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
            raise InputError(f"{lists[0]} lists no pairs; a JSON object a line is wanted")

    def check(self, file: Path, number: int, line: str) -> tuple[Path, Path, str]:
        """One line of the list -> picture, hint, prompt. Only the pictures' headers are read."""
        where = f"{file}, line {number}"
        names = LISTS[file.name]
        try:
            entry = json.loads(line)
            target, source, prompt = (first_of(entry, ns) for ns in names)
            paths = file.parent / target, file.parent / source
        except (ValueError, TypeError, KeyError):  # no JSON, no object, no text, a name missing
            wanted = ", ".join(ns[0] for ns in names)
            what = f"a JSON object with {wanted} is wanted, not {line[:60]!r}"
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
                    "one size is wanted, both sides multiples of 64"
                )
        return *paths, prompt

    def __len__(self) -> int:
        return len(self.pairs)

    def first(self, n: int) -> Self:
        """The same with its first n pairs only."""
        some = copy(self)
        some.pairs = self.pairs[:n]
        return some

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


def sheet(first: int, n: int) -> Image.Image:
    """A row for each of n scenes: the picture, then its maps."""
    drawings = [draw(random_scene(first + i)) for i in range(n)]
    columns = {"picture": [drawing.image for drawing in drawings]}
    columns |= {name: [make(drawing) for drawing in drawings] for name, make in CONDITIONS.items()}
    strips = [np.concatenate(maps, axis=1) for maps in columns.values()]
    strips = [(strip * 255).round().astype(np.uint8) for strip in strips]
    return columns_with_titles(strips, list(columns), width=64)


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--n", type=at_least(1), default=8, help="scenes (default: 8)")
    parser.add_argument("--seed", type=seed, default=0, help="of the first (default: 0)")
    parser.add_argument("--out", type=Path, default=Path("out/world.png"), metavar="FILE")
    args = parser.parse_args(argv)
    with one_sentence("data"):
        make_folder("--out", args.out.parent)
        save_picture(sheet(args.seed, args.n), args.out)
    print(args.out)


if __name__ == "__main__":
    main()

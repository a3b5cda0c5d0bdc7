"""Drawn scenes as training pairs, and a sheet of them.

    python -m nanocontrol.nano.scenes [--n 8] [--seed 0] [--size 64] [--out FILE]

writes a sheet of scenes, each with its nine maps.
"""

import argparse
import hashlib
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import get_worker_info

from nanocontrol.nano import world
from nanocontrol.nano.conditions import CONDITIONS, NEEDED
from nanocontrol.nano.world import KINDS, PIXELS, SIZES, Drawing, Scene, draw, random_scene
from nanocontrol.plumbing.errors import one_sentence, say
from nanocontrol.plumbing.files import make_folder
from nanocontrol.plumbing.flags import Parser, at_least, seed
from nanocontrol.plumbing.pictures import columns_with_titles, save_picture
from nanocontrol.training.pairs import Pair, Pairs, Taken

# Scenes with seeds below this are for training. Those from here on are for evaluation.
HELD_OUT = 1_000_000


class Scenes(Pairs):
    """n drawn scenes. Item i is the scene with seed `first` + i, as

    image [3, size, size] RGB in [-1, 1], hint [3, size, size] in [0, 1] (black without a
    condition), prompt.
    """

    def __init__(
        self, condition: str | None, first: int = 0, n: int = HELD_OUT, size: int = PIXELS
    ):
        super().__init__()
        self.condition, self.first, self.n, self.size = condition, first, n, size

    def __len__(self) -> int:
        return self.n

    def scene(self, i: int) -> Scene:
        """Scene i. It has an object that the condition shows."""
        if not 0 <= i < self.n:
            raise IndexError(i)
        return random_scene(self.first + i, NEEDED.get(self.condition or "", KINDS))

    def __getitem__(self, i: int | tuple[int, int]) -> Pair:
        drawing = draw(self.scene(i[0] if isinstance(i, tuple) else i), self.size)
        return self.image_of(drawing), self.hint_of(drawing), drawing.scene.prompt

    def take(self, i: int) -> Taken:
        drawing = draw(self.scene(i), self.size)
        if self.condition and get_worker_info() is None:
            # Training needs the hint next. A worker process would only fill a cache of its own.
            self.keep(i, self.hint_of(drawing))
        return Taken(self.image_of(drawing))

    def read_hint(self, i: int, size: Sequence[int] = ()) -> Tensor:
        return self.hint_of(draw(self.scene(i), self.size))

    def captions(self, i: int) -> list[str]:
        return [self.scene(i).prompt]

    def fingerprint(self, i: int) -> bytes:
        return f"{code_of_the_world()} {self.size} {self.scene(i)}".encode()

    def image_of(self, drawing: Drawing) -> Tensor:
        return torch.from_numpy(drawing.image * 2 - 1).permute(2, 0, 1)

    def hint_of(self, drawing: Drawing) -> Tensor:
        if self.condition is None:
            return torch.zeros(3, *drawing.shown.shape)
        return torch.from_numpy(CONDITIONS[self.condition](drawing)).permute(2, 0, 1)


@cache
def code_of_the_world() -> str:
    """A hash of the code that draws. A picture depends on it, on the scene, and on the size."""
    return hashlib.sha256(Path(world.__file__).read_bytes()).hexdigest()


def held_out_scenes(
    condition: str | None, n: int, first: int = HELD_OUT, size: int = PIXELS
) -> tuple[Tensor, Tensor, tuple[str, ...], list[Scene]]:
    """n held-out scenes: images, hints and prompts as in Scenes, and the scenes themselves."""
    data = Scenes(condition, first, size=size)
    images, hints, prompts = zip(*(data[i] for i in range(n)))
    return torch.stack(images), torch.stack(hints), prompts, [data.scene(i) for i in range(n)]


def sheet(first: int, n: int, size: int = PIXELS) -> Image.Image:
    """A sheet with a row for each of n scenes: the picture, then its maps."""
    drawings = [draw(random_scene(first + i), size) for i in range(n)]
    columns = {"picture": [drawing.image for drawing in drawings]}
    columns |= {name: [make(drawing) for drawing in drawings] for name, make in CONDITIONS.items()}
    strips = [np.concatenate(maps, axis=1) for maps in columns.values()]
    strips = [(strip * 255).round().astype(np.uint8) for strip in strips]
    return columns_with_titles(strips, list(columns), width=size)


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--n", type=at_least(1), default=8, help="scenes (default: 8)")
    parser.add_argument("--seed", type=seed, default=0, help="the first scene's (default: 0)")
    parser.add_argument("--size", type=int, choices=SIZES, default=PIXELS, help="a picture's side")
    parser.add_argument("--out", type=Path, default=Path("out/world.png"), metavar="FILE")
    args = parser.parse_args(argv)
    with one_sentence("scenes"):
        make_folder("--out", args.out.parent)
        save_picture(sheet(args.seed, args.n, args.size), args.out)
    say(args.out)


if __name__ == "__main__":
    main()

"""Pairs of pictures to learn from: scenes drawn in memory, or a folder of the user's own.

A scene is a list of coloured solids before a coloured background. Its picture, prompt and outline
follow from that one description, exactly, and so would any other map of it (depth, normals, ...).
The hint gives place and outline, the prompt the colours, the seed the rest.
"""

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from .files import InputError
from .pictures import picture_size, read_picture

# ----------------------------------------------------------------------------------- scenes

# RGB in 0..1, after CSS; any two are at least 0.27 apart.
COLOURS = {
    name: np.array([int(code[i : i + 2], 16) for i in (0, 2, 4)], np.float32) / 255
    for name, code in {
        "white": "ffffff", "gray": "808080", "black": "000000", "crimson": "dc143c",
        "coral": "ff7f50", "gold": "ffd700", "olive": "808000", "lime": "32cd32",
        "green": "006400", "teal": "008080", "turquoise": "40e0d0", "blue": "4169e1",
        "navy": "000080", "violet": "ee82ee", "indigo": "4b0082", "chocolate": "d2691e",
    }.items()
}  # fmt: skip


def polygon(radii: list[float], corners: int, turn: float = 0.0) -> np.ndarray:
    """[corners, 2]: points around the origin, evenly spaced, at the distances `radii` in turn."""
    angle = 2 * np.pi * np.arange(corners) / corners - np.pi / 2 + turn
    return np.resize(radii, corners)[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)


# Corners for a radius of 1, y pointing down. The disc has none.
SHAPES = {
    "disc": None,
    "square": polygon([1.15], corners=4, turn=np.pi / 4),
    "triangle": polygon([1.25], corners=3),
    "star": polygon([1.3, 0.6], corners=10),
}


@dataclass(frozen=True)
class Solid:
    """One object, a shallow dome over its shape: the side that faces the light is brighter.

    Lengths are fractions of the picture's side, (0, 0) is its top left corner.
    """

    shape: str  # a key of SHAPES
    colour: str  # a key of COLOURS
    x: float
    y: float
    radius: float
    angle: float  # radians


@dataclass(frozen=True)
class Scene:
    background: str  # a key of COLOURS
    light: float  # radians: where in the plane of the picture the light comes from
    solids: tuple[Solid, ...]  # from far to near: a later one hides an earlier one

    @property
    def prompt(self) -> str:
        """'a coral disc and a teal square on a white background'"""
        things = " and ".join(f"{article(s.colour)} {s.colour} {s.shape}" for s in self.solids)
        return f"{things} on {article(self.background)} {self.background} background"


def article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def random_scene(seed: int) -> Scene:
    """One or two solids, overlapping at most slightly, in colours well apart from each other and
    from the background's (0.45, so that the measures in evaluate.py can tell them apart)."""
    rng = np.random.default_rng(seed)
    colours = [str(rng.choice(list(COLOURS)))]
    while len(colours) < 3:
        new = str(rng.choice(list(COLOURS)))
        if all(np.linalg.norm(COLOURS[new] - COLOURS[other]) > 0.45 for other in colours):
            colours.append(new)
    two = rng.random() < 0.6
    low, high = (0.19, 0.26) if two else (0.24, 0.36)
    solids: list[Solid] = []
    while len(solids) < 1 + two:
        radius = rng.uniform(low, high)
        x, y = rng.uniform(radius, 1 - radius, 2)
        if all(np.hypot(x - s.x, y - s.y) > 0.95 * (radius + s.radius) for s in solids):
            shape, colour = str(rng.choice(list(SHAPES))), colours[1 + len(solids)]
            solids.append(Solid(shape, colour, x, y, radius, rng.uniform(-0.35, 0.35)))
    return Scene(colours[0], rng.uniform(0, 2 * np.pi), tuple(solids))


@cache
def pixel_grid(size: int) -> tuple[np.ndarray, np.ndarray]:
    """x and y of every pixel's middle, as fractions of the side; each [size, size]."""
    y, x = (np.mgrid[0:size, 0:size].astype(np.float32) + 0.5) / size
    return x, y


def distance(solid: Solid, size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """For every pixel's middle: the signed distance to the outline in pixels, negative inside, and
    the offset (x, y) from the solid's centre in radii. Each [size, size]."""
    x, y = pixel_grid(size)
    x, y = (x - solid.x) / solid.radius, (y - solid.y) / solid.radius
    pixels = solid.radius * size  # in one radius
    corners = SHAPES[solid.shape]
    if corners is None:
        return (np.hypot(x, y) - 1) * pixels, x, y
    cos, sin = np.cos(solid.angle), np.sin(solid.angle)
    px, py = cos * x + sin * y, cos * y - sin * x  # turned back, into the shape's own frame
    nearest, inside = np.full_like(x, np.inf), np.zeros(x.shape, bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0)):
        ex, ey = bx - ax, by - ay  # the edge
        along = np.clip(((px - ax) * ex + (py - ay) * ey) / (ex * ex + ey * ey), 0, 1)
        nearest = np.minimum(nearest, np.hypot(px - ax - along * ex, py - ay - along * ey))
        if ey != 0:  # inside: a ray to the right crosses an odd number of edges
            inside ^= ((ay > py) != (by > py)) & (px < ax + (py - ay) / ey * ex)
    return np.where(inside, -nearest, nearest) * pixels, x, y


def draw(scene: Scene, size: int = 64) -> dict[str, np.ndarray]:
    """Maps, float32 in 0..1: "image" [size, size, 3], "outline" and "mask" of all solids
    [size, size].

    Edges are smoothed over a pixel. Outlines are 1.5 pixels wide, and hidden behind nearer solids.
    """
    x, y = pixel_grid(size)
    light_x, light_y = np.cos(scene.light), np.sin(scene.light)
    shade = 1 + 0.16 * ((x - 0.5) * light_x + (y - 0.5) * light_y)
    image = COLOURS[scene.background] * shade[..., None]
    outline, mask = np.zeros((size, size)), np.zeros((size, size))
    for solid in scene.solids:
        d, x, y = distance(solid, size)
        cover = np.clip(0.5 - d, 0, 1)
        shade = 1 + 0.2 * np.clip(x * light_x + y * light_y, -1, 1)
        image += cover[..., None] * (COLOURS[solid.colour] * shade[..., None] - image)
        outline = np.maximum(outline * (1 - cover), np.clip(1.25 - np.abs(d), 0, 1))
        mask = np.maximum(mask, cover)
    maps = {"image": np.clip(image, 0, 1), "outline": outline, "mask": mask}
    return {name: value.astype(np.float32) for name, value in maps.items()}


# ------------------------------------------------------- data sets: (image, hint, prompt) by index

Pair = tuple[Tensor, Tensor, str]

HELD_OUT = 1_000_000  # scenes with seeds from here on are for measuring, never for training


class Scenes:
    """Drawn scenes: item i is the one of seed `first` + i.

    image [3, 64, 64] RGB in [-1, 1], hint (the outline) [3, 64, 64] in [0, 1], prompt.
    """

    def __init__(self, first: int = 0):
        self.first = first

    def __len__(self) -> int:
        return HELD_OUT

    def __getitem__(self, i: int) -> Pair:
        if not 0 <= i < HELD_OUT:
            raise IndexError(i)
        scene = random_scene(self.first + i)
        maps = draw(scene)
        image = torch.from_numpy(maps["image"]).permute(2, 0, 1) * 2 - 1
        hint = torch.from_numpy(maps["outline"]).expand(3, -1, -1)
        return image, hint, scene.prompt


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

    def __getitem__(self, i: int) -> Pair:
        picture, hint, prompt = self.pairs[i]
        return read_picture(picture) * 2 - 1, read_picture(hint), prompt

"""From strokes and scenes to hints, drawn as the hints of the training were."""

from base64 import b64encode
from functools import lru_cache
from io import BytesIO
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanocontrol.nano.conditions import CONDITIONS, OPENPOSE, blurred, line
from nanocontrol.nano.world import PIXELS, draw, halved
from nanocontrol.plumbing.pictures import to_bytes

# The colours of a pose: joints, then limbs.
POSE = np.rint(255 * np.concatenate([OPENPOSE, 0.6 * OPENPOSE[:13]])).astype(np.uint8)
PALETTE = ["#" + bytes(colour).hex() for colour in POSE]
# A condition's background and ink, if they are not black and white.
COLOURS = {"pose": ("#000000", PALETTE[0]), "cartoon": ("#ffffff", "#000000")}
# Widths of its lines in pixels of a picture of 64. The others are areas: a scene has to be drawn.
WIDTHS: dict[str, tuple[float, ...]] = {
    **{"canny": (0.5,), "hough": (1.5,), "soft": (1,), "scribble": (3,), "pose": (2, 3)},
    **{"cartoon": (1, 3), "segmentation": (), "depth": (), "normals": ()},
}
drawn = lru_cache(16)(draw)  # a scene has a hint for each condition
SOFT = 1.5, 0.8  # blur and strength of an outline among soft edges


def colours_of(condition: str) -> tuple[str, str]:
    """Background and ink."""
    return COLOURS.get(condition, ("#000000", "#ffffff"))


def blank(condition: str, size: int) -> np.ndarray:
    """A hint [size, size, 3] without a drawing."""
    return np.ones((size, size, 3), np.float32) * colour_of(colours_of(condition)[0])


def is_empty(hint: Tensor) -> bool:
    """Whether a hint [3, H, W] is of a single colour."""
    return bool((hint == hint[:, :1, :1]).all())


def drawn_hint(drawing: SimpleNamespace, condition: str, size: int) -> Tensor:
    """The hint [3, size, size], multiples of 1/255 as in a PNG file. condition: the drawing's, or
    any if it has a scene; strokes belong to the drawing's own."""
    hint = blank(condition, size)
    if drawing.under is not None:
        hint = drawing.under.permute(1, 2, 0).numpy()
    if drawing.scene is not None:
        hint = CONDITIONS[condition](drawn(drawing.scene, size))
    if drawing.strokes and condition == drawing.condition:
        hint = with_strokes(hint, drawing.strokes, condition)
    return in_bytes(as_picture(hint))


def as_picture(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def in_bytes(picture: Tensor) -> Tensor:
    """A picture in [0, 1] as it is read from a file of bytes."""
    return (picture * 255).round().to(torch.uint8).float() / 255


def with_strokes(hint: np.ndarray, strokes: tuple, condition: str) -> np.ndarray:
    """The hint [size, size, 3] with strokes above it, drawn on four points for each pixel."""
    (background, ink), picture, size = colours_of(condition), doubled(hint), len(hint)
    for stroke in strokes:
        erased = stroke.tool == "eraser"
        colour = colour_of(background if erased else stroke.colour or ink)
        thin = condition == "canny"
        on = doubled(pixels_on(stroke, size)) if thin else points_on(stroke, size)
        if condition == "soft" and not erased:
            soft = blurred(on, SOFT[0] * size / PIXELS) * SOFT[0]
            picture = np.maximum(picture, SOFT[1] * soft.clip(0, 1)[..., None] * colour)
        else:
            picture[on > 0] = colour
    return halved(picture)


def doubled(pixels: np.ndarray) -> np.ndarray:
    """Pixels [size, size, ...] -> points [2 * size, 2 * size, ...]; see `halved`."""
    return pixels.repeat(2, axis=0).repeat(2, axis=1)


def points_on(stroke: SimpleNamespace, size: int) -> np.ndarray:
    """The points [2 * size, 2 * size] that a stroke covers: 1, others 0."""
    on, path = np.zeros((2 * size, 2 * size), np.float32), np.array(stroke.points) / size
    for a, b in pairwise([*path, path[-1]]):
        box, found, _ = line(a, b, stroke.width * PIXELS / size, size)
        on[box][found] = 1
    return on


def pixels_on(stroke: SimpleNamespace, size: int) -> np.ndarray:
    """The pixels [size, size] of a stroke without antialiasing. A narrow one is as thin as Canny's
    lines: one pixel in each row or column."""
    if stroke.width >= 2:
        return halved(points_on(stroke, size)) >= 0.5
    on, path = np.zeros((size, size), bool), np.floor(stroke.points)
    for a, b in pairwise([*path, path[-1]]):
        x, y = np.rint(np.linspace(a, b, int(np.abs(b - a).max()) + 1)).astype(int).T
        inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
        on[y[inside], x[inside]] = True
    return on


def colour_of(code: str) -> np.ndarray:
    return np.array([*bytes.fromhex(code[1:])], np.float32) / 255


def png(pixels: np.ndarray | Tensor) -> str:
    """A picture as PNG in base64: bytes [H, W, 3] or [H, W], or a tensor [3, H, W] in [0, 1]."""
    pixels = to_bytes(pixels) if isinstance(pixels, Tensor) else pixels
    return in_base64(Image.fromarray(pixels), "PNG")


def in_base64(picture: Image.Image, form: str, **options: int) -> str:
    """The file of a picture, as text."""
    picture.save(file := BytesIO(), form, **options)
    return b64encode(file.getvalue()).decode()

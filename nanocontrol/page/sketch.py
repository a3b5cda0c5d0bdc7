"""From strokes and scenes to hints, drawn as the hints of the training were."""

from base64 import b64encode
from io import BytesIO
from types import SimpleNamespace

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanocontrol.nano.conditions import CONDITIONS, OPENPOSE, blurred, line
from nanocontrol.nano.world import PIXELS, draw, halved
from nanocontrol.plumbing.pictures import to_bytes

# How a condition's hints are drawn: background, ink, and widths in pixels of a picture of 64.
# The others are areas: a scene has to be drawn for them.
DRAWN: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "canny": ("#000000", "#ffffff", (0.5,)),
    "hough": ("#000000", "#ffffff", (1.5,)),
    "soft": ("#000000", "#ffffff", (1,)),
    "scribble": ("#000000", "#ffffff", (3,)),
    "pose": ("#000000", "#ff0000", (2, 3)),
    "cartoon": ("#ffffff", "#000000", (1, 3)),
}
UNKNOWN = DRAWN["canny"]  # a ControlNet of another base
AREAS = "#000000", "#ffffff", ()
SOFT = 1.5, 0.8  # blur and strength of an outline among soft edges


def look_of(condition: str) -> tuple[str, str, tuple[float, ...]]:
    """Background, ink and widths; see DRAWN."""
    return DRAWN.get(condition, AREAS if condition in CONDITIONS else UNKNOWN)


def drawn_hint(drawing: SimpleNamespace, condition: str, size: int) -> Tensor:
    """The hint [3, size, size], multiples of 1/255 as in a PNG file. condition: the drawing's, or
    any if it has a scene; strokes belong to the drawing's own."""
    hint = np.ones((size, size, 3), np.float32) * colour_of(look_of(condition)[0])
    if drawing.under is not None:
        hint = drawing.under.permute(1, 2, 0).numpy()
    if drawing.scene is not None:
        hint = CONDITIONS[condition](draw(drawing.scene, size))
    if drawing.strokes and condition == drawing.condition:
        hint = with_strokes(hint, drawing.strokes, condition)
    return in_bytes(as_picture(hint))


def as_picture(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def in_bytes(picture: Tensor) -> Tensor:
    """A picture in [0, 1] as it is read from a file of bytes."""
    return (picture * 255).round().to(torch.uint8).float() / 255


def with_strokes(hint: np.ndarray, strokes: tuple, condition: str) -> np.ndarray:
    """The hint [size, size, 3] with strokes above it: Canny's on its pixels, others on four points
    for each."""
    background, ink, _ = look_of(condition)
    thin = condition == "canny"
    picture = hint if thin else np.repeat(np.repeat(hint, 2, axis=0), 2, axis=1)
    for stroke in strokes:
        erased = stroke.tool == "eraser"
        colour = colour_of(background if erased else stroke.colour or ink)
        on = pixels_on(stroke, len(hint)) if thin else points_on(stroke, len(hint))
        if condition == "soft" and not erased:
            soft = blurred(on, SOFT[0] * len(hint) / PIXELS) * SOFT[0]
            picture = np.maximum(picture, SOFT[1] * soft.clip(0, 1)[..., None] * colour)
        else:
            picture = np.where(on[..., None] > 0, colour, picture)
    return picture if thin else halved(picture)


def points_on(stroke: SimpleNamespace, size: int) -> np.ndarray:
    """The points [2 * size, 2 * size] that a stroke covers: 1, others 0."""
    on = np.zeros((2 * size, 2 * size), np.float32)
    path = np.array(stroke.points) / size
    for a, b in zip(path, path[1:] if len(path) > 1 else path):
        box, found, _ = line(a, b, stroke.width * PIXELS / size, size)
        on[box][found] = 1
    return on


def pixels_on(stroke: SimpleNamespace, size: int) -> np.ndarray:
    """The pixels [size, size] of a stroke without antialiasing. A narrow one is as thin as Canny's
    lines: one pixel in each row or column."""
    if stroke.width >= 2:
        return halved(points_on(stroke, size)) >= 0.5
    on, path = np.zeros((size, size), bool), np.floor(stroke.points)
    for a, b in zip(path, path[1:] if len(path) > 1 else path):
        x, y = np.rint(np.linspace(a, b, int(np.abs(b - a).max()) + 1)).astype(int).T
        inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
        on[y[inside], x[inside]] = True
    return on


def colour_of(code: str) -> np.ndarray:
    return np.array([*bytes.fromhex(code[1:])], np.float32) / 255


# The colours of a pose: joints, then limbs.
POSE = np.rint(255 * np.concatenate([OPENPOSE, 0.6 * OPENPOSE[:13]])).astype(np.uint8)
PALETTE = ["#" + bytes(colour).hex() for colour in POSE]


def png(pixels: np.ndarray | Tensor) -> str:
    """A picture as PNG in base64: bytes [H, W, 3] or [H, W], or a tensor [3, H, W] in [0, 1]."""
    pixels = to_bytes(pixels) if isinstance(pixels, Tensor) else pixels
    return in_base64(Image.fromarray(pixels), "PNG")


def in_base64(picture: Image.Image, form: str, **options: int) -> str:
    """The file of a picture, as text."""
    picture.save(file := BytesIO(), form, **options)
    return b64encode(file.getvalue()).decode()

"""From strokes, scenes and photos to hints, drawn as the hints of the training were."""

from base64 import b64encode
from io import BytesIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanocontrol.nano.conditions import CONDITIONS, OPENPOSE, blurred, line
from nanocontrol.nano.world import PIXELS, POLYHEDRA, Scene, Thing, corners_of, draw, halved
from nanocontrol.page.asked import Sketch, Stroke

# How a condition's hints are drawn: background, ink, and widths in pixels of a picture of 64. Those
# without widths are areas: a scene has to be drawn for them.
DRAWN: dict[str, tuple[str, str, tuple[float, ...]]] = {
    "canny": ("#000000", "#ffffff", (0.5,)),
    "hough": ("#000000", "#ffffff", (1.5,)),
    "soft": ("#000000", "#ffffff", (1,)),
    "scribble": ("#000000", "#ffffff", (3,)),
    "pose": ("#000000", "#ff0000", (2, 3)),
    "cartoon": ("#ffffff", "#000000", (1, 3)),
}
OTHERS = ("#000000", "#ffffff", (0.5,))  # a ControlNet of another base, whose hints are not known
SOFT = 1.5, 0.8  # blur and strength of an outline among soft edges


def look_of(condition: str) -> tuple[str, str, tuple[float, ...]]:
    """Background, ink and widths; see DRAWN."""
    areas = ("#000000", "#ffffff", ())
    return DRAWN.get(condition, areas if condition in CONDITIONS else OTHERS)


def hint_of(sketch: Sketch, condition: str, size: int) -> Tensor:
    """The hint [3, size, size], multiples of 1/255 as in a PNG file. condition: any if the sketch
    has a scene, else its own."""
    background = look_of(condition)[0]
    hint = np.ones((size, size, 3), np.float32) * colour_of(background)
    if sketch.under is not None:
        hint = sketch.under.permute(1, 2, 0).numpy()
    if sketch.scene is not None:
        hint = CONDITIONS[condition](draw(sketch.scene, size))
    if sketch.strokes and condition == sketch.condition:
        hint = drawn(hint, sketch.strokes, condition)
    return rounded(as_picture(hint))


def as_picture(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1)


def rounded(picture: Tensor) -> Tensor:
    """A picture in [0, 1] as it is read from a file of bytes."""
    return (picture * 255).round().to(torch.uint8).float() / 255


def drawn(hint: np.ndarray, strokes: tuple[Stroke, ...], condition: str) -> np.ndarray:
    """The hint [size, size, 3] with strokes above it."""
    size, (background, ink, _) = len(hint), look_of(condition)
    points = np.repeat(np.repeat(hint, 2, axis=0), 2, axis=1)  # as a drawing has: four for a pixel
    for stroke in strokes:
        colour = background if stroke.tool == "eraser" else stroke.colour or ink
        if condition == "canny":
            on = thin(stroke, size) if stroke.width < 2 else halved(cover(stroke, size)) >= 0.5
            hint = np.where(on[..., None], colour_of(colour), hint)
            continue
        on = cover(stroke, size)
        if condition == "soft" and stroke.tool != "eraser":
            sigma = SOFT[0] * size / PIXELS
            soft = SOFT[1] * np.minimum(1, blurred(on, sigma) * SOFT[0])
            points = np.maximum(points, soft[..., None] * colour_of(colour))
            continue
        points = np.where(on[..., None] > 0, colour_of(colour), points)
    return hint if condition == "canny" else halved(points)


def cover(stroke: Stroke, size: int) -> np.ndarray:
    """The points [2 * size, 2 * size] on a stroke: 1, others 0."""
    on = np.zeros((2 * size, 2 * size), np.float32)
    path = stroke.points / size
    for a, b in zip(path, path[1:] if len(path) > 1 else path):
        box, found, _ = line(a, b, stroke.width * PIXELS / size, size)
        on[box][found] = 1
    return on


def thin(stroke: Stroke, size: int) -> np.ndarray:
    """The pixels [size, size], bool, of a line as thin as Canny's: one for each row or column."""
    on, path = np.zeros((size, size), bool), np.floor(stroke.points)
    for a, b in zip(path, path[1:] if len(path) > 1 else path):
        n = int(np.abs(b - a).max()) + 1
        x, y = np.rint(np.linspace(a, b, n)).astype(int).T
        inside = (x >= 0) & (x < size) & (y >= 0) & (y < size)
        on[y[inside], x[inside]] = True
    return on


def colour_of(code: str) -> np.ndarray:
    return np.array([*bytes.fromhex(code[1:])], np.float32) / 255


def code_of(colour: np.ndarray) -> str:
    return "#" + bytes(np.rint(colour * 255).astype(np.uint8)).hex()


def palette_of(condition: str) -> list[str]:
    """The colours to draw with."""
    if condition == "pose":
        return [code_of(c) for c in OPENPOSE] + [code_of(0.6 * c) for c in OPENPOSE[:13]]
    return [*look_of(condition)[:2]]


def outline_of(thing: Thing) -> list[list[float]]:
    """Points by which an object is seized: a polyhedron's corners, else a circle or a figure's box,
    as fractions of the side."""
    if thing.kind in POLYHEDRA:
        return corners_of(thing)[:, :2].tolist()
    angles = np.linspace(0, 2 * np.pi, 4 if thing.kind == "figure" else 24, endpoint=False)
    if thing.kind == "figure":
        angles += np.pi / 4
    around = np.stack([np.cos(angles), np.sin(angles)], axis=1) * thing.size
    return (around + (thing.x, thing.y)).tolist()


def prompt_of(scene: Scene) -> str:
    return scene.prompt.removeprefix(" on ")  # as of a scene without objects


def png(pixels: np.ndarray | Tensor) -> str:
    """A picture as PNG in base64: bytes [H, W, 3] or [H, W], or a tensor [3, H, W] in [0, 1]."""
    if isinstance(pixels, Tensor):
        pixels = (pixels * 255).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    file = BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return b64encode(file.getvalue()).decode()

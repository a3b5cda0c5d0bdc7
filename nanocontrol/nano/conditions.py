"""The paper's nine conditions, computed exactly from a drawing (world.py), without detectors.

Each is a function Drawing -> [size, size, 3], RGB in 0..1. CONDITIONS lists them. Lines and patches
are drawn on a drawing's points, four for each pixel, and the means of four points smooth them.
Canny's lines are one pixel wide at every size; all other lines are wider in larger pictures.
"""

from collections.abc import Callable

import numpy as np
import torch

from nanocontrol.nano.world import (
    LIMBS,
    PIXELS,
    POLYHEDRA,
    Drawing,
    edges_of,
    from_segment,
    halved,
    joints_of,
    points,
)
from nanocontrol.plumbing.canny import canny


def canny_edges(drawing: Drawing) -> np.ndarray:
    """Canny's edges of the picture, with random thresholds as in the paper. The scene's seed
    determines them."""
    high = int(np.random.default_rng(drawing.scene.seed).integers(100, 300))
    image = torch.from_numpy(drawing.image).permute(2, 0, 1)
    return canny(image, high // 2, high).permute(1, 2, 0).numpy()


def hough_lines(drawing: Drawing) -> np.ndarray:
    """Straight segments: the edges of cubes and pyramids, where no nearer surface hides them."""
    lines = np.zeros(drawing.depth.shape, np.float32)
    for thing in drawing.scene.of(*POLYHEDRA):
        for a, b in edges_of(thing):
            box, on, along = line(a, b, 1.5, drawing.size)
            seen = a[2] + along * (b[2] - a[2]) > drawing.depth[box] - 0.02
            lines[box][on & seen] = 1
    return grey(lines)


def soft_edges(drawing: Drawing) -> np.ndarray:
    """Soft edges, graded like those of the network HED: wide where the depth jumps far, narrower at
    other outlines, and narrow and faint where only the surface turns."""
    s = drawing.scale
    outlines, creases = outlines_of(drawing.index, s), creases_of(drawing)
    z = np.pad(drawing.depth, s, mode="edge")
    around = [z[: -2 * s, s:-s], z[2 * s :, s:-s], z[s:-s, : -2 * s], z[s:-s, 2 * s :]]
    far = outlines & (np.max(around, axis=0) - np.min(around, axis=0) > 0.4)
    # Multiply by sigma, because a blur makes a wider line fainter in proportion.
    wide, middle, narrow = (
        strength * np.minimum(1, blurred(lines.astype(np.float32), s * sigma) * sigma)
        for lines, sigma, strength in ((far, 3.0, 1.0), (outlines, 1.5, 0.8), (creases, 1.0, 0.6))
    )
    return grey(np.maximum(np.maximum(wide, middle), narrow))


def scribble(drawing: Drawing) -> np.ndarray:
    """Outlines as if drawn quickly by hand: three pixels thick, wobbly, with gaps."""
    rng = np.random.default_rng(drawing.scene.seed)
    n, s = len(drawing.index), drawing.scale
    rows, columns = np.mgrid[:n, :n]
    rows = np.clip(rows + 2.0 * s * waves(rng, n), 0, n - 1).astype(int)
    columns = np.clip(columns + 2.0 * s * waves(rng, n), 0, n - 1).astype(int)
    wobbly = outlines_of(drawing.index[rows, columns], s)
    return grey(thick_lines(wobbly, 2 * s) & (waves(rng, n) > -0.7))


def pose(drawing: Drawing) -> np.ndarray:
    """A figure's limbs and joints in OpenPose's colours. Hidden joints are drawn, too."""
    picture = np.zeros((*drawing.depth.shape, 3), np.float32)
    for figure in drawing.scene.of("figure"):
        joints = joints_of(figure)
        lines = [(joints[a], joints[b], 2.0, 0.6 * c) for (a, b), c in zip(LIMBS, OPENPOSE)]
        dots = [(joint, joint, 3.0, colour) for joint, colour in zip(joints, OPENPOSE)]
        for a, b, width, colour in lines + dots:
            box, on, _ = line(a, b, width, drawing.size)
            picture[box][on] = colour
    return halved(picture)


def segmentation(drawing: Drawing) -> np.ndarray:
    """A fixed colour for each kind of object, and grey for the wall."""
    kinds = ["wall", *(thing.kind for thing in drawing.scene.things)]
    return np.stack([SEGMENT[kind] for kind in kinds])[drawing.shown]


def depth(drawing: Drawing) -> np.ndarray:
    """The depth: near is bright, and the wall is black."""
    return grey(drawing.depth)


def normals(drawing: Drawing) -> np.ndarray:
    """The surface normals, with -1..1 stored as 0..1: red points right, green up, blue to the
    viewer."""
    x, y, z = drawing.normal
    return halved((np.stack([x, -y, z], axis=-1) + 1) / 2)


def cartoon(drawing: Drawing) -> np.ndarray:
    """Ink on paper. Outlines are thick on the side away from the light. Thin inner lines show where
    the surface turns or its shadow begins."""
    facing = np.tensordot(np.array(drawing.scene.light, np.float32), drawing.normal, axes=1)
    shadow = (facing < 0.25) & (drawing.index > 0)
    s = drawing.scale
    outlines = outlines_of(drawing.index, s)
    inner = creases_of(drawing) | (outlines_of(shadow, s) & ~thick_lines(outlines, s))
    return 1 - grey(outlines | thick_lines(outlines & thick_lines(shadow, s), 2 * s) | inner)


CONDITIONS: dict[str, Callable[[Drawing], np.ndarray]] = {
    "canny": canny_edges,
    "hough": hough_lines,
    "soft": soft_edges,
    "scribble": scribble,
    "pose": pose,
    "segmentation": segmentation,
    "depth": depth,
    "normals": normals,
    "cartoon": cartoon,
}

# The kinds of objects that a condition shows, if not all. Every scene for it has one of them.
NEEDED = {"hough": tuple(POLYHEDRA), "pose": ("figure",)}

# How each condition's hints look, for the diagnosis of a run: the kind of picture, and the range of
# line widths in pixels. The lower limit is included, the upper one is not.
ANY = 0.0, 1e9
APPEARANCE: dict[str, tuple[str, tuple[float, float]]] = {
    "canny": ("white lines on black", (0, 1.6)),  # as thin as possible
    "hough": ("white lines on black", ANY),
    "scribble": ("white lines on black", (1.6, 1e9)),
    "cartoon": ("black lines on white", ANY),
    "soft": ("grey lines on black", ANY),
    "depth": ("grey areas", ANY),
    "pose": ("colours on black", ANY),
    "segmentation": ("areas of colours", ANY),
    "normals": ("normals", ANY),
}

# OpenPose's colours: those of the first 14 joints and, dimmed, of the limbs in OpenPose's order.
OPENPOSE = (
    np.array(
        [
            (255, 0, 0),
            (255, 85, 0),
            (255, 170, 0),
            (255, 255, 0),
            (170, 255, 0),
            (85, 255, 0),
            (0, 255, 0),
            (0, 255, 85),
            (0, 255, 170),
            (0, 255, 255),
            (0, 170, 255),
            (0, 85, 255),
            (0, 0, 255),
            (85, 0, 255),
        ],
        np.float32,
    )
    / 255
)

SEGMENT = {
    kind: np.array(colour, np.float32) / 255
    for kind, colour in {
        "wall": (120, 120, 120),
        "ball": (224, 5, 255),
        "cube": (180, 120, 120),
        "pyramid": (4, 250, 7),
        "ring": (255, 224, 0),
        "figure": (150, 5, 61),
    }.items()
}

# --------------------------------------------------------------------------- lines of points


def grey(values: np.ndarray) -> np.ndarray:
    """Points [2 * size, 2 * size] -> a grey picture [size, size, 3]."""
    return np.repeat(halved(values.astype(np.float32))[..., None], 3, axis=-1)


def line(
    a: np.ndarray, b: np.ndarray, width: float, size: int
) -> tuple[tuple[slice, slice], np.ndarray, np.ndarray]:
    """A line from a to b. width: in pixels of a picture of 64.

    Returns the rows and columns of a box of points around the line, whether each point is on the
    line, and each point's position between a (0) and b (1).
    """
    half = width / 2 / PIXELS
    low, high = np.minimum(a, b)[1::-1] - half, np.maximum(a, b)[1::-1] + half  # y, x
    rows, columns = (
        slice(max(0, int(start * 2 * size)), max(0, int(end * 2 * size) + 1))
        for start, end in zip(low, high)
    )
    x, y = (grid[rows, columns] for grid in points(size))
    offset, along = from_segment(a[:2], b[:2], x, y)
    return (rows, columns), np.hypot(*offset) < half, along


def outlines_of(labels: np.ndarray, reach: int = 1) -> np.ndarray:
    """The points within `reach` of another label, along a row or a column. They form lines of width
    2 * reach."""
    found = np.zeros(labels.shape, bool)
    across = labels[:, reach:] != labels[:, :-reach]
    down = labels[reach:] != labels[:-reach]
    found[:, reach:] |= across
    found[:, :-reach] |= across
    found[reach:] |= down
    found[:-reach] |= down
    return found


def creases_of(drawing: Drawing) -> np.ndarray:
    """The points where an object's surface turns by more than 41 degrees to the next point. In
    larger pictures, the next point is as far away as in a picture of 64."""
    normal, index, s = drawing.normal, drawing.index, drawing.scale
    found = np.zeros(index.shape, bool)
    turns = (normal[:, :, s:] * normal[:, :, :-s]).sum(axis=0) < 0.75
    found[:, s:] = turns & (index[:, s:] == index[:, :-s])
    turns = (normal[:, s:] * normal[:, :-s]).sum(axis=0) < 0.75
    found[s:] |= turns & (index[s:] == index[:-s])
    return found


def thick_lines(lines: np.ndarray, points: int = 1) -> np.ndarray:
    """The lines, made thicker by this many points on every side."""
    grown = lines.copy()
    for _ in range(points):
        before = grown.copy()
        grown[:, 1:] |= before[:, :-1]
        grown[:, :-1] |= before[:, 1:]
        wide = grown.copy()
        grown[1:] |= wide[:-1]
        grown[:-1] |= wide[1:]
    return grown


def blurred(values: np.ndarray, sigma: float) -> np.ndarray:
    """The values after a Gaussian blur. sigma: in points; outside the picture is black."""
    reach = int(3 * sigma)
    taps = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2).astype(np.float32)
    taps /= taps.sum()
    for axis in (0, 1):
        padded = np.pad(values, [(reach, reach) if a == axis else (0, 0) for a in (0, 1)])
        windows = np.lib.stride_tricks.sliding_window_view(padded, len(taps), axis=axis)
        values = windows @ taps
    return values


def waves(rng: np.random.Generator, n: int) -> np.ndarray:
    """A smooth random field [n, n] about 0, mostly between -1 and 1."""
    x, y = points(n // 2)
    field = np.zeros_like(x)
    for _ in range(4):
        angle, length, phase = rng.uniform((0, 0.25, 0), (2 * np.pi, 0.6, 2 * np.pi))
        along = np.float32(np.cos(angle)) * x + np.float32(np.sin(angle)) * y
        field += 0.5 * np.sin(2 * np.pi / np.float32(length) * along + np.float32(phase))
    return field

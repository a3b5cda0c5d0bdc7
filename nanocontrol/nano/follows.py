"""`follows`: the share of a scene's things that a picture shows as the scene has them. A thing is
right if both hold:

| kind and place | where the detector sees its kind, and where it truly is, overlap: intersection |
|                | over union above 0.6. Pixels of other things of its kind are left out.        |
| colour         | of its true pixels more than 60 % are nearest to its colour, of all COLOURS   |
|                | in light and shade                                                            |

Things of which fewer than 40 pixels are seen (of 64 x 64; in proportion at other sizes) do not
count, nor those that the condition does not show: a pose tells of figures only, Hough lines tell of
cubes and pyramids only.
"""

import numpy as np
from torch import Tensor

from nanocontrol.nano.conditions import NEEDED
from nanocontrol.nano.detector import KIND, Detector, kinds_of
from nanocontrol.nano.world import COLOURS, KINDS, PIXELS, SHADES, Drawing, Scene, draw

OVERLAP, COLOURED = 0.6, 0.6  # what must be exceeded
SEEN = 40 / PIXELS**2  # of the picture, at least


def follows(
    condition: str | None, images: Tensor, scenes: list[Scene], detector: Detector
) -> float | None:
    """images [B, 3, H, W] in [-1, 1], which were to follow the scenes -> the share of the things
    that are right; None if no thing counts. Without a condition things of all kinds count."""
    images = detector.fitted(images.float())
    logits = detector(images)[0][:, KIND]
    drawings = [draw(scene, detector.size) for scene in scenes]
    pictures = ((images + 1) / 2).permute(0, 2, 3, 1).numpy()
    right = [
        kind_and_place(kinds, drawing, i) and colour_is_right(picture, drawing, i)
        for picture, kinds, drawing in zip(pictures, logits.argmax(dim=1).numpy(), drawings)
        for i in counted(condition, drawing)
    ]
    return float(np.mean(right)) if right else None


def counted(condition: str | None, drawing: Drawing) -> list[int]:
    """The numbers of the things that count; as in `Drawing.shown`, the first thing is 1."""
    shown_kinds = NEEDED.get(condition or "", KINDS)
    return [
        i
        for i, thing in enumerate(drawing.scene.things, 1)
        if thing.kind in shown_kinds and (drawing.shown == i).mean() >= SEEN
    ]


def kind_and_place(kinds: np.ndarray, drawing: Drawing, i: int) -> bool:
    """kinds [size, size]: 0 where the detector sees the wall, 1 the first of KINDS, ..."""
    own, kind = drawing.shown == i, KINDS.index(drawing.scene.things[i - 1].kind) + 1
    found = (kinds == kind) & (own | (kinds_of(drawing) != kind))
    return bool((found & own).sum() > OVERLAP * (found | own).sum())


def colour_is_right(picture: np.ndarray, drawing: Drawing, i: int) -> bool:
    """picture [size, size, 3], RGB in 0..1."""
    colour = list(COLOURS).index(drawing.scene.things[i - 1].colour)
    return bool((nearest_colours(picture[drawing.shown == i]) == colour).mean() > COLOURED)


def nearest_colours(pixels: np.ndarray) -> np.ndarray:
    """RGB in 0..1 [..., 3] -> the number of the nearest of COLOURS, in light and shade, [...]."""
    shades = np.linspace(*SHADES, 6)
    colours = np.stack([np.minimum(shade * COLOURS[n], 1) for n in COLOURS for shade in shades])
    away = np.linalg.norm(pixels[..., None, :] - colours, axis=-1)
    return away.argmin(axis=-1) // len(shades)

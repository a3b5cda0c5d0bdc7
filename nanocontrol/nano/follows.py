"""`follows`: the share of a scene's objects that a picture shows correctly. An object is correct if
both of these hold:

| kind and place | The pixels where the detector finds its kind and its true pixels have an      |
|                | intersection over union above 0.6. Pixels of other objects of its kind are    |
|                | left out.                                                                     |
| colour         | For more than 60 % of its true pixels, its colour is the nearest of all       |
|                | COLOURS, in light and shade.                                                  |

An object counts if at least 40 of 64 x 64 pixels of it are visible, or as large a share at other
sizes, and if the condition shows it. A pose shows figures only, and Hough lines show cubes and
pyramids only.
"""

import numpy as np
from torch import Tensor

from nanocontrol.nano.conditions import NEEDED
from nanocontrol.nano.detector import KIND, Detector, kinds_of
from nanocontrol.nano.world import COLOURS, KINDS, PIXELS, SHADES, Drawing, Scene, draw

OVERLAP, COLOURED = 0.6, 0.6  # both must be exceeded
SEEN = 40 / PIXELS**2  # smallest visible share of the picture


def follows(
    condition: str | None, images: Tensor, scenes: list[Scene], detector: Detector
) -> float | None:
    """The share of correct objects in images [B, 3, H, W] in [-1, 1], which were to follow the
    scenes; None if no object counts. Without a condition, objects of all kinds count."""
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
    """The numbers of the objects that count. As in `Drawing.shown`, the first object is 1."""
    shown_kinds = NEEDED.get(condition or "", KINDS)
    return [
        i
        for i, thing in enumerate(drawing.scene.things, 1)
        if thing.kind in shown_kinds and (drawing.shown == i).mean() >= SEEN
    ]


def kind_and_place(kinds: np.ndarray, drawing: Drawing, i: int) -> bool:
    """Whether kind and place of object i are correct. kinds [size, size]: the kinds that the
    detector finds, 0 for the wall, 1 for the first of KINDS, ..."""
    own, kind = drawing.shown == i, KINDS.index(drawing.scene.things[i - 1].kind) + 1
    found = (kinds == kind) & (own | (kinds_of(drawing) != kind))
    return bool((found & own).sum() > OVERLAP * (found | own).sum())


def colour_is_right(picture: np.ndarray, drawing: Drawing, i: int) -> bool:
    """Whether the colour of object i is correct. picture [size, size, 3], RGB in 0..1."""
    colour = list(COLOURS).index(drawing.scene.things[i - 1].colour)
    return bool((nearest_colours(picture[drawing.shown == i]) == colour).mean() > COLOURED)


def nearest_colours(pixels: np.ndarray) -> np.ndarray:
    """Pixels [..., 3], RGB in 0..1 -> indices [...] of the nearest COLOURS, in light and shade."""
    shades = np.linspace(*SHADES, 6)
    colours = np.stack([np.minimum(shade * COLOURS[n], 1) for n in COLOURS for shade in shades])
    away = np.linalg.norm(pixels[..., None, :] - colours, axis=-1)
    return away.argmin(axis=-1) // len(shades)

"""Is this a hint that the ControlNet was trained on? And a hint that would be."""

import re
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanocontrol.doctor.hints import TrainingHints, differences
from nanocontrol.nano.conditions import APPEARANCE, thick_lines
from nanocontrol.nano.scenes import Scenes
from nanocontrol.page.sketch import PALETTE, colour_of, in_bytes, png

SCENES = 16  # whose hints a new one is compared with
WHITE_LINES = "white lines on black"


@cache
def training_hints(condition: str, size: int) -> TrainingHints:
    """The appearance of the hints of a condition's training."""
    scenes = Scenes(condition, size=size)
    return TrainingHints.of([scenes[i][1] for i in range(SCENES)])


def check_of(hint: Tensor, condition: str) -> dict[str, Any]:
    """How a hint [3, H, W] differs from the training's, and one in which that is repaired as far as
    possible."""
    training, fixed, fixes = training_hints(condition, len(hint[0])), hint, list[str]()
    found = after = differences(hint, training)
    for fix, (signs, repair) in FIXES.items():
        if re.search(signs, "; ".join(after)):
            changed = in_bytes(repair(fixed, condition, training))
            if not torch.equal(changed, fixed):
                fixed, fixes, after = changed, [*fixes, fix], differences(changed, training)
    check = {"fits": not found, "differences": found, "fixes": fixes, "after": after}
    return check | {"fixed": png(fixed) if fixes else None}


def thinned(hint: Tensor, condition: str, training: TrainingHints) -> Tensor:
    """Lines of the training's width."""
    if APPEARANCE[condition][0] != WHITE_LINES:
        return hint
    lines = skeleton(hint.amax(dim=0).numpy() > 0.25)
    lines = thick_lines(lines, max(0, round((training.usual.width - 1) / 2)))
    return torch.from_numpy(lines).float().expand(3, -1, -1)


def in_its_colours(hint: Tensor, condition: str, training: TrainingHints) -> Tensor:
    if APPEARANCE[condition][0] == WHITE_LINES:
        return (hint.amax(dim=0) > 0.25).float().expand(3, -1, -1)
    if condition != "pose":
        return hint
    colours = np.stack([colour_of(code) for code in ("#000000", *PALETTE)])
    pixels = hint.permute(1, 2, 0).numpy()
    nearest = np.square(pixels[:, :, None] - colours).sum(axis=-1).argmin(axis=-1)
    return torch.from_numpy(colours[nearest]).permute(2, 0, 1)


FIXES = {  # each with the words of the differences that it is for, in the order of repair
    "invert": ("inverted", lambda hint, *_: 1 - hint),
    "swap red and blue": ("red and blue", lambda hint, *_: hint.flip(0)),
    "colours": ("of another kind|has colours", in_its_colours),
    "strength": ("faint", lambda hint, *_: hint / hint.max().clamp(min=1e-3)),
    "line width": ("pixels wide", thinned),
}


def skeleton(lines: np.ndarray) -> np.ndarray:
    """Lines [H, W], bool, thinned to one pixel without breaking them (Zhang & Suen 1984)."""
    lines = np.pad(lines, 1)
    while True:
        before = lines.sum()
        for first in (True, False):
            rolls = [(-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1)]
            p = np.stack([np.roll(lines, (-y, -x), axis=(0, 1)) for y, x in rolls])
            n, turns = p.sum(axis=0), (~p & np.roll(p, -1, axis=0)).sum(axis=0)
            up, right, down, left = p[0], p[2], p[4], p[6]
            sides = (right & down & (up | left)) if first else (up & left & (right | down))
            lines = lines & ~((n >= 2) & (n <= 6) & (turns == 1) & ~sides)
        if lines.sum() == before:
            return lines[1:-1, 1:-1]

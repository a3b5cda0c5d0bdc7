"""The film of a run: pictures from the same noise over the steps, and the curves below them."""

import math
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageDraw

from nanocontrol.plumbing.pictures import columns_with_titles

COLUMNS = 12  # pictures over the steps: more would be too small to see on a page
CURVES = 96  # pixels, the height of the curves
COLOURS = ("#c00000", "#606060")

Curve = list[tuple[int, float]]  # (step, value)


def chosen(steps: Sequence[int]) -> list[int]:
    """The first of the steps, and counted from the last every one, every second, every third, ...,
    so that there are at most COLUMNS."""
    every = max(1, math.ceil((len(steps) - 1) / (COLUMNS - 1)))
    return sorted({steps[0], *steps[::-every]})


def film(
    hints: np.ndarray, made: dict[int, np.ndarray], width: int, curves: dict[str, Curve]
) -> Image.Image:
    """A column of hints, then one for every step: its pictures, and under them the curves.

    hints, and what was made at each step: strips of pictures side by side [H, n * width, 3], bytes;
    curves: what was measured, by name.
    """
    titles = ["hint", *map(str, made)]
    pictures = columns_with_titles([hints, *made.values()], titles, width)
    whole = Image.new("RGB", (pictures.width, pictures.height + CURVES), "white")
    whole.paste(pictures)
    centres = [(i + 1.5) * width for i in range(len(made))]
    for i, (name, curve) in enumerate(curves.items()):
        steps, values = zip(*curve)
        x = np.interp(steps, list(made), centres)
        y = whole.height - 6 - (CURVES - 12) * share_of_range(values)
        drawing = ImageDraw.Draw(whole)
        drawing.line(list(zip(x.tolist(), y.tolist())), fill=COLOURS[i], width=2)
        label = f"{name}\n{values[0]:.3f} to {values[-1]:.3f}"
        drawing.text((4, pictures.height + 8 + 40 * i), label, fill=COLOURS[i])
    return whole


def share_of_range(values: Sequence[float]) -> np.ndarray:
    """Values as shares of the range from 0 to the largest: what hardly changes looks flat."""
    low, high = min(0.0, *values), max(values)
    return (np.array(values) - low) / (high - low or 1)

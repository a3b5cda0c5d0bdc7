"""The film of a run: pictures from the same noise in the course of training, and curves."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image, ImageDraw

from nanocontrol.plumbing.pictures import columns_with_titles

ROWS, COLUMNS = 4, 7  # a row for each pair; a column for the hints, and one for each of six steps
PLOT, BORDER = 420, 48  # pixels: the plot's width, and the margin for its labels
COLOURS = ("#c00000", "#606060")

Curve = list[tuple[int, float]]  # (step, value)


def chosen(steps: Sequence[int]) -> list[int]:
    """The steps to show: the first one, and every n-th one counted back from the last. There may
    be none."""
    every = max(1, math.ceil((len(steps) - 1) / (COLUMNS - 2)))
    return sorted({*steps[:1], *steps[::-every]})


def film(
    hints: np.ndarray, made: dict[int, np.ndarray], width: int, curves: dict[str, Curve], first: int
) -> Image.Image:
    """A column of hints, a column of pictures for every step, and next to them a plot per curve.

    hints: n pictures side by side [H, n * width, 3], bytes, of which the first ROWS are shown.
    made: the pictures made at each step, in the same form.
    curves: numbers measured on all pairs but the `first` ones, by name.
    """
    pairs, shown = hints.shape[1] // width - first, slice(ROWS * width)
    strips = [hints[:, shown], *(with_lines(p[:, shown], hints[:, shown]) for p in made.values())]
    pictures = columns_with_titles(strips, ["hint", *(f"step {step}" for step in made)], width)
    height = max(3 * BORDER, pictures.height // max(1, len(curves)))  # of a plot
    size = pictures.width + PLOT, max(pictures.height, height * len(curves))
    whole = Image.new("RGB", size, "white")
    whole.paste(pictures)
    for i, (name, curve) in enumerate(curves.items()):
        box = pictures.width + BORDER, i * height + BORDER // 2, whole.width - BORDER // 2, height
        title = f"{name}, held-out pairs: {pairs}"
        draw_curve(ImageDraw.Draw(whole), box, title, curve, COLOURS[i])
    return whole


def with_lines(pictures: np.ndarray, hints: np.ndarray) -> np.ndarray:
    """The pictures with the hints' lines drawn over them, both [H, W, 3], bytes. Pictures whose
    hints are no line drawings are unchanged."""
    lines = hints.max(axis=-1, keepdims=True) > 127
    inside = sliding_window_view(lines[..., 0], (3, 3)).all(axis=(2, 3))  # a line has none
    if lines.mean() > 0.2 or inside.sum() > 0.3 * lines.sum():
        return pictures
    light = pictures.mean(axis=-1, keepdims=True) > 150
    return np.where(lines, np.where(light, 0, 255), pictures).astype(np.uint8)


def draw_curve(
    draw: ImageDraw.ImageDraw, box: tuple[int, int, int, int], title: str, curve: Curve, colour: str
) -> None:
    """Draw a curve with axes that include 0. box: left, top, right, and the height with labels."""
    left, top, right, bottom = *box[:3], box[1] + box[3] - BORDER
    steps, values = (np.array(column, dtype=float) for column in zip(*curve))
    low, high = min(0.0, values.min()), max(values.max(), 1e-9)
    x = left + (right - left) * steps / max(steps.max(), 1)
    y = bottom - (bottom - top) * (values - low) / (high - low)
    draw.line([(left, top), (left, bottom), (right, bottom)], fill="black")
    draw.text((left, top - 4), title, fill=colour, anchor="ld")
    for value, at in (low, bottom), (high, top):
        draw.text((left - 4, at), f"{value:.3g}", fill="black", anchor="rm")
    for step in (0, steps.max() / 2, steps.max()):
        at = left + (right - left) * step / max(steps.max(), 1)
        draw.text((at, bottom + 4), f"{step:g}", fill="black", anchor="ma")
    draw.line([*zip(x.tolist(), y.tolist())], fill=colour, width=2)

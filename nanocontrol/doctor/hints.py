"""The appearance of hints: their kind, their position on their pictures, and how a new hint differs
from those of a training."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanocontrol.nano.conditions import APPEARANCE
from nanocontrol.training.check import FLAT

SCALES = 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6, 2.0
EVEN, ODD = slice(0, None, 2), slice(1, None, 2)
NEAR = 0.05  # share of a side by which the shifts of two halves of the pairs may differ
BETTER = 0.1  # gain in correlation that makes a shift or a scale credible
SHADES = 6  # levels of red, of green and of blue in a palette
STRANGE = 0.25  # share of a hint in colours that no training hint has
EXCHANGED = 0.05  # share of a hint that a swap of red and blue must bring into the palette
WIDER = 1.8  # ratio of line widths above which they are reported as different
FAINT = 0.75  # strength of lines, relative to the training hints', below which they are faint
EMPTY = "a single colour"


class Looks(NamedTuple):
    """Measurements of one hint, or the medians of many hints."""

    mean: float
    deviation: float  # standard deviation, in the channel where it is largest
    two_valued: float  # share of the pixels that are black or white
    coloured: float  # share of the pixels that are not grey
    black: float  # share of the pixels
    white: float  # share of the pixels
    normals: float  # share of the pixels whose colour is a normal: a vector of length 1
    width: float  # of the lines in pixels; the thinnest possible have about 1
    strength: float  # 0..1, brightness of the drawn pixels, or darkness on white
    short_side: float  # pixels

    @property
    def kind(self) -> str:
        """The kind of hint: one of those in APPEARANCE, the inverse of one, or EMPTY."""
        if self.deviation < FLAT:
            return EMPTY
        if self.normals > 0.6:
            return "normals"
        if self.coloured > 0.01:
            return "colours on black" if self.black > 0.6 else "areas of colours"
        if self.mean > 0.5 and self.two_valued > 0.85:
            return "black lines on white"
        if self.mean > 0.5 and self.white > 0.5:
            return "grey lines on white"
        if self.two_valued > 0.85:
            return "white lines on black"
        return "grey lines on black" if self.width < self.short_side / 16 else "grey areas"

    @property
    def has_lines(self) -> bool:
        return "lines" in self.kind or self.kind == "colours on black"


def looks_of(hint: Tensor) -> Looks:
    """Measure a hint [3, H, W] in [0, 1]."""
    brightest, darkest = hint.amax(dim=0), hint.amin(dim=0)
    black, white = brightest < 0.1, darkest > 0.9
    length = (hint * 2 - 1).norm(dim=0)
    lines = brightest > 0.5 if hint.mean() < 0.5 else darkest < 0.5
    drawn = brightest if hint.mean() < 0.5 else 1 - darkest
    # A line's width is its area divided by half the length of its border.
    border = lines.diff(dim=0).sum() + lines.diff(dim=1).sum()
    return Looks(
        hint.mean().item(),
        hint.std(dim=(1, 2)).max().item(),
        share(black | white),
        share(brightest - darkest > 0.1),
        share(black),
        share(white),
        share((length - 1).abs() < 0.15),
        (2 * lines.sum() / border.clamp(min=1)).item(),
        drawn[drawn > 0.1].mean().nan_to_num().item(),
        min(hint.shape[1:]),
    )


def share(pixels: Tensor) -> float:
    """The share of pixels [H, W], bool, that are true."""
    return pixels.float().mean().item()


def usual(looks: Sequence[Looks]) -> Looks:
    """The median of each measurement."""
    return Looks(*np.median(np.array(looks), axis=0).tolist())


def could_be(condition: str, looks: Looks) -> bool:
    """Whether the measurements fit a condition's hints."""
    kind, (least, most) = APPEARANCE[condition]
    return looks.kind == kind and least <= looks.width < most


def palette(hint: Tensor) -> np.ndarray:
    """The shares of a hint's colours [SHADES^3], without black."""
    levels = (hint * SHADES).long().clamp(max=SHADES - 1)
    numbers = (levels[0] * SHADES + levels[1]) * SHADES + levels[2]
    counts = torch.bincount(numbers.flatten(), minlength=SHADES**3).float()
    counts[0] = 0
    return (counts / counts.sum().clamp(min=1)).numpy()


# ----------------------------------------------------------------------------- on their pictures


class Place(NamedTuple):
    """The position of hints relative to their pictures, where the edges of both agree best."""

    scale: float  # of the hint relative to the picture
    right: float  # shift of the hint, in shares of the picture's sides
    down: float
    agreement: float  # correlation of the edges at this position
    unmoved: float  # correlation without shift and scale

    @property
    def moved(self) -> bool:
        return (self.scale, self.right, self.down) != (1, 0, 0)


def place_of(pictures: Sequence[Tensor], hints: Sequence[Tensor]) -> Place:
    """The position of hints on their pictures, from edge maps [h, w] of both (check.edge_map). A
    shift or scale is believed only if each half of the pairs alone gives nearly the same."""
    spectra = torch.fft.rfft2(torch.stack([standardised(edges) for edges in pictures]))
    maps = []
    for scale in SCALES:
        scaled = torch.stack([standardised(resized(edges, 1 / scale)) for edges in hints])
        # The correlation at every shift at once, as a product of spectra.
        product = torch.fft.rfft2(scaled) * spectra.conj()
        maps.append(torch.fft.irfft2(product, s=scaled.shape[1:]))
    correlation = torch.stack(maps)  # [scales, pairs, down, right]
    unmoved = correlation[SCALES.index(1.0), :, 0, 0].mean().item()
    best, *halves = (best_of(correlation[:, part]) for part in (slice(None), EVEN, ODD))
    alone = len(hints) < 4 or not all(nearly_same(best, half) for half in halves)
    if alone or best.agreement < unmoved + BETTER:
        return Place(1.0, 0.0, 0.0, unmoved, unmoved)
    return best._replace(unmoved=unmoved)


def best_of(correlation: Tensor) -> Place:
    """The scale and shift of the highest mean over the pairs. correlation: [scales, pairs, down,
    right], with at least one pair."""
    mean = correlation.mean(dim=1)
    _, height, width = mean.shape
    scale, place = divmod(int(mean.nan_to_num().argmax()), height * width)
    down, right = centred(place // width, height), centred(place % width, width)
    return Place(SCALES[scale], right / width, down / height, mean.max().item(), 0.0)


def nearly_same(a: Place, b: Place) -> bool:
    scales = abs(SCALES.index(a.scale) - SCALES.index(b.scale))
    return scales <= 1 and max(abs(a.right - b.right), abs(a.down - b.down)) < NEAR


def centred(shift: int, side: int) -> int:
    """A cyclic shift of 0..side - 1, expressed as -side / 2..side / 2."""
    return (shift + side // 2) % side - side // 2


def standardised(edges: Tensor) -> Tensor:
    """The edges with mean 0 and norm 1. The sum of the products of two such maps is their
    correlation."""
    edges = edges - edges.mean()
    return edges / edges.norm().clamp(min=1e-6)


def resized(edges: Tensor, scale: float) -> Tensor:
    """The map [h, w], scaled about its middle. Cells that enter at the border are 0."""
    theta = torch.tensor([[1 / scale, 0, 0], [0, 1 / scale, 0]])
    grid = F.affine_grid(theta[None], [1, 1, *edges.shape], align_corners=False)
    return F.grid_sample(edges[None, None], grid, align_corners=False)[0, 0]


# --------------------------------------------------------------- a new hint next to the others


class TrainingHints(NamedTuple):
    """The appearance of a training's hints."""

    kinds: set[str]  # without rare ones
    usual: Looks
    brightest: float  # the largest mean of a hint
    colours: np.ndarray  # the mean palette
    one_way: float  # share of a hint that swapping red and blue takes out of the palette, median

    @classmethod
    def of(cls, hints: Sequence[Tensor]) -> Self:
        """Measure hints [3, H, W] in [0, 1]."""
        looks = [looks_of(hint) for hint in hints]
        counts = Counter(look.kind for look in looks)
        kinds = {kind for kind, n in counts.items() if n >= len(looks) / 16}
        colours = np.mean([palette(hint) for hint in hints], axis=0)
        costs = [shared(hint, colours) - shared(hint.flip(0), colours) for hint in hints]
        brightest = max(look.mean for look in looks)
        return cls(kinds, usual(looks), brightest, colours, float(np.median(costs)))


def differences(hint: Tensor, training: TrainingHints) -> list[str]:
    """The ways in which a hint [3, H, W] in [0, 1] differs from those of a training: a line each,
    the most important first."""
    own, common = looks_of(hint), training.usual
    known = own.kind in training.kinds
    others = f"those of the training are {common.kind} with mean {common.mean:.2f}"
    found = []
    if own.kind == EMPTY:
        return ["it is empty: a single colour"]
    if is_inverted(hint, own, training):
        found.append(f"it is inverted: {own.kind} with mean {own.mean:.2f}; {others}")
    elif is_exchanged(hint, own, training):
        found.append(
            "its red and blue are swapped: swapped back, its colours are those of the training's "
            "hints"
        )
    elif not known:
        found.append(f"it is of another kind: {own.kind}; {others}")
    elif own.coloured > 0.01 and (new := strange(hint, training.colours)) > STRANGE:
        found.append(f"{new:.0%} of the drawing has colours that no hint of the training has")
    apart = max(own.width, common.width) > WIDER * min(own.width, common.width)
    if known and common.has_lines and apart:
        widths = f"{own.width:.1f} pixels wide, those of the training's hints {common.width:.1f}"
        found.append(f"its lines are {widths}")
    if known and common.has_lines and own.strength < FAINT * common.strength:
        strengths = f"of strength {own.strength:.2f}, those of the training's {common.strength:.2f}"
        found.append(f"its lines are faint: {strengths} (1: white on black or black on white)")
    return found


def is_inverted(hint: Tensor, own: Looks, training: TrainingHints) -> bool:
    """Whether the hint's negative looks like the training's hints and the hint does not."""
    negative = looks_of(1 - hint)
    if own.kind not in training.kinds:
        # The kind alone is not enough: negatives of other kinds of hints are often areas, too.
        return negative.kind in training.kinds and not strange(1 - hint, training.colours) > STRANGE
    if own.coloured > 0.01:
        return shared(1 - hint, training.colours) - shared(hint, training.colours) > STRANGE
    bright = training.brightest + 0.1
    return own.mean > bright > negative.mean


def is_exchanged(hint: Tensor, own: Looks, training: TrainingHints) -> bool:
    """Whether swapping red and blue makes the hint look like the training's, which it does not."""
    colours, other = training.colours, hint.flip(0)
    if own.coloured < 0.01:
        return False
    if training.one_way > EXCHANGED and shared(other, colours) > shared(hint, colours) + EXCHANGED:
        return True
    return strange(hint, colours) > 0.1 and strange(hint, colours) > 4 * strange(other, colours)


def shared(hint: Tensor, colours: np.ndarray) -> float:
    """The share of the drawing that a hint has in common with a palette."""
    return float(np.minimum(palette(hint), colours).sum())


def strange(hint: Tensor, colours: np.ndarray) -> float:
    """The share of the drawing in colours that a palette does not have."""
    return float(palette(hint)[colours < 0.001].sum())

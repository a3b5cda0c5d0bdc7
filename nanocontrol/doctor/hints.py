"""What hints look like: their kind, how they lie on their pictures, and whether a new one is like
those of a training."""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple, Self

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanocontrol.training.check import FLAT

# What the hints of a condition look like: Looks.kind, and of lines the width in pixels, at least
# and below.
ANY = 0.0, 1e9
KINDS: dict[str, tuple[str, tuple[float, float]]] = {
    "canny": ("white lines on black", (0, 1.6)),  # as thin as can be
    "hough": ("white lines on black", ANY),
    "scribble": ("white lines on black", (1.6, 1e9)),
    "cartoon": ("black lines on white", ANY),
    "soft": ("grey lines on black", ANY),
    "depth": ("grey areas", ANY),
    "pose": ("colours on black", ANY),
    "segmentation": ("areas of colours", ANY),
    "normals": ("normals", ANY),
}
SCALES = 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6, 2.0
EVEN, ODD = slice(0, None, 2), slice(1, None, 2)
NEAR = 0.05  # of a picture's side: how far apart two halves of the pairs may place the hints
BETTER = 0.1  # correlation that a shift or a scale must gain to be believed
SHADES = 6  # of red, of green and of blue, that a palette tells apart
STRANGE = 0.25  # share of a hint in colours that the others never have
EXCHANGED = 0.05  # share of a hint that red for blue must bring into the palette of the others
WIDER = 1.8  # times: lines of another width
FAINT = 0.75  # share of the others' strength
EMPTY = "one colour all over"


class Looks(NamedTuple):
    """Of one hint, or the medians of many."""

    mean: float
    deviation: float  # in the channel where it is largest
    two_valued: float  # share of the pixels that are black or white
    coloured: float  # share of the pixels that are not grey
    black: float  # share of the pixels
    white: float  # share of the pixels
    normals: float  # share of the pixels whose colour is a normal: a vector of length 1
    width: float  # of the lines in pixels: about 1 if they are as thin as can be
    strength: float  # 0..1, how bright what is drawn is, or how dark on white
    short_side: float  # pixels

    @property
    def kind(self) -> str:
        """One of those in KINDS, empty, or the inverse of one."""
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
    """hint [3, H, W] in [0, 1]."""
    brightest, darkest = hint.amax(dim=0), hint.amin(dim=0)
    black, white = brightest < 0.1, darkest > 0.9
    length = (hint * 2 - 1).norm(dim=0)
    lines = brightest > 0.5 if hint.mean() < 0.5 else darkest < 0.5
    drawn = brightest if hint.mean() < 0.5 else 1 - darkest
    # An area over half of its border: of a line that is its width.
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
    """[H, W], bool"""
    return pixels.float().mean().item()


def usual(looks: Sequence[Looks]) -> Looks:
    """Medians."""
    return Looks(*np.median(np.array(looks), axis=0).tolist())


def could_be(condition: str, looks: Looks) -> bool:
    """Whether a condition's hints look so."""
    kind, (least, most) = KINDS[condition]
    return looks.kind == kind and least <= looks.width < most


def palette(hint: Tensor) -> np.ndarray:
    """Shares of its colours [SHADES^3], without black."""
    levels = (hint * SHADES).long().clamp(max=SHADES - 1)
    numbers = (levels[0] * SHADES + levels[1]) * SHADES + levels[2]
    counts = torch.bincount(numbers.flatten(), minlength=SHADES**3).float()
    counts[0] = 0
    return (counts / counts.sum().clamp(min=1)).numpy()


# ----------------------------------------------------------------------------- on their pictures


class Place(NamedTuple):
    """How hints lie on their pictures: where the edges of both agree best."""

    scale: float  # of the hint against the picture
    right: float  # shift of the hint in shares of the picture's sides
    down: float
    agreement: float  # correlation of the edges there
    unmoved: float  # and without shift and scale

    @property
    def moved(self) -> bool:
        return (self.scale, self.right, self.down) != (1, 0, 0)


def place_of(pictures: Sequence[Tensor], hints: Sequence[Tensor]) -> Place:
    """Maps of edges [h, w], of pictures and of their hints (check.edges_of). They are believed to
    be moved only where both halves of the pairs say so."""
    spectra = torch.fft.rfft2(torch.stack([standardised(edges) for edges in pictures]))
    maps = []
    for scale in SCALES:
        scaled = torch.stack([standardised(resized(edges, 1 / scale)) for edges in hints])
        # Their correlation at every shift at once.
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
    """[scales, pairs, down, right], at least one pair"""
    mean = correlation.mean(dim=1)
    _, height, width = mean.shape
    scale, place = divmod(int(mean.nan_to_num().argmax()), height * width)
    down, right = centred(place // width, height), centred(place % width, width)
    return Place(SCALES[scale], right / width, down / height, mean.max().item(), 0.0)


def nearly_same(a: Place, b: Place) -> bool:
    return (
        abs(SCALES.index(a.scale) - SCALES.index(b.scale)) <= 1
        and max(abs(a.right - b.right), abs(a.down - b.down)) < NEAR
    )


def centred(shift: int, side: int) -> int:
    """0..side - 1, around the border -> the same from -side / 2 on."""
    return (shift + side // 2) % side - side // 2


def standardised(edges: Tensor) -> Tensor:
    """So that the sum of the products of two is their correlation."""
    edges = edges - edges.mean()
    return edges / edges.norm().clamp(min=1e-6)


def resized(edges: Tensor, scale: float) -> Tensor:
    """[h, w] about its middle; what comes in at the border is nothing."""
    theta = torch.tensor([[1 / scale, 0, 0], [0, 1 / scale, 0]])
    grid = F.affine_grid(theta[None], [1, 1, *edges.shape], align_corners=False)
    return F.grid_sample(edges[None, None], grid, align_corners=False)[0, 0]


# ------------------------------------------------------------------- a new one beside the others


class TrainingHints(NamedTuple):
    """What the hints of a training look like."""

    kinds: set[str]  # without the rare ones
    usual: Looks
    brightest: float  # the largest of their means
    colours: np.ndarray  # the mean of their palettes
    one_way: float  # median of the hints' share in the palette that red for blue would cost

    @classmethod
    def of(cls, hints: Sequence[Tensor]) -> Self:
        """hints: [3, H, W] in [0, 1]."""
        looks = [looks_of(hint) for hint in hints]
        counts = Counter(look.kind for look in looks)
        kinds = {kind for kind, n in counts.items() if n >= len(looks) / 16}
        colours = np.mean([palette(hint) for hint in hints], axis=0)
        costs = [shared(hint, colours) - shared(hint.flip(0), colours) for hint in hints]
        brightest = max(look.mean for look in looks)
        return cls(kinds, usual(looks), brightest, colours, float(np.median(costs)))


def differences(hint: Tensor, training: TrainingHints) -> list[str]:
    """How a hint [3, H, W] in [0, 1] differs from those of a training: a line for each way, the
    most telling first."""
    own, common = looks_of(hint), training.usual
    known = own.kind in training.kinds
    others = f"those of the training are {common.kind} of mean {common.mean:.2f}"
    found = []
    if own.kind == EMPTY:
        return ["it is empty: one colour all over"]
    if is_inverted(hint, own, training):
        found.append(f"it is inverted: {own.kind} of mean {own.mean:.2f}; {others}")
    elif is_exchanged(hint, own, training):
        found.append(
            "its red and blue are exchanged: with the two exchanged back its colours are those of "
            "the training's hints"
        )
    elif not known:
        found.append(f"it is of another kind: {own.kind}; {others}")
    elif own.coloured > 0.01 and (new := strange(hint, training.colours)) > STRANGE:
        found.append(f"{new:.0%} of what is drawn has colours that no hint of the training has")
    apart = max(own.width, common.width) > WIDER * min(own.width, common.width)
    if known and common.has_lines and apart:
        widths = f"{own.width:.1f} pixels wide, those of the training's hints {common.width:.1f}"
        found.append(f"its lines are {widths}")
    if known and common.has_lines and own.strength < FAINT * common.strength:
        strengths = f"of strength {own.strength:.2f}, those of the training's {common.strength:.2f}"
        found.append(f"its lines are faint: {strengths} (1: white on black or black on white)")
    return found


def is_inverted(hint: Tensor, own: Looks, training: TrainingHints) -> bool:
    """Whether its negative is like the training's hints and it is not."""
    negative = looks_of(1 - hint)
    if own.kind not in training.kinds:
        # (Of drawn areas the negative of another kind of hint would often do.)
        return negative.kind in training.kinds and not strange(1 - hint, training.colours) > STRANGE
    if own.coloured > 0.01:
        gain = shared(1 - hint, training.colours) - shared(hint, training.colours)
        return gain > STRANGE
    bright = training.brightest + 0.1
    return own.mean > bright > negative.mean


def is_exchanged(hint: Tensor, own: Looks, training: TrainingHints) -> bool:
    """Whether it would be like the training's hints with red for blue, and is not."""
    colours, other = training.colours, hint.flip(0)
    if own.coloured < 0.01:
        return False
    if training.one_way > EXCHANGED and shared(other, colours) > shared(hint, colours) + EXCHANGED:
        return True
    return strange(hint, colours) > 0.1 and strange(hint, colours) > 4 * strange(other, colours)


def shared(hint: Tensor, colours: np.ndarray) -> float:
    """The share of what is drawn that it has in common with a palette."""
    return float(np.minimum(palette(hint), colours).sum())


def strange(hint: Tensor, colours: np.ndarray) -> float:
    """The share of what is drawn in colours that a palette does not have."""
    return float(palette(hint)[colours < 0.001].sum())

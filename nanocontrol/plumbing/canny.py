"""Canny's edge detector, for photographs and drawn pictures. It is the only detector for
photographs here; the README of nanocontrol.tools names others."""

import torch
import torch.nn.functional as F
from torch import Tensor


def canny(image: Tensor, low: int, high: int) -> Tensor:
    """A picture's edges, white on black, as in the original's hints (Canny 1986).

    image [3, H, W], RGB in [0, 1] -> [3, H, W] of zeros and ones.
    low, high: thresholds for |dx| + |dy|, where dx and dy are Sobel differences of bytes. An edge
    is a ridge of the gradient above `low` that is connected to one above `high`. Integers are used,
    and ties are broken as in OpenCV's `Canny`, so both give identical edges.
    """
    dx, dy = sobel((image * 255).round().int())
    magnitude = dx.abs() + dy.abs()
    strongest = magnitude.max(dim=0, keepdim=True).indices  # of the three channels
    dx, dy, magnitude = (x.gather(0, strongest)[0] for x in (dx, dy, magnitude))
    ridge = is_ridge(magnitude, dx, dy) & (magnitude > low)
    return connected(ridge & (magnitude > high), ridge).float().repeat(3, 1, 1)


def sobel(image: Tensor) -> tuple[Tensor, Tensor]:
    """Sobel differences of each channel, to the right and downwards; border pixels are repeated."""
    x = F.pad(image.float(), (1, 1, 1, 1), mode="replicate").int()
    right = x[:, :, 2:] - x[:, :, :-2]
    down = x[:, 2:] - x[:, :-2]
    dx = right[:, :-2] + 2 * right[:, 1:-1] + right[:, 2:]
    dy = down[:, :, :-2] + 2 * down[:, :, 1:-1] + down[:, :, 2:]
    return dx, dy


def is_ridge(magnitude: Tensor, dx: Tensor, dy: Tensor) -> Tensor:
    """Where the magnitude [H, W] is a local maximum along the gradient, whose direction is rounded
    to a multiple of 45 degrees."""
    around = F.pad(magnitude, (1, 1, 1, 1))
    height, width = magnitude.shape

    def neighbour(down: int, right: int) -> Tensor:
        return around[1 + down : 1 + down + height, 1 + right : 1 + right + width]

    # The tangents of 22.5 and 67.5 degrees are 0.4142 and 2.4142, here as fractions of 2^15.
    x, y = dx.abs(), dy.abs() * 2**15
    horizontal, vertical = y < 13573 * x, y > (13573 + 2**16) * x
    falling = (dx < 0) == (dy < 0)  # to the lower right
    # Among equal neighbours, one is taken.
    along_x = (magnitude > neighbour(0, -1)) & (magnitude >= neighbour(0, 1))
    along_y = (magnitude > neighbour(-1, 0)) & (magnitude >= neighbour(1, 0))
    along_falling = (magnitude > neighbour(-1, -1)) & (magnitude > neighbour(1, 1))
    along_rising = (magnitude > neighbour(-1, 1)) & (magnitude > neighbour(1, -1))
    diagonal = torch.where(falling, along_falling, along_rising)
    return torch.where(horizontal, along_x, torch.where(vertical, along_y, diagonal))


def connected(seeds: Tensor, allowed: Tensor) -> Tensor:
    """The pixels of `allowed` that are connected to a seed through others; all [H, W], bool."""
    while True:
        grown = thicker(seeds) & allowed
        if torch.equal(grown, seeds):
            return seeds
        seeds = grown


def thicker(x: Tensor) -> Tensor:
    """The mask [H, W], bool, grown by one pixel in all eight directions."""
    wide = x.clone()
    wide[:, 1:] |= x[:, :-1]
    wide[:, :-1] |= x[:, 1:]
    tall = wide.clone()
    tall[1:] |= wide[:-1]
    tall[:-1] |= wide[1:]
    return tall

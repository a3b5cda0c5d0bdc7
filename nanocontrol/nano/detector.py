"""A small network that finds the objects and the maps of a drawn world's picture.

`python -m nanocontrol.nano.train detector` trains it, on drawn scenes alone. It does for the drawn
world what detectors of edges, depth or pose do for photographs. scores.py and follows.py use it to
score generated pictures. It takes no part in making them.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanocontrol.formats.tensors import read_tensors
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.world import KINDS, PIXELS, Drawing, Scene, draw, joints_of, points
from nanocontrol.plumbing.errors import InputError

# The channels of the detector's maps, each in 0..1 for every pixel.
KIND = slice(0, 6)  # whether it shows the wall, a ball, ... in the order of KINDS
DEPTH, NORMALS, HOUGH, SOFT, CARTOON = 6, slice(7, 10), 10, 11, 12
JOINTS = slice(13, 27)  # exp(-distance^2 / 8 pixels^2 of a picture of 64) from each joint


class Detector(nn.Module):
    """image [B, 3, H, W] in [-1, 1] -> logits of the maps [B, 27, size, size], and logits that the
    picture shows each of KINDS [B, 5]. size: of the pictures in its training."""

    def __init__(self, size: int = PIXELS, widths: tuple[int, ...] = (16, 32, 64, 96)):
        super().__init__()
        self.size = size
        self.first = nn.Conv2d(3, widths[0], 4, stride=2, padding=1)  # half the size is faster
        pairs = list(zip(widths, widths[1:]))
        self.down = nn.ModuleList(block(a, b) for a, b in pairs)
        self.middle = block(widths[-1], widths[-1])
        self.up = nn.ModuleList(block(a + b, a) for a, b in reversed(pairs))
        self.maps = nn.Conv2d(widths[0], 4 * JOINTS.stop, 3, padding=1)
        self.kinds = nn.Linear(widths[-1], len(KINDS))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x, skips = self.encode(image)
        kinds = self.kinds(x.amax(dim=(2, 3)))
        for up in self.up:
            x = up(torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], dim=1))
        return F.pixel_shuffle(self.maps(x), 2), kinds

    def encode(self, image: Tensor) -> tuple[Tensor, list[Tensor]]:
        """The middle's output [B, 96, size / 16, size / 16], and the feature maps before each
        halving."""
        x, skips = self.first(self.fitted(image)), []
        for down in self.down:
            skips.append(x)
            x = F.max_pool2d(down(x), 2)
        return self.middle(x), skips

    def fitted(self, image: Tensor) -> Tensor:
        """Pictures [B, 3, H, W], resized to the detector's size, [B, 3, size, size]."""
        if image.shape[-2:] == (self.size, self.size):
            return image
        return F.interpolate(image, (self.size, self.size), mode="bilinear", antialias=True)

    def features(self, image: Tensor) -> Tensor:
        """The middle's maxima over the picture [B, 96], from which it determines the kinds."""
        return self.encode(image)[0].amax(dim=(2, 3))


def block(before: int, after: int) -> nn.Sequential:
    def layer(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU()]

    return nn.Sequential(*layer(before, after), *layer(after, after))


def truth(scene: Scene, size: int = PIXELS) -> tuple[Tensor, Tensor, Tensor]:
    """A scene's picture and a perfect detector's output: image [3, size, size] in [-1, 1], maps
    [27, size, size] in 0..1, and whether each of KINDS is shown [5], as 0 or 1."""
    drawing = draw(scene, size)
    maps = np.zeros((JOINTS.stop, size, size), np.float32)
    maps[KIND] = kinds_of(drawing) == np.arange(len(KINDS) + 1)[:, None, None]
    maps[NORMALS] = CONDITIONS["normals"](drawing).transpose(2, 0, 1)
    for channel, name in (DEPTH, "depth"), (HOUGH, "hough"), (SOFT, "soft"), (CARTOON, "cartoon"):
        maps[channel] = CONDITIONS[name](drawing)[..., 0]
    x, y = (grid[::2, ::2] for grid in points(size))  # as in Drawing.shown
    for figure in scene.of("figure"):
        for joint, (jx, jy) in zip(maps[JOINTS], joints_of(figure)):
            np.maximum(joint, np.exp(-((x - jx) ** 2 + (y - jy) ** 2) * PIXELS**2 / 8), out=joint)
    shown = torch.tensor([bool(scene.of(kind)) for kind in KINDS])
    image = torch.from_numpy(drawing.image * 2 - 1).permute(2, 0, 1)
    return image, torch.from_numpy(maps), shown.float()


def kinds_of(drawing: Drawing) -> np.ndarray:
    """The kind at every pixel [size, size]: 0 for the wall, 1 for the first of KINDS, ..."""
    kinds = [0, *(KINDS.index(thing.kind) + 1 for thing in drawing.scene.things)]
    return np.array(kinds)[drawing.shown]


def load_detector(path: Path) -> Detector:
    """The detector of a file. Raises InputError, naming the file, if it is not a detector's."""
    tensors, metadata = read_tensors(path)
    detector = Detector(metadata.get("size", PIXELS))
    try:
        detector.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    except Exception:  # a file can be wrong in many ways
        raise InputError(f"{path} is not a detector of this version") from None
    return detector.eval().requires_grad_(False)

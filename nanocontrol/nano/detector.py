"""A small network that reads a picture of the drawn world: which things it shows, and its maps.

    python -m nanocontrol.nano.detector [--steps 2500] [--scenes 8000] [--out FILE]

trains it, on drawn scenes alone. It is what detectors of edges, depth or pose are for photographs:
evaluate.py asks it what a generated picture shows. It has no part in making pictures.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from tqdm import tqdm

from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.model import WEIGHTS
from nanocontrol.nano.world import KINDS, Drawing, Scene, draw, joints_of, points, random_scene
from nanocontrol.plumbing.errors import InputError, one_sentence
from nanocontrol.plumbing.files import make_folder, write_atomically
from nanocontrol.plumbing.flags import at_least

FILE = WEIGHTS / "nano-detector.safetensors"

# What each channel of the detector's maps says of a pixel, all in 0..1.
KIND = slice(0, 6)  # is it the wall? a ball? ... in the order of KINDS
DEPTH, NORMALS, HOUGH, SOFT, CARTOON = 6, slice(7, 10), 10, 11, 12
JOINTS = slice(13, 27)  # exp(-distance^2 / 8 pixels^2) from each joint


class Detector(nn.Module):
    """image [B, 3, 64, 64] in [-1, 1] -> logits of the maps [B, 27, 64, 64], and of whether each of
    KINDS is shown [B, 5]."""

    def __init__(self, widths: tuple[int, ...] = (32, 64, 96)):
        super().__init__()
        self.first = nn.Conv2d(3, widths[0], 4, stride=2, padding=1)  # half the size is quicker
        pairs = list(zip(widths, widths[1:]))
        self.down = nn.ModuleList(block(a, b) for a, b in pairs)
        self.middle = block(widths[-1], widths[-1])
        self.up = nn.ModuleList(block(a + b, a) for a, b in reversed(pairs))
        self.maps = nn.Conv2d(widths[0], 4 * JOINTS.stop, 3, padding=1)
        self.kinds = nn.Linear(widths[-1], len(KINDS))

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        x, skips = self.first(image), []
        for down in self.down:
            skips.append(x)
            x = F.max_pool2d(down(x), 2)
        x = self.middle(x)
        kinds = self.kinds(x.amax(dim=(2, 3)))
        for up in self.up:
            x = up(torch.cat([F.interpolate(x, scale_factor=2), skips.pop()], dim=1))
        return F.pixel_shuffle(self.maps(x), 2), kinds


def block(before: int, after: int) -> nn.Sequential:
    def layer(a: int, b: int) -> list[nn.Module]:
        return [nn.Conv2d(a, b, 3, padding=1), nn.GroupNorm(8, b), nn.SiLU()]

    return nn.Sequential(*layer(before, after), *layer(after, after))


def truth(scene: Scene) -> tuple[Tensor, Tensor, Tensor]:
    """What a perfect detector would say: image [3, 64, 64] in [-1, 1], maps [27, 64, 64] in 0..1,
    whether each of KINDS is shown [5]."""
    drawing = draw(scene)
    maps = np.zeros((JOINTS.stop, 64, 64), np.float32)
    maps[KIND] = kinds_of(drawing) == np.arange(len(KINDS) + 1)[:, None, None]
    maps[NORMALS] = CONDITIONS["normals"](drawing).transpose(2, 0, 1)
    for channel, name in (DEPTH, "depth"), (HOUGH, "hough"), (SOFT, "soft"), (CARTOON, "cartoon"):
        maps[channel] = CONDITIONS[name](drawing)[..., 0]
    x, y = (grid[::2, ::2] for grid in points(64))  # as in Drawing.shown
    for figure in scene.of("figure"):
        for joint, (jx, jy) in zip(maps[JOINTS], joints_of(figure)):
            np.maximum(joint, np.exp(-((x - jx) ** 2 + (y - jy) ** 2) * 64**2 / 8), out=joint)
    shown = torch.tensor([bool(scene.of(kind)) for kind in KINDS])
    image = torch.from_numpy(drawing.image * 2 - 1).permute(2, 0, 1)
    return image, torch.from_numpy(maps), shown.float()


def kinds_of(drawing: Drawing) -> np.ndarray:
    """[64, 64]: 0 is the wall, 1 the first of KINDS, ..."""
    kinds = [0, *(KINDS.index(thing.kind) + 1 for thing in drawing.scene.things)]
    return np.array(kinds)[drawing.shown]


def load_detector(path: Path) -> Detector:
    """Raises InputError, naming the file, if it is not one that this module wrote."""
    if not path.exists():
        raise InputError(f"{path} does not exist; a detector is wanted")
    detector = Detector()
    try:
        detector.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    except Exception:  # a file can be wrong in many ways
        raise InputError(f"{path} is no detector of this version; one is wanted") from None
    return detector.eval().requires_grad_(False)


def train(steps: int, scenes: int) -> Detector:
    torch.manual_seed(0)
    drawn = [truth(random_scene(seed)) for seed in tqdm(range(scenes), "drawing")]
    images, maps, kinds = (torch.stack(column) for column in zip(*drawn))
    detector = Detector()
    optimizer = torch.optim.AdamW(detector.parameters(), 2e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, steps)
    for _ in (bar := tqdm(range(steps), "training")):
        some = torch.randint(scenes, (16,))
        found, shown = detector(spoilt(images[some]))
        loss = F.binary_cross_entropy_with_logits(found, maps[some])
        loss = loss + 0.1 * F.binary_cross_entropy_with_logits(shown, kinds[some])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        bar.set_postfix(loss=f"{loss.item():.4f}", refresh=False)
    return detector


def spoilt(image: Tensor) -> Tensor:
    """Some blur, some noise: generated pictures are not quite sharp."""
    soft = F.avg_pool2d(F.pad(image, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    share = torch.rand(len(image), 1, 1, 1)
    return image + share * (soft - image) + 0.05 * torch.randn_like(image)


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--steps", type=at_least(1), default=2500, help="default: 2500")
    parser.add_argument("--scenes", type=at_least(1), default=8000, help="default: 8000")
    out = Path("out/detector.safetensors")
    parser.add_argument("--out", type=Path, default=out, metavar="FILE", help=f"default: {out}")
    args = parser.parse_args(argv)
    with one_sentence("detector"):
        make_folder("--out", args.out.parent)
        weights = train(args.steps, args.scenes).half().state_dict()
        write_atomically(args.out, lambda temporary: save_file(weights, temporary))
    print(args.out)


if __name__ == "__main__":
    main()

"""A preview of a latent without the VAE: RGB as a linear map of its four channels.

    python -m nanocontrol.page.preview [--base FILE] [--scenes 256]

fits the map by least squares on drawn scenes and writes it, with how it was made, to preview.json.
"""

import argparse
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanocontrol.checkpoint import load_sd
from nanocontrol.nano.model import NANO
from nanocontrol.nano.scenes import Scenes
from nanocontrol.nano.world import SIZES
from nanocontrol.plumbing.errors import blame, one_sentence, say
from nanocontrol.plumbing.files import hash_of
from nanocontrol.plumbing.flags import Parser, at_least
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.measure import mean_latents
from nanocontrol.training.run import read_json, write_json

FILE = Path(__file__).parent / "preview.json"


def fit_preview(sd: StableDiffusion, n: int) -> tuple[Tensor, float]:
    """The map [5, 3] from a latent's four channels and 1 to RGB in [0, 1], fitted on n scenes, and
    the root mean square of its error."""
    size = sd.size if sd.size in SIZES else SIZES[-1]
    pictures = torch.stack([Scenes(None, size=size)[i][0] for i in range(n)])
    latents = mean_latents(sd, pictures)
    colours = F.avg_pool2d(pictures / 2 + 0.5, size // latents.shape[-1])
    x, y = (z.permute(0, 2, 3, 1).flatten(0, 2).double() for z in (latents, colours))
    x = torch.cat([x, torch.ones(len(x), 1)], dim=1)
    found = torch.linalg.lstsq(x, y).solution
    return found.float(), (x @ found - y).square().mean().sqrt().item()


def preview_map(sd: StableDiffusion, base: Path) -> Tensor:
    """The stored map if it was fitted for this base, else one fitted on a few scenes."""
    stored = read_json(FILE)
    if stored["base"] == hash_of(base):
        return torch.tensor(stored["map"])
    return fit_preview(sd, 8)[0]


def preview(x0: Tensor, mapped: Tensor) -> Tensor:
    """A latent [4, h, w] -> RGB [3, h, w] in [0, 1]."""
    x = x0.float().cpu()
    return (torch.einsum("chw,cr->rhw", x, mapped[:4]) + mapped[4, :, None, None]).clamp(0, 1)


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--base", default=NANO, type=Path, metavar="FILE")
    parser.add_argument("--scenes", type=at_least(1), default=256, metavar="N")
    args = parser.parse_args(argv)
    with one_sentence("preview"):
        with blame("--base"):
            sd, base = load_sd(args.base), hash_of(args.base)
        found, error = fit_preview(sd, args.scenes)
        how = f"python -m nanocontrol.page.preview --scenes {args.scenes}"
        write_json(FILE, {"map": found.tolist(), "made": how, "base": base, "error": error})
        say(f"{FILE}: root mean square error {error:.3f} of 1")


if __name__ == "__main__":
    main()

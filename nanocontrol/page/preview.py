"""A preview of a latent without the VAE: RGB as a linear map of its four channels, fitted by least
squares. preview.json has nano's; record.py makes it."""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nanocontrol.nano.scenes import Scenes
from nanocontrol.nano.world import SIZES
from nanocontrol.plumbing.files import hash_of
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.measure import mean_latents
from nanocontrol.training.run import read_json

FILE = Path(__file__).parent / "preview.json"
STATIC = Path(__file__).parent / "static"  # what the browser gets


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

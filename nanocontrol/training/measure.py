"""Looking at a ControlNet while it learns: pictures from fixed noise, and numbers."""

import numpy as np
import torch
from torch import Tensor

from nanocontrol.controlnet import ControlNet
from nanocontrol.sampling import initial_noise, sample
from nanocontrol.stable_diffusion import StableDiffusion

# Of the starting noise: of ten the one whose uncontrolled pictures are least like the true ones, so
# that a film shows what control does.
SEED = 5


def border(image: Tensor) -> Tensor:
    """[3, H, W] -> [3, n], its outermost pixels."""
    return torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)


def differs_from(image: Tensor, background: Tensor) -> Tensor:
    """Whether pixels [3, ...] in [-1, 1] are more than 0.22 (in 0..1) away from a colour [3]."""
    away = (image - background.view(3, *[1] * (image.dim() - 1))) / 2
    return away.square().sum(0).sqrt() > 0.22


def find_objects(image: Tensor) -> Tensor:
    """image [3, H, W] in [-1, 1] -> bool [H, W]: where it is not of the colour of its border."""
    return differs_from(image, border(image).median(dim=1).values)


def true_objects(target: Tensor) -> Tensor | None:
    """The objects of a data set's picture; None where its border is too mixed to tell them."""
    edge = border(target)
    mixed = differs_from(edge, edge.median(dim=1).values).float().mean() > 0.25
    return None if mixed else find_objects(target)


def iou(image: Tensor, truth: Tensor) -> float:
    """Intersection over union of the objects found in the picture and the true ones [H, W]."""
    found = find_objects(image)
    union = (found | truth).sum().item()
    return (found & truth).sum().item() / union if union else 1.0


def mean_iou(made: Tensor, targets: Tensor) -> float | None:
    """Over those pairs whose target tells its objects; None if none does."""
    truths = [true_objects(target) for target in targets]
    scores = [iou(image, truth) for image, truth in zip(made, truths) if truth is not None]
    return float(np.mean(scores)) if scores else None


@torch.no_grad()
def make_pictures(
    sd: StableDiffusion,
    prompts: list[str],
    control: ControlNet | None,
    hints: Tensor,
    at_once: int = 64,
) -> Tensor:
    """A picture for each prompt, from fixed noise, controlled if there is a ControlNet:
    [B, 3, H, W] in [-1, 1], on the CPU. at_once: how many there is memory for."""
    n, _, height, width = hints.shape
    noise = initial_noise(n, height, width, torch.Generator().manual_seed(SEED))
    uncond, weight, images = sd.encode_prompts(""), next(sd.vae.parameters()), []
    for part in torch.arange(n).split(at_once):
        context = sd.encode_prompts([prompts[i] for i in part])
        controls = [(control, hints[part], 1.0)] if control else []
        latents = sample(sd, noise[part], context, uncond, controls, scale=sd.guidance)
        latents = (latents / sd.scale_factor).to(weight)
        images += [sd.vae.decode(latent[None]).cpu() for latent in latents]  # one by one
    return torch.cat(images).float().clamp(-1, 1)

"""How good the small models are on held-out scenes, from fixed noise, as JSON.

    python -m nanocontrol.evaluate [--base FILE] [--control FILE] [--n 64]

| number     | meaning, over n scenes                                                              |
|------------|-------------------------------------------------------------------------------------|
| vae_db     | signal-to-noise ratio of pictures that went through the VAE, mean over pictures, dB |
| background | without control: share of pictures whose background has the prompted colour         |
| colours    | without control: share of pictures that show every prompted colour of an object     |
| iou        | with control: intersection over union of the objects found in the picture and those |
|            | found in the true one, mean over pictures                                           |
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checkpoint import StableDiffusion, load_control, load_sd
from .controlnet import ControlNet
from .data import COLOURS, HELD_OUT, Scenes, random_scene
from .files import InputError
from .flags import at_least, blame
from .sampling import initial_noise, sample

SEED = 7  # of the starting noise


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


def background_is(image: Tensor, colour: str) -> bool:
    """Whether of all COLOURS this one is the nearest to the border's median."""
    seen = (border(image).median(dim=1).values.numpy() + 1) / 2
    return min(COLOURS, key=lambda name: np.linalg.norm(COLOURS[name] - seen)) == colour


def shows_colour(image: Tensor, colour: str) -> bool:
    """Whether 3 % of the pixels are within 0.2 of this colour, shaded by up to 20 % either way.
    (Two colours of one scene are at least 0.45 apart.)"""
    pixels = ((image + 1) / 2).permute(1, 2, 0).numpy()
    shades = [np.clip(shade * COLOURS[colour], 0, 1) for shade in (0.8, 0.9, 1, 1.1, 1.2)]
    away = np.min([np.linalg.norm(pixels - shade, axis=-1) for shade in shades], axis=0)
    return (away < 0.2).mean() > 0.03


def psnr(a: Tensor, b: Tensor) -> float:
    """Of pictures [B, 3, H, W] in [-1, 1], in dB, the mean over pictures."""
    mse = ((a - b) / 2).square().mean(dim=(1, 2, 3))
    return (-10 * torch.log10(mse)).mean().item()


@torch.no_grad()
def rebuild(sd: StableDiffusion, images: Tensor) -> Tensor:
    """images [B, 3, H, W] in [-1, 1] through the VAE's encoder and decoder, on the CPU."""
    mean, _ = sd.vae.encode(images.to(next(sd.vae.parameters())))
    return sd.vae.decode(mean).float().clamp(-1, 1).cpu()


@torch.no_grad()
def pictures(
    sd: StableDiffusion, prompts: list[str], control: ControlNet | None, hints: Tensor
) -> Tensor:
    """A picture for each prompt, from fixed noise, controlled if there is a ControlNet:
    [B, 3, H, W] in [-1, 1], on the CPU."""
    n, _, height, width = hints.shape
    noise = initial_noise(n, height, width, torch.Generator().manual_seed(SEED))
    context, uncond = sd.encode_prompts(prompts), sd.encode_prompts("")
    controls = [(control, hints, 1.0)] if control else []
    latents = sample(sd, noise, context, uncond, controls, scale=sd.guidance) / sd.scale_factor
    latents = latents.to(next(sd.vae.parameters()))
    images = [sd.vae.decode(latent[None]) for latent in latents]  # one by one, to save memory
    return torch.cat(images).float().clamp(-1, 1).cpu()


def evaluate(sd: StableDiffusion, control: ControlNet, n: int) -> dict[str, float]:
    """The numbers of the table above."""
    scenes = [random_scene(HELD_OUT + i) for i in range(n)]
    images, hints, prompts = zip(*(Scenes(HELD_OUT)[i] for i in range(n)))
    images, hints = torch.stack(images), torch.stack(hints)
    plain = pictures(sd, prompts, None, hints)
    backgrounds = [background_is(p, scene.background) for p, scene in zip(plain, scenes)]
    colours = [
        all(shows_colour(p, solid.colour) for solid in scene.solids)
        for p, scene in zip(plain, scenes)
    ]
    return {
        "vae_db": psnr(rebuild(sd, images), images),
        "background": float(np.mean(backgrounds)),
        "colours": float(np.mean(colours)),
        "iou": mean_iou(pictures(sd, prompts, control, hints), images),
    }


def main() -> None:
    weights = Path(__file__).parents[1] / "weights"
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default=weights / "nano.safetensors", type=Path)
    parser.add_argument(
        "--control", default=weights / "nano-control-outline.safetensors", type=Path
    )
    parser.add_argument(
        "--n", default=64, type=at_least(1), help="scenes to measure on (default: 64)"
    )
    args = parser.parse_args()
    try:
        with blame("--base"):
            sd = load_sd(args.base)
        with blame("--control"):
            control = load_control(args.control, sd.unet)
    except InputError as error:
        sys.exit(f"evaluate: {error}")
    print(json.dumps(evaluate(sd, control, args.n), indent=2))


if __name__ == "__main__":
    main()

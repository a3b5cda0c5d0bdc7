"""How good the small models are on held-out scenes, from fixed noise, as JSON.

    python -m nanocontrol.evaluate [--base FILE] [--control FILE ...] [--n 64]

| number      | meaning, over n scenes                                                             |
|-------------|------------------------------------------------------------------------------------|
| vae_db      | signal-to-noise ratio of pictures that went through the VAE, mean over them, in dB |
| background  | without control: share of pictures whose background has the prompted colour        |
| colours     | without control: share of pictures that show every prompted colour of a thing      |
| shapes      | without control: share of pictures in which the detector sees the prompted kinds   |
|             | of things and no other                                                             |
| shapes_true | the same of the true pictures: how far the detector is to be trusted               |
| iou         | with the Canny control: intersection over union of the things found in the picture |
|             | and those found in the true one, mean over pictures (only with such a control)     |
| conditions  | for each ControlNet's condition, how well pictures made with and without it follow |
|             | the condition, and how well the true pictures do (scores.py says how)              |
"""

import argparse
import json
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .checkpoint import StableDiffusion, load_sd
from .controlnet import ControlNet
from .data import held_out_scenes
from .detector import FILE as DETECTOR
from .detector import Detector, load_detector
from .flags import at_least, blame, one_sentence
from .inputs import NANO, WEIGHTS, controls_by_condition
from .sampling import initial_noise, sample
from .scores import score
from .world import COLOURS, KINDS, SHADES, Scene

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


def background_is(image: Tensor, colour: str) -> bool:
    """Whether of all COLOURS this one is the nearest to the border's median."""
    seen = (border(image).median(dim=1).values.numpy() + 1) / 2
    return min(COLOURS, key=lambda name: np.linalg.norm(COLOURS[name] - seen)) == colour


def shows_colour(image: Tensor, colour: str) -> bool:
    """Whether of all COLOURS, in light and shade, this one is the nearest at 3 % of the pixels at
    least."""
    pixels = ((image + 1) / 2).permute(1, 2, 0).numpy()
    shades = np.linspace(*SHADES, 6)
    colours = np.stack([np.minimum(shade * COLOURS[n], 1) for n in COLOURS for shade in shades])
    away = np.linalg.norm(pixels[:, :, None] - colours, axis=-1)
    return np.mean(away.argmin(axis=-1) // len(shades) == list(COLOURS).index(colour)) > 0.03


def shows_kinds(detector: Detector, images: Tensor, scenes: list[Scene]) -> float:
    """Share of pictures in which the detector sees the scene's kinds of things and no other."""
    seen = detector(images)[1] > 0
    wanted = torch.tensor([[bool(scene.of(kind)) for kind in KINDS] for scene in scenes])
    return (seen == wanted).all(dim=1).float().mean().item()


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


def evaluate(
    sd: StableDiffusion, controls: dict[str, ControlNet], detector: Detector, n: int
) -> dict:
    """The numbers of the table above; controls by the names of their conditions."""

    @cache
    def uncontrolled(prompts: tuple[str, ...]) -> Tensor:
        """Most conditions have the same scenes, so the same prompts."""
        return make_pictures(sd, prompts, None, torch.zeros(n, 3, 64, 64))

    images, _, prompts, scenes = held_out_scenes("canny", n)
    plain = uncontrolled(prompts)
    backgrounds = [background_is(p, scene.background) for p, scene in zip(plain, scenes)]
    colours = [
        all(shows_colour(p, thing.colour) for thing in scene.things)
        for p, scene in zip(plain, scenes)
    ]
    numbers = {
        "vae_db": psnr(rebuild(sd, images), images),
        "background": float(np.mean(backgrounds)),
        "colours": float(np.mean(colours)),
        "shapes": shows_kinds(detector, plain, scenes),
        "shapes_true": shows_kinds(detector, images, scenes),
        "conditions": {},
    }
    for condition, control in controls.items():
        images, hints, prompts, scenes = held_out_scenes(condition, n)
        made = make_pictures(sd, prompts, control, hints)
        if condition == "canny":
            numbers["iou"] = mean_iou(made, images)
        compared = {"with": made, "without": uncontrolled(prompts), "true": images}
        numbers["conditions"][condition] = {
            name: score(condition, some, scenes, detector) for name, some in compared.items()
        }
    return numbers


def main(argv: list[str] | None = None) -> None:
    bundled = sorted(WEIGHTS.glob("nano-control-*.safetensors"))
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", default=NANO, type=Path)
    parser.add_argument("--control", default=bundled, nargs="+", type=Path, metavar="FILE")
    parser.add_argument("--detector", default=DETECTOR, type=Path)
    parser.add_argument(
        "--n", default=64, type=at_least(1), help="scenes to measure on (default: 64)"
    )
    args = parser.parse_args(argv)
    with one_sentence("evaluate"):
        with blame("--base"):
            sd = load_sd(args.base)
        with blame("--detector"):
            detector = load_detector(args.detector)
        with blame("--control"):
            controls = controls_by_condition(args.control, sd)
        print(json.dumps(evaluate(sd, controls, detector, args.n), indent=2))


if __name__ == "__main__":
    main()

"""Pictures of held-out scenes to be counted: made from noise of a seed, and what they show."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanocontrol import ControlNet, StableDiffusion
from nanocontrol.checkpoint import load_control, load_sd
from nanocontrol.nano.detector import KIND, Detector, load_detector
from nanocontrol.nano.evaluate import shows_colours
from nanocontrol.nano.follows import counted, follows, kind_and_place
from nanocontrol.nano.model import DETECTOR, NANO, WEIGHTS
from nanocontrol.nano.scores import score
from nanocontrol.nano.world import Scene, draw
from nanocontrol.plumbing import machine
from nanocontrol.sampling import Control, initial_noise, sample

AT_ONCE = 32


@cache
def nano() -> StableDiffusion:
    machine.for_sampling()
    return load_sd(NANO, machine.default_device())


@cache
def detector() -> Detector:
    return load_detector(DETECTOR)


@cache
def bundled(condition: str) -> ControlNet:
    """ "canny", "depth" or "pose"."""
    return load_control(WEIGHTS / f"nano-control-{condition}.safetensors", nano().unet)


@torch.no_grad()
def pictures(
    sd: StableDiffusion,
    prompts: Sequence[str],
    controls: Sequence[Control],
    seed: int,
    scale: float | None = None,
    **ways: Any,
) -> Tensor:
    """A picture for each prompt [n, 3, H, W] in [-1, 1], from the seed's noise, on the CPU. Hints
    [n, 3, H, W]; scale: of the guidance (None: the base's own); ways: those of sampling.sample."""
    n = len(prompts)
    noise = initial_noise(n, sd.size, sd.size, torch.Generator().manual_seed(seed))
    uncond, scale, made = sd.encode_prompts(""), scale or sd.guidance, []
    for part in torch.arange(n).split(AT_ONCE):
        context = sd.encode_prompts([prompts[i] for i in part])
        of_part = [(net, hints[part], strength) for net, hints, strength in controls]
        latents = sample(sd, noise[part], context, uncond, of_part, scale=scale, **ways)
        made += [sd.decode(latent[None]).cpu() for latent in latents]
    return torch.cat(made).clamp(-1, 1)


def kinds_seen(images: Tensor) -> np.ndarray:
    """[n, size, size], the detector's size: 0 where it sees the wall, 1 the first of KINDS, ..."""
    return detector()(detector().fitted(images))[0][:, KIND].argmax(dim=1).numpy()


def placed(condition: str, images: Tensor, scenes: list[Scene]) -> float:
    """The share of things that are right in kind and place: `follows` without the colours, which
    nothing but a prompt tells."""
    kinds = kinds_seen(images)
    drawings = [draw(scene, detector().size) for scene in scenes]
    right = [
        kind_and_place(seen, drawing, i)
        for seen, drawing in zip(kinds, drawings)
        for i in counted(condition, drawing)
    ]
    return float(np.mean(right))


def shown(condition: str, images: Tensor, scenes: list[Scene]) -> dict[str, float | None]:
    """How well pictures keep to the scenes' hints and prompts."""
    return {
        "score": score(condition, images, scenes, detector()),
        "placed": placed(condition, images, scenes),
        "follows": follows(condition, images, scenes, detector()),
        "colours": float(np.mean(shows_colours(images, scenes))),
    }

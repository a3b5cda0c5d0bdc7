"""Pictures and networks that several checks share."""

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

from nanocontrol import ControlNet, load_control
from nanocontrol.course.exercise import Seeds
from nanocontrol.course.inside import bundled_nano
from nanocontrol.nano.detector import Detector, load_detector
from nanocontrol.nano.model import DETECTOR, WEIGHTS
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.nano.world import Scene
from nanocontrol.plumbing.pictures import grid, save_picture, with_caption
from nanocontrol.training.measure import mean_latents


@cache
def bundled_control(condition: str) -> ControlNet:
    return load_control(WEIGHTS / f"nano-control-{condition}.safetensors", bundled_nano().unet)


@cache
def bundled_detector() -> Detector:
    return load_detector(DETECTOR)


def pairs_of_scenes(
    numbers: Sequence[int], condition: str | None = None
) -> tuple[Tensor, Tensor, list[str], list[Scene]]:
    """Held-out scenes: pictures [n, 3, H, W] in [-1, 1], hints [n, 3, H, W] in [0, 1], prompts, and
    the scenes themselves."""
    data = Scenes(condition, HELD_OUT, size=bundled_nano().size)
    images, hints, prompts = zip(*(data[i] for i in numbers))
    return torch.stack(images), torch.stack(hints), [*prompts], [data.scene(i) for i in numbers]


def latents_and_prompts(numbers: Sequence[int]) -> tuple[Tensor, list[str]]:
    """Scaled latents [n, 4, h, w] of held-out scenes, and their prompts."""
    images, _, prompts, _ = pairs_of_scenes(numbers)
    return mean_latents(bundled_nano(), images), prompts


def scene_to_show(draws: Seeds) -> tuple[Tensor, str, Tensor]:
    """A scene's latent [1, 4, h, w], its prompt, and noise of the latent's shape."""
    latent, prompts = latents_and_prompts([draws.seed("scene") % 1000])
    return latent, prompts[0], torch.randn(latent.shape, generator=draws.tensors("picture"))


@torch.no_grad()
def save_strip(latents: Tensor, path: Path, caption: str) -> Path:
    """Write a row of latents [n, 4, h, w] as decoded pictures."""
    pictures = bundled_nano().decode(latents.float()).clamp(-1, 1)
    return save_rows([[*pictures]], path, caption)


def save_rows(rows: Sequence[Sequence[Tensor]], path: Path, caption: str) -> Path:
    save_picture(with_caption(grid(rows), caption), path)
    return path

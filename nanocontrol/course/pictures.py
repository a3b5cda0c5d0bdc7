"""Pictures and networks that several checks share."""

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from nanocontrol import ControlNet, load_control
from nanocontrol.course.exercise import Seeds
from nanocontrol.course.inside import bundled_nano
from nanocontrol.nano.detector import Detector, load_detector
from nanocontrol.nano.model import DETECTOR, WEIGHTS
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.nano.world import Scene
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


def scene_to_show(draws: Seeds) -> tuple[Tensor, str, Tensor]:
    """A scene's latent [1, 4, h, w], its prompt, and noise of the latent's shape."""
    images, _, prompts, _ = pairs_of_scenes([draws.seed("scene") % 1000])
    latent = mean_latents(bundled_nano(), images)
    return latent, prompts[0], torch.randn(latent.shape, generator=draws.tensors("picture"))


@torch.no_grad()
def decoded(latents: Tensor) -> list[list[Tensor]]:
    """A row of pictures, decoded from latents [n, 4, h, w]."""
    return [[*bundled_nano().decode(latents.float()).clamp(-1, 1)]]

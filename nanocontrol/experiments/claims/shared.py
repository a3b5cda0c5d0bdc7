"""Variants, changes and measurements that several experiments share."""

from collections.abc import Mapping
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor, nn

from nanocontrol import DDPM, ControlNet, StableDiffusion
from nanocontrol.controlnet import initialise_condition_encoder
from nanocontrol.experiments.frame import Change, Chart, Numbers, Variant
from nanocontrol.experiments.measure import detector, held_out_scenes_of
from nanocontrol.nano.evaluate import background_is, shows_colours, shows_kinds
from nanocontrol.nano.model import halve_condition_encoder
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.errors import InputError
from nanocontrol.training.measure import held_out_loss, make_pictures

# ----------------------------------------------------------------------------------- changes


def scaled_kaiming(gain: float) -> Change:
    """The condition encoder begins with Kaiming's weights times the gain. 1.4 is train.py's
    `--hint-init variance`; PyTorch's own weights are 0.41 times Kaiming's, and have biases."""
    return partial(initialise_scaled, gain=gain)


def initialise_scaled(sd: StableDiffusion, control: ControlNet, gain: float) -> None:
    encoder = control.input_hint_block
    encoder.to(memory_format=torch.contiguous_format)  # so that the numbers drawn are train.py's
    initialise_condition_encoder(control, gain)
    encoder.to(memory_format=torch.channels_last)


def half_as_deep(sd: StableDiffusion, control: ControlNet) -> None:
    """The condition encoder has every second of its convolutions only: four, not eight."""
    halve_condition_encoder(control)


@torch.no_grad()
def gaussian_convolutions(sd: StableDiffusion, control: ControlNet) -> None:
    """All zero convolutions, the hint's too, begin with Gaussian weights that would keep the
    variance."""
    zeros = [*control.zero_convs.modules(), *control.middle_block_out.modules()]
    for module in [*zeros, control.input_hint_block[-1]]:
        if isinstance(module, nn.Conv2d):
            nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)


# ---------------------------------------------------------------------------------- variants

WAITING = {"steps": 2000, "sample_every": 40}  # the plain training jumps at step 1,546 or later
PLAIN = Variant("plain", WAITING)
# Where the jump comes early. In the last quarter the rate falls to 0: with a constant one `follows`
# went up and down between 0.5 and 0.7 after the jump.
SOONER = {"steps": 400, "sample_every": 25, "schedule": "cooldown"}
SOON = SOONER | {"hint_init": "variance"}
VARIANCE = Variant("variance", SOON | {"sample_every": 20})  # its jump's width is measured
GAUSSIAN = Variant("gaussian", WAITING, gaussian_convolutions)


def like_variance(name: str, change: Change | None = None, **settings: Any) -> Variant:
    """The variant that learns soon, with other settings."""
    return Variant(name, SOON | settings, change)


GAUSSIAN_SOON = like_variance("gaussian variance", gaussian_convolutions)
BY_RATE = {
    5e-4: like_variance("lr 0.0005", lr=5e-4, steps=600, sample_every=30),
    1e-3: VARIANCE,
    2e-3: like_variance("lr 0.002", lr=2e-3, sample_every=20),
}
BY_BATCH = {
    4: like_variance("batch 4", batch_size=4, sample_every=20),
    8: VARIANCE,
    16: like_variance("batch 16", batch_size=16, sample_every=20),
}


# -------------------------------------------------------------- what is left of the base

LEFT: Mapping[str, str] = {
    "background": "without control: background",
    "colours": "colours",
    "kinds": "kinds",
    "base_loss": "its loss",
}


def parts_of_left(names: tuple[str, ...]) -> dict[str, Any]:
    """The parts of an experiment that asks what is left of the base in these variants."""
    charts = (
        Chart("followed", names, ("follows", "score")),
        Chart("without control", names, ("background", "colours", "kinds")),
        Chart("without control", names, ("base_loss",)),
    )
    return {"afterwards": what_is_left, "numbers": LEFT, "charts": charts}


def what_is_left(sd: StableDiffusion, control: ControlNet) -> Numbers:
    """The base used without control: how many pictures show what their prompts name, as
    nano/evaluate.py counts it, and the held-out loss."""
    pairs, scenes = held_out_scenes_of(sd)
    plain = make_pictures(sd, pairs.prompts)
    backgrounds = [background_is(p, scene.background) for p, scene in zip(plain, scenes)]
    return {
        "background": float(np.mean(backgrounds)),
        "colours": float(np.mean(shows_colours(plain, scenes))),
        "kinds": shows_kinds(detector(), plain, scenes),
        "base_loss": held_out_loss(sd, pairs, partial(loss_of_base, sd), batch_size=8),
    }


def loss_of_base(
    sd: StableDiffusion, x0: Tensor, hint: Tensor, context: Tensor, noise: Tensor, t: Tensor
) -> Tensor:
    """As train.diffusion_loss, without a ControlNet."""
    diffusion = DDPM(sd.prediction, t.device)
    output = sd.unet(diffusion.add_noise(x0, noise, t), t, context)
    return F.mse_loss(output, diffusion.target(x0, noise, t))


# ------------------------------------------------------------------------------- photographs

THRESHOLDS = 100, 200  # of Canny


def edges_of_photographs(size: int) -> Tensor:
    """[8, 3, size, size]"""
    if not (find_spec("skimage") and find_spec("sklearn")):
        raise InputError('photographs are an extra: pip install -e ".[photos]"')
    from skimage import data
    from sklearn.datasets import load_sample_image

    names = ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket")
    photographs = [getattr(data, name)() for name in names]
    photographs += [load_sample_image(f"{name}.jpg") for name in ("china", "flower")]
    found = []
    for photograph in photographs:
        picture = ImageOps.fit(Image.fromarray(photograph).convert("RGB"), (size, size))
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
        found.append(canny(image, *THRESHOLDS))
    return torch.stack(found)

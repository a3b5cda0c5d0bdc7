"""What is measured of a run after it, with the networks as it saved them: so it needs no place in
the training, and can be asked of runs that are done."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch.nn.functional as F
from torch import Tensor

import train
from nanocontrol import DDPM, ControlNet, StableDiffusion
from nanocontrol.checkpoint import CONTROL_KEYS, UNET_KEYS
from nanocontrol.experiments import looks
from nanocontrol.experiments.arm import Arm, models_of
from nanocontrol.experiments.pictures import detector, placed
from nanocontrol.formats.tensors import below, read_tensors
from nanocontrol.nano.evaluate import background_is, shows_colours, shows_kinds
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.nano.scores import score
from nanocontrol.nano.world import Scene
from nanocontrol.training.measure import HeldOut, held_out_loss, make_pictures

Numbers = dict[str, float | None]


class Afterwards(NamedTuple):
    measure: Callable[[StableDiffusion, ControlNet], Numbers]
    pictures: int  # that it makes of each scene


# Of each network that is trained: where it is saved, and how its names begin there.
SAVED = {"control": ("control.safetensors", CONTROL_KEYS), "unet": ("base.safetensors", UNET_KEYS)}


def measure_afterwards(afterwards: Afterwards, arm: Arm, settings: train.Settings) -> Numbers:
    sd, control, trained = models_of(arm, settings)
    for name, network in trained.items():
        file, keys = SAVED[name]
        tensors, _ = read_tensors(Path(settings.out) / file)
        network.to(settings.device).load_state_dict(below(keys, tensors))
    return afterwards.measure(sd, control)


def held_out(sd: StableDiffusion) -> tuple[HeldOut, list[Scene]]:
    """The scenes that arms are measured on at their end."""
    scenes = Scenes("canny", HELD_OUT, n=looks.AT_END, size=sd.size)
    return HeldOut.of(sd, scenes), [scenes.scene(i) for i in range(len(scenes))]


def what_is_left(sd: StableDiffusion, control: ControlNet) -> Numbers:
    """Of the base, when it is used without control: what of their prompts the pictures show, as
    nano/evaluate.py counts it, and the held-out loss."""
    pairs, scenes = held_out(sd)
    plain = make_pictures(sd, pairs.prompts, None, pairs.hints)
    backgrounds = [background_is(p, scene.background) for p, scene in zip(plain, scenes)]
    return {
        "background": float(np.mean(backgrounds)),
        "colours": float(np.mean(shows_colours(plain, scenes))),
        "kinds": shows_kinds(detector(), plain, scenes),
        "base_loss": held_out_loss(sd, pairs, loss_of_base(sd), batch_size=8),
    }


def loss_of_base(sd: StableDiffusion) -> Callable[..., Tensor]:
    """As train.diffusion_loss, without a ControlNet."""
    diffusion = DDPM(sd.prediction)

    def loss(x0: Tensor, hint: Tensor, context: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        output = sd.unet(diffusion.add_noise(x0, noise, t), t.to(x0.device), context)
        return F.mse_loss(output, diffusion.target(x0, noise, t))

    return loss


def by_hint_and_by_prompt(sd: StableDiffusion, control: ControlNet) -> Numbers:
    """Without a prompt how well the hint is followed; with one whether its colours are there."""
    pairs, scenes = held_out(sd)
    alone = make_pictures(sd, [""] * len(scenes), control, pairs.hints)
    both = make_pictures(sd, pairs.prompts, control, pairs.hints)
    return {
        "score_alone": score("canny", alone, scenes, detector()),
        "placed_alone": placed("canny", alone, scenes),
        "placed": placed("canny", both, scenes),
        "colours": float(np.mean(shows_colours(both, scenes))),
    }

"""An arm of an experiment: a training that differs from the plain one in one thing."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import train
from nanocontrol import DDPM, ControlNet, StableDiffusion
from nanocontrol.experiments.looks import Looks
from nanocontrol.plumbing import machine

# With the paper's start. Arms that learn sooner have fewer steps, those that learn later more.
DEFAULTS: dict[str, Any] = {
    "hint_init": "pytorch",
    "steps": 1000,
    "batch_size": 8,
    "lr": 1e-3,
    "schedule": "constant",
    "scenes": train.SCENES,
    "sample_every": 50,
    "save_every": 50,
    "dtype": "fp32",  # on a GPU, too
}

# What it gives, if anything, is trained in the ControlNet's place.
Start = Callable[[StableDiffusion, ControlNet], ControlNet | None]
OfT = Callable[[Tensor], Tensor]


def unchanged(sd: StableDiffusion, control: ControlNet) -> None:
    """The networks stay as they are."""


def equal_weights(t: Tensor) -> Tensor:
    return torch.ones(len(t))


def as_drawn(t: Tensor) -> Tensor:
    return t


@dataclass(frozen=True)
class Arm:
    name: str  # of its folders, too: what several experiments share is trained once
    settings: Mapping[str, Any] = field(default_factory=dict)  # those that are not the plain ones
    start: Start = unchanged  # changes networks in place, before the first step
    weight: OfT = equal_weights  # t [B] -> what the loss of each pair is multiplied by, [B]
    draw: OfT = as_drawn  # t [B], each of 0..999 as likely -> the t to train at, [B]
    # Its ControlNet of the same seed is what this one begins with.
    goes_on_from: "Arm | None" = None


WAITING = {"steps": 2000, "sample_every": 40}  # from the paper's start it jumps at 1,546 and later
PLAIN = Arm("plain", WAITING)
# Where the jump comes early. In the last quarter the rate falls to 0: in a first run with a
# constant one `follows` went up and down between 0.5 and 0.7 after the jump.
SOONER = {"steps": 400, "sample_every": 25, "schedule": "cooldown"}


def folder_of(arm: Arm, seed: int, root: Path) -> Path:
    return root / f"{arm.name.replace(' ', '-')}-{seed}"


def settings_of(arm: Arm, seed: int, out: Path) -> train.Settings:
    """out: the run's folder, beside those of all other arms."""
    given = DEFAULTS | dict(arm.settings) | {"seed": seed}
    if arm.goes_on_from:
        before = folder_of(arm.goes_on_from, seed, out.parent.absolute())
        given["init_control"] = str(before / "control.safetensors")
    resolved = train.resolve(given)
    return replace(resolved, out=str(out.absolute()))


def models_of(arm: Arm, settings: train.Settings) -> tuple:
    """As train.models gives them, with the arm's change."""
    sd, control, trained = train.models(settings)
    machine.exact_float32()  # TF32 rounds off about what the paper's start spreads across hints
    like = next(control.parameters())
    control = arm.start(sd, control) or control
    control.to(like)  # what is new in it, too
    return sd, control, trained | {"control": control}


class Weighted(DDPM):
    """The targets of training times a factor of their own for each pair. If the outputs are
    multiplied by it, too, a pair's square error is multiplied by the factor's square."""

    def __init__(self, prediction: str, factor: Tensor):
        super().__init__(prediction)
        self.factor = factor

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        return self.factor * super().target(x0, noise, t)


def variant_of(arm: Arm) -> train.Variant:
    """What train.train is to use for this arm."""

    def models(settings: train.Settings) -> tuple:
        return models_of(arm, settings)

    def training_loss(
        unet: Any,
        control: ControlNet,
        diffusion: DDPM,
        scale_factor: float,
        batch: train.Batch,
        draws: train.Draws,
        empty: Tensor,
    ) -> Tensor:
        draws = draws._replace(t=arm.draw(draws.t))
        root = arm.weight(draws.t).float().sqrt().view(-1, 1, 1, 1).to(batch.hint.device)

        def weighted_unet(*inputs: Any) -> Tensor:
            return root * unet(*inputs)

        network: Any = weighted_unet
        targets = Weighted(diffusion.prediction, root)
        return train.training_loss(network, control, targets, scale_factor, batch, draws, empty)

    return train.Variant(models, training_loss, Looks())

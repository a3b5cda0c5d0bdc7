"""When each part of a ControlNet first receives a gradient: the first steps of an arm, on one batch
of drawn scenes."""

from functools import partial
from pathlib import Path

import torch
from torch import nn

import train
from nanocontrol import DDPM
from nanocontrol.experiments.arm import Arm, models_of, settings_of, variant_of
from nanocontrol.experiments.inside import parts_of
from nanocontrol.nano.scenes import Scenes
from nanocontrol.training.loader import load_batches

STEPS = 4


def norms_of(weights: dict[str, list[nn.Parameter]]) -> dict[str, float]:
    norms = {}
    for name, some in weights.items():
        gradients = [p.grad for p in some if p.grad is not None]
        norms[name] = nn.utils.get_total_norm(gradients).item() if gradients else 0.0
    return norms


def first_gradients(arm: Arm, seed: int = 0) -> dict[str, list[float]]:
    """For each part the norm of its gradient at steps 1, 2, ..."""
    torch.set_num_threads(1)
    settings = settings_of(arm, seed, Path("unused"))
    sd, control, trained = models_of(arm, settings)
    optimizer, n = train.optimizer_for(settings, trained), settings.batch_size
    scenes = Scenes(settings.condition, n=n, size=sd.size)
    with torch.no_grad():
        empty = sd.encode_prompts("")
    batches = load_batches(sd, scenes, seed, 0, n, slice(None), settings.device)
    loss_of = partial(variant_of(arm).training_loss, sd.unet, control, DDPM(sd.prediction))
    weights = {
        name: [p for module in modules for p in module.parameters()]
        for name, modules in parts_of(control).items()
    }
    found: dict[str, list[float]] = {name: [] for name in weights}
    for step in range(STEPS):
        draws = train.random_draws(seed, step, n, (sd.size, sd.size), settings.drop_prompt)
        loss = loss_of(sd.scale_factor, next(batches), draws, empty)
        optimizer.backward(loss)
        for name, norm in norms_of(weights).items():
            found[name].append(norm)
        optimizer.step(loss.detach())
    return found

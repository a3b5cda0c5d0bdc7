"""How much arithmetic a training step is: multiplications and additions of matrix products and
convolutions, forwards and backwards, as PyTorch counts them."""

from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

import train
from nanocontrol import DDPM
from nanocontrol.experiments.arm import Arm, models_of, settings_of


def operations(arm: Arm) -> int:
    """Of a step's networks, for one pair; its encoding and the optimizer are not counted."""
    settings = replace(settings_of(arm, 0, Path("unused")), device="cpu")
    sd, control, _ = models_of(arm, settings)
    side = sd.size
    latent, hint = torch.ones(1, 4, side // 8, side // 8), torch.ones(1, 3, side, side)
    context, t = torch.ones(1, 77, sd.unet.config.context_dim), torch.tensor([500])
    with FlopCounterMode(display=False) as counter:
        given = sd.unet, control, DDPM(sd.prediction), latent, hint, context
        train.diffusion_loss(*given, latent, t).backward()
    return counter.get_total_flops()

"""Cross normalization, in the place of zero convolutions (ControlNeXt, 2408.06070, as its
code has it): each residual gets the mean and deviation of the map that it is added to."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nanocontrol import ControlNet, StableDiffusion
from nanocontrol.experiments.arm import Start
from nanocontrol.experiments.beginnings import gaussian_convolutions

STRENGTH = 0.2  # ControlNeXt's


def matched(residual: Tensor, skip: Tensor) -> Tensor:
    """Both [B, C, h, w]; mean and deviation are of all numbers of a picture's map."""
    over = (1, 2, 3)
    own_mean, mean = (x.mean(over, keepdim=True) for x in (residual, skip))
    own_deviation, deviation = (x.std(over, keepdim=True) for x in (residual, skip))
    return STRENGTH * ((residual - own_mean) * deviation / (own_deviation + 1e-5) + mean)


def cross_norm(
    match: Callable[[Tensor, Tensor], Tensor] = matched,
    convolutions: Start = gaussian_convolutions(),
) -> Start:
    """Whenever the locked U-Net is given residuals, it matches them to its skips first (its encoder
    runs once more for that). Zeros have no deviation to match, so the convolutions are Gaussian."""

    def start(sd: StableDiffusion, control: ControlNet) -> None:
        convolutions(sd, control)

        def before(unet: Any, inputs: tuple) -> tuple:
            x, t, context, *residuals = inputs
            if not residuals or residuals[0] is None:
                return inputs
            with torch.no_grad():
                skips = unet.encode(x, unet.embed_time(t), context)
            return x, t, context, [match(r, s) for r, s in zip(residuals[0], skips, strict=True)]

        sd.unet.register_forward_pre_hook(before)

    return start

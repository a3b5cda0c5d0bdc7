"""Train a ControlNet at the noisiest t only: train.py with another loss, and with all its flags.

    python -m nanocontrol.tools.noisiest --init-control runs/canny-1/control.safetensors

Sampling decides in its first steps, at t near 1000, which colour belongs to which object. There the
loss hardly changes if two objects are exchanged, so ordinary training learns this last. Continue a
stopped run with this command, too; train.py would continue it with the ordinary loss.
"""

from typing import Any

from torch import Tensor

import train
from nanocontrol.schedulers import STEPS

NOISIEST = 800


def noisiest_loss(*given: Any) -> Tensor:
    """`train.training_loss`, with each t drawn from 0..999 moved to its place in 800..999."""
    unet, control, diffusion, scale_factor, batch, draws, empty = given
    draws = draws._replace(t=NOISIEST + draws.t * (STEPS - NOISIEST) // STEPS)
    return train.training_loss(unet, control, diffusion, scale_factor, batch, draws, empty)


if __name__ == "__main__":
    train.main(loss=noisiest_loss)

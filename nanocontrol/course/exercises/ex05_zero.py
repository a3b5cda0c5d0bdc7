"""Exercise 5: zero convolutions, and who gets a gradient when.

Each output of a ControlNet's copy passes a convolution whose weights start as zeros. People ask how
zero weights can learn. Find out twice: by hand, for one 1x1 convolution y = W x + b, and by
prediction, for a whole ControlNet.

A ControlNet has two layers of zeros in a row between the hint and the loss:

    hint -> encoder -> end of the encoder -> copy -> zero convolutions -> U-Net, loss
                       (zeros)                       (zeros)

The check trains nano's ControlNet and notes the first step, 1 to 4, in which each of the four parts
gets a gradient that is not zero. It does this four times, because each of the two layers may also
start with Gaussian weights. The U-Net is locked. A part with a gradient changes in the same step.

    python -m nanocontrol.course check 5
"""

from torch import Tensor


def by_hand(x: Tensor, weight: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The loss's gradients for weight [D, C], bias [D] and input x [B, C, h, w].

    grad [B, D, h, w]: the loss's gradient for the output y. Without autograd.
    """
    raise NotImplementedError


def first_gradients(convolutions_start_zero: bool, end_starts_zero: bool) -> dict[str, int]:
    """The first step in which each part gets a gradient that is not zero. Keys:
    "zero convolutions", "copy", "end of the encoder", "encoder"."""
    raise NotImplementedError

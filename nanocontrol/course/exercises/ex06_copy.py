"""Exercise 6: the copy, and what is locked.

A ControlNet joins a locked block F of the U-Net with a trainable copy of it (equation 2 of the
paper), where Z are zero convolutions:

    y = F(x; locked) + Z_out(F(x + Z_in(c); copy))

Prepare the parts. The check puts them together with two zero convolutions and trains for two steps.
Then three things must hold:

- before training, y is exactly F(x), and the copy has the block's weights;
- after two steps not a bit of the locked block has changed, and it has collected no gradients,
  which would take memory for nothing;
- after two steps every weight of the copy has changed. Why not after one? See exercise 5.

    python -m nanocontrol.course check 6
"""

from collections.abc import Iterable

from torch import nn


def build(block: nn.Module) -> tuple[nn.Module, nn.Module, Iterable[nn.Parameter]]:
    """(locked block, trainable copy, parameters for the optimizer besides the zero convolutions').

    block: F, with the U-Net's weights.
    """
    raise NotImplementedError

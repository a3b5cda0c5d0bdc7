"""Exercise 7: where the residuals go.

The U-Net's encoder has n blocks. Each block's output is kept as a skip, the shallowest first. The
middle block follows, then the decoder's n blocks. A decoder block takes what comes from below and
one skip, joined along the channels: torch.cat([from_below, skip], dim=1). The first decoder block
is the deepest. It takes the middle block's output and the deepest skip.

A ControlNet returns n + 1 residuals: one for each skip, in the order of the skips, and the middle
block's last. They are added to the skips and to the middle block's output. Look at the diagram on
the front page.

The check calls your function with blocks that note what they are given.

    python -m nanocontrol.course check 7
"""

from collections.abc import Callable

from torch import Tensor


def decode(
    blocks: list[Callable], skips: list[Tensor], middle: Tensor, residuals: list[Tensor]
) -> Tensor:
    """The output of the last decoder block.

    blocks: the decoder's, in the order in which they run; block(x) returns a tensor. skips: the
    encoder's outputs, the shallowest first; middle: the middle block's output.
    """
    raise NotImplementedError

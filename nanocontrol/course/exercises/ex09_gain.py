"""Exercise 9: which of three runs follows its hints?

run_a.csv, run_b.csv and run_c.csv are three real trainings of nano's ControlNet, of 240 steps each.
Their columns: the step; the training loss, as the mean of the last 40 steps; and the loss on eight
pairs that were held out of training, once with their own hints and once with other pairs' hints.
One of the three runs follows its hints.

A ControlNet's loss says little: most of it is the error of the locked base, which the hint hardly
changes, and some of the rest depends on what a run was trained on. The control gain is a better
number. It compares the loss with the wrong hints and with the right ones.

Say which run follows, and write the function. The check calls it with nano's losses.

    python -m nanocontrol.course check 9
"""

from collections.abc import Callable

from torch import Tensor

FOLLOWS = ""  # "a", "b" or "c"


def control_gain(loss: Callable[[Tensor], float], hints: Tensor) -> float:
    """By how much the loss rises with wrong hints. Above 0 if the hints are followed.

    loss(hints) is the mean loss of n held-out pairs, with any hints [n, 3, 128, 128], in the pairs'
    order. hints: the pairs' own. A wrong hint is that of another of these pairs.
    """
    raise NotImplementedError

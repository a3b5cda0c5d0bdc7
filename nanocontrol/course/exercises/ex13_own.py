"""Bonus: a condition of your own.

nano's ControlNets follow nine conditions; invent a tenth. A condition is a picture that is computed
from a drawn scene and says where objects are. It may show less than the nine do: only the lower
half, only the shadows, a dot for each object. How little is enough?

`drawing` is described in nanocontrol/nano/world.py (class Drawing). conditions.py next to it has
examples. Training takes minutes on a laptop:

    python -m nanocontrol.course train own    # 700 steps; writes runs/own
    python -m nanocontrol.course check 13     # 32 pictures; writes ex13.png

Hand in runs/own/control-half.safetensors with this file: it has 4 MB.
"""

import numpy as np

from nanocontrol.nano.world import Drawing


def condition(drawing: Drawing) -> np.ndarray:
    """The hint [size, size, 3], RGB in 0 to 1. Not the picture itself."""
    raise NotImplementedError

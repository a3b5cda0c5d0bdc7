"""Exercise 3: a step of DDIM.

The network looks at x_t and predicts the noise in it. DDIM uses this prediction twice. First it
solves x_t = sqrt(abar[t]) x0 + sqrt(1 - abar[t]) noise for x0. Then it mixes x0 and the same noise
again, for the level that sampling visits next. With 20 steps this is 50 levels lower, not one.

A fact to get right: after its last step Stable Diffusion does not go to a clean latent. It goes to
the level 0, where abar[0] = 0.99915.

If the prediction is the true noise, every step must land exactly on the mixture of x0 and noise of
its level. The check does that.

    python -m nanocontrol.course check 3    # writes ex03.png, sampled with your step
"""

from torch import Tensor


def ddim_step(x: Tensor, noise: Tensor, t: int, following: int | None, abar: Tensor) -> Tensor:
    """x at the level that is visited next.

    x, noise [B, 4, h, w]: x_t and the predicted noise; t, following: this level and the next one,
    which is lower; following is None in the last step; abar [1000].
    """
    raise NotImplementedError

"""Exercise 1: add noise, and say what t is.

A diffusion model is trained on noisy latents. x0 and the noise both have variance 1, and they are
mixed so that the result x_t has variance 1 as well. The schedule abar ("alpha bar") says how: the
share abar[t] of x_t's variance is x0's, the rest is the noise's. abar falls from nearly 1 at t = 0
to nearly 0 at t = 999. So t is a level of noise. Training draws a t for every latent.

Sampling goes the other way, from noise to a picture, and visits only some of the 1,000 levels. With
S steps Stable Diffusion visits the levels floor(1000 i / S) + 1, for i = 0 to S - 1, the noisiest
first.

Write both functions, then:

    python -m nanocontrol.course check 1
"""

from torch import Tensor


def add_noise(x0: Tensor, noise: Tensor, t: Tensor, abar: Tensor) -> Tensor:
    """x_t [B, 4, h, w].

    x0, noise [B, 4, h, w], both of variance 1; t [B], a level 0..999 for each latent; abar [1000].
    """
    raise NotImplementedError


def level_of_step(i: int, steps: int) -> int:
    """The t that sampling step i visits: i = 0 is the first of so many steps."""
    raise NotImplementedError

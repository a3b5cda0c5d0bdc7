"""Exercise 2: measure the latent scale of a VAE.

The U-Net's noise has variance 1, and its latents should have it too: then abar[t] really is the
latent's share of the variance. The latents that a VAE makes have any variance. So every Stable
Diffusion model multiplies them by one number, its latent scale. For Stable Diffusion 1 it is
0.18215. Where does this number come from, and what is it for the VAE of this exercise? It is that
of nano, but its latents are multiplied by a number that you do not know.

Measure it: one number for all channels, from the latents of some pictures.

    python -m nanocontrol.course check 2
"""

from collections.abc import Callable

from torch import Tensor


def latent_scale(encode: Callable, pictures: Tensor) -> float:
    """The number that gives the latents of these pictures variance 1.

    pictures [n, 3, 128, 128] in [-1, 1]. encode(pictures) returns mean and standard deviation of
    the VAE's posterior, both [n, 4, 16, 16]; a latent is drawn from this normal distribution.
    """
    raise NotImplementedError

"""What t counts in training: how much the loss of each, and how often it is drawn. t [B] is on the
CPU, 0..999."""

from torch import Tensor

from nanocontrol import DDPM
from nanocontrol.schedulers import STEPS


def signal_to_noise(t: Tensor) -> Tensor:
    abar = DDPM().alphas_cumprod[t.cpu()]
    return abar / (1 - abar)


def like_x0(t: Tensor, most: float = 5.0) -> Tensor:
    """The error of the noise, times 1/SNR, is the error of x_0 (x0-supervision, 2604.05761); at
    the noisiest t that would be 200, so it is cut off."""
    return (1 / signal_to_noise(t)).clamp(max=most)


def min_snr(t: Tensor, most: float = 5.0) -> Tensor:
    """Hang et al. 2023 (2303.09556), for a predicted noise: the least noisy t, whose
    SNR is large, count less."""
    return (most / signal_to_noise(t)).clamp(max=1.0)


def late(t: Tensor) -> Tensor:
    """T2I-Adapter's (1 - u^3) 1000 (section 3.4), u uniform: the noisy t are trained more often."""
    u = (t + 0.5) / STEPS
    return ((1 - u**3) * STEPS).long().clamp(max=STEPS - 1)

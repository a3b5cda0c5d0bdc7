"""The diffusion process: from a latent to noise, and step by step back.

DDPM: Ho et al. 2020. DDIM: Song et al. 2021. v-prediction: Salimans & Ho 2022.
x_t is the latent x_0 after t steps (0..999) of noising; abar_t, in the code `alphas_cumprod`, is
the share of the variance that is still x_0's: x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) noise.
"""

import torch
from torch import Tensor

STEPS = 1000  # of noising


class DDPM:
    """Stable Diffusion's schedule, what is learnt, and sampling with fresh noise at every step.

    prediction: what the network makes of x_t: "eps", the noise, or
    "v" = sqrt(abar_t) noise - sqrt(1 - abar_t) x_0.
    device: of every t in a tensor.
    """

    adds_noise = True

    def __init__(self, prediction: str = "eps", device: str | torch.device = "cpu"):
        if prediction not in ("eps", "v"):
            raise ValueError(f"prediction is 'eps' or 'v', not {prediction!r}")
        self.prediction = prediction
        # Evenly spaced square roots, in float64 as in the original.
        self.betas = torch.linspace(0.00085**0.5, 0.0120**0.5, STEPS, dtype=torch.float64) ** 2
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0).to(device)

    def timesteps(self, steps: int) -> list[int]:
        """The t to visit, noisiest first: floor(1000 i / steps) + 1, or all of 0..999.

        The same as in the original where steps divides 1000 (but 1000 itself). For other counts the
        original visits one t too many, or indexes past the end.
        Raises ValueError unless 1 <= steps <= 1000.
        """
        if not 1 <= steps <= STEPS:
            raise ValueError(f"steps must be 1 to {STEPS}, not {steps}")
        offset = 0 if steps == STEPS else 1
        return [STEPS * i // steps + offset for i in reversed(range(steps))]

    def signal_and_noise(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """sqrt(abar_t) and sqrt(1 - abar_t) for t [B], shaped to multiply like [B, 4, h, w]."""
        abar = self.alphas_cumprod[t].view(-1, 1, 1, 1)
        signal, sigma = abar.sqrt(), (1 - abar).sqrt()
        return signal.to(like, non_blocking=True), sigma.to(like, non_blocking=True)

    def add_noise(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t; x0 and noise [B, 4, h, w], t [B]."""
        signal, sigma = self.signal_and_noise(t, x0)
        return signal * x0 + sigma * noise

    def target(self, x0: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """The output that the network should learn for add_noise(x0, noise, t)."""
        if self.prediction == "eps":
            return noise
        signal, sigma = self.signal_and_noise(t, x0)
        return signal * noise - sigma * x0

    def split(self, x: Tensor, output: Tensor, t: int) -> tuple[Tensor, Tensor]:
        """x_t and the network's output -> the estimates of x_0 and of the noise."""
        abar = self.alphas_cumprod[t].item()
        signal, sigma = abar**0.5, (1 - abar) ** 0.5
        if self.prediction == "eps":
            return (x - sigma * output) / signal, output
        return signal * x - sigma * output, signal * output + sigma * x

    def step(
        self, x: Tensor, output: Tensor, t: int, previous: int | None, noise: Tensor | float
    ) -> Tensor:
        """x_t -> x_previous, a draw from q(x_previous | x_t, x_0): Ho et al., equations 6 and 7.

        x, output (the network's) and noise have one shape; previous is the next t to visit, lower
        than this one, or None after the last, which gives x_0 itself.
        """
        x0, _ = self.split(x, output, t)
        if previous is None:
            return x0
        abar, abar_previous = self.alphas_cumprod[t].item(), self.alphas_cumprod[previous].item()
        alpha = abar / abar_previous
        from_x0 = abar_previous**0.5 * (1 - alpha) / (1 - abar)
        from_x = alpha**0.5 * (1 - abar_previous) / (1 - abar)
        variance = (1 - alpha) * (1 - abar_previous) / (1 - abar)
        return from_x0 * x0 + from_x * x + variance**0.5 * noise


class DDIM(DDPM):
    """The same, in few steps; eta = 0 adds no noise, eta = 1 as much as DDPM. Raises ValueError
    for another eta than 0 to 1."""

    def __init__(self, prediction: str = "eps", eta: float = 0.0):
        super().__init__(prediction)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be 0 to 1, not {eta}")
        self.eta = eta
        self.adds_noise = eta > 0

    def step(
        self, x: Tensor, output: Tensor, t: int, previous: int | None, noise: Tensor | float
    ) -> Tensor:
        """x_t -> x_previous: Song et al., equations 12 and 16.

        After the last (None) the original goes to abar_0 = 0.99915, not to 1: some noise stays.
        """
        x0, eps = self.split(x, output, t)
        abar = self.alphas_cumprod[t].item()
        abar_previous = self.alphas_cumprod[0 if previous is None else previous].item()
        variance = (1 - abar_previous) / (1 - abar) * (1 - abar / abar_previous)
        sigma = self.eta * variance**0.5
        direction = (1 - abar_previous - sigma**2) ** 0.5 * eps
        return abar_previous**0.5 * x0 + direction + sigma * noise

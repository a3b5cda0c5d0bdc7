"""From noise to a latent, guided by a prompt and by any number of ControlNets."""

from collections.abc import Sequence

import torch
from torch import Tensor
from tqdm import tqdm

from .checkpoint import StableDiffusion
from .controlnet import ControlNet
from .schedulers import DDIM, DDPM

# A network, its hint [1 or B, 3, 8h, 8w] RGB in [0, 1], and its strength, 1 being as trained.
Control = tuple[ControlNet, Tensor, float]


def initial_noise(n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """[n, 4, height/8, width/8], for pictures of that size. The generator is the CPU's, so that a
    seed gives the same noise on every device."""
    return torch.randn((n, 4, height // 8, width // 8), generator=generator)


@torch.no_grad()
def sample(
    sd: StableDiffusion, noise: Tensor, context: Tensor, uncond: Tensor,
    controls: Sequence[Control] = (), steps: int = 20, scale: float = 9.0, eta: float = 0.0,
    sampler: str = "ddim", generator: torch.Generator | None = None, progress: bool = False,
) -> Tensor:  # fmt: skip
    """Latents [B, 4, h, w] in float32, scaled: decode them divided by `sd.scale_factor`.

    noise [B, 4, h, w]; context and uncond [1 or B, 77, D], encoded prompts and negative prompts;
    scale: of classifier-free guidance (Ho & Salimans 2022), 1 being the prompt alone;
    sampler: "ddim", with its eta, or "ddpm"; generator (CPU): of the noise that samplers add.
    Raises ValueError for an unknown sampler, or if there are not 1 to 1000 steps.
    """
    if sampler not in ("ddim", "ddpm"):
        raise ValueError(f"sampler is 'ddim' or 'ddpm', not {sampler!r}")
    scheduler = DDPM(sd.prediction) if sampler == "ddpm" else DDIM(sd.prediction, eta)
    timesteps = scheduler.timesteps(steps)
    weight = next(sd.unet.parameters())
    x = noise.to(weight.device, torch.float32)
    # Without and with the prompt, in one batch.
    contexts = [context] if scale == 1 else [uncond, context]
    context = torch.cat([c.expand(len(x), -1, -1) for c in contexts]).to(weight)
    hints = [hint.expand(len(x), -1, -1, -1).repeat(len(contexts), 1, 1, 1).to(weight)
             for _, hint, _ in controls]  # fmt: skip

    t_and_previous = zip(timesteps, [*timesteps[1:], None])
    for t, previous in tqdm(t_and_previous, "sampling", total=steps, disable=not progress):
        x_in = x.repeat(len(contexts), 1, 1, 1).to(weight.dtype)
        t_in = torch.full((len(x_in),), t, device=x.device)
        residuals = None
        for (net, _, strength), hint in zip(controls, hints):
            more = [strength * r for r in net(x_in, hint, t_in, context)]
            residuals = more if residuals is None else [a + b for a, b in zip(residuals, more)]
        output = sd.unet(x_in, t_in, context, residuals).float()
        if len(contexts) == 2:
            without, with_prompt = output.chunk(2)
            output = without + scale * (with_prompt - without)
        fresh = torch.randn(x.shape, generator=generator).to(x) if scheduler.adds_noise else 0.0
        x = scheduler.step(x, output, t, previous, fresh)
    return x

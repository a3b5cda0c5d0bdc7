"""What happens inside a ControlNet: how much of the hints its encoder passes on, and which parts
learn."""

import torch
from torch import Tensor, nn

import train
from nanocontrol import DDPM, ControlNet, StableDiffusion
from nanocontrol.schedulers import STEPS
from nanocontrol.training.measure import HeldOut


def spread(x: Tensor) -> float:
    """How much activations [B, C, H, W] at one place differ from picture to picture: the root mean
    square over channels and places of the deviation across pictures."""
    return x.float().var(dim=0).mean().sqrt().item()


@torch.no_grad()
def spread_by_layer(encoder: nn.Sequential, hints: Tensor) -> list[float]:
    """After each SiLU, across hints [n, 3, H, W]."""
    spreads = []
    x = hints.to(next(encoder.parameters()))
    for module in encoder:
        x = module(x)
        if isinstance(module, nn.SiLU):
            spreads.append(spread(x))
    return spreads


@torch.no_grad()
def spread_by_block(sd: StableDiffusion, control: ControlNet, n: int = 16) -> list[float]:
    """After each of the copy's blocks, across latents of noise alone, at t 999, without a hint."""
    size = sd.size // 8
    x = torch.randn(n, 4, size, size, generator=torch.Generator().manual_seed(0))
    emb = control.embed_time(torch.full((n,), STEPS - 1))
    outputs = control.encode(x, emb, sd.encode_prompts([""] * n))
    return [spread(output) for output in outputs]


def parts_of(control: ControlNet) -> dict[str, list[nn.Module]]:
    """The hint's way: the condition encoder, the zero convolution that ends it, the copy, and the
    zero convolutions of its outputs."""
    return {
        "encoder": [*control.input_hint_block[:-1]],
        "hint_zero": [control.input_hint_block[-1]],
        "copy": [control.time_embed, control.input_blocks, control.middle_block],
        "zeros": [control.zero_convs, control.middle_block_out],
    }


def gradient_by_part(sd: StableDiffusion, control: ControlNet, pairs: HeldOut) -> dict[str, float]:
    """The norm of the gradient of each part's weights, of the loss of these pairs with fixed noise
    and t spread evenly over 0..999."""
    device, n = next(control.parameters()).device, len(pairs.images)
    noise = torch.randn(pairs.x0.shape, generator=torch.Generator().manual_seed(0))
    t = ((torch.arange(n) + 0.5) / n * STEPS).long()
    x0, hints, noise = (x.to(device) for x in (pairs.x0, pairs.hints, noise))
    with torch.no_grad():
        context = sd.encode_prompts(pairs.prompts).to(device)
    loss = train.diffusion_loss(sd.unet, control, DDPM(sd.prediction), x0, hints, context, noise, t)
    weights = {
        name: [p for module in modules for p in module.parameters() if p.requires_grad]
        for name, modules in parts_of(control).items()
    }
    found = torch.autograd.grad(loss, sum(weights.values(), []), allow_unused=True)
    norms, left = {}, list(found)
    for name, own in weights.items():
        gradients = [g for g in left[: len(own)] if g is not None]
        del left[: len(own)]
        norms[f"gradient_{name}"] = nn.utils.get_total_norm(gradients).item() if gradients else 0.0
    return norms

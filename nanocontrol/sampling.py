"""From noise to a latent, guided by a prompt and by any number of ControlNets.

Shapes: B pictures; h and w, the latent's height and width (the picture's / 8); 77 tokens,
D = context_dim (768 or 1024); N rows of a batch: B, or 2B with guidance.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from nanocontrol.controlnet import ControlNet
from nanocontrol.plumbing.machine import repeated
from nanocontrol.schedulers import DDIM, DDPM
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.unet import UNet

# 1 is as trained: a number, or one for each residual (13 in Stable Diffusion), the shallowest
# first, the middle last.
Strength = float | Sequence[float]
# A network, its hint [1 or B, 3, 8h, 8w] RGB in [0, 1], and its strength.
Control = tuple[ControlNet, Tensor, Strength]
# For each control its network, its strength, and whether `guess` and `resolution_weighting` hold.
Ways = Sequence[tuple[ControlNet, Strength, bool, bool]]


def initial_noise(n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """[n, 4, height/8, width/8], for pictures of that size. The generator is the CPU's, so that a
    seed gives the same noise on every device, and whatever PyTorch's default dtype may be."""
    return torch.randn((n, 4, height // 8, width // 8), generator=generator, dtype=torch.float32)


def timesteps_to_visit(scheduler: DDPM, steps: int, noised: float | None) -> list[int | None]:
    """The t to visit, noisiest first, then None: no noise is left. With `noised` (0 to 1) only
    that fraction of them, the last ones, rounded to whole steps."""
    if noised is not None and not 0 <= noised <= 1:
        raise ValueError(f"noised must be a fraction, 0 to 1, not {noised}")
    skipped = 0 if noised is None else steps - round(noised * steps)
    return [*scheduler.timesteps(steps)[skipped:], None]


def controlled_steps(steps: int, control_from: float, control_to: float) -> list[bool]:
    """Whether each step is under control: i of S if control_from <= i / S < control_to."""
    if not 0 <= control_from <= control_to <= 1:
        raise ValueError(f"expected 0 <= {control_from=} <= {control_to=} <= 1")
    return [control_from <= i / steps < control_to for i in range(steps)]


def begin(
    scheduler: DDPM,
    noise: Tensor,
    t: int | None,
    image: Tensor | None,
    mask: Tensor | None,
    noised: float | None,
) -> tuple[Tensor, Callable[[Tensor, int | None], Tensor]]:
    """x_t to begin with, and the function that repaints: it takes x_t and t, and gives x_t where
    the mask is True, elsewhere the image with as much of the noise as belongs to t."""
    if (image is None) != (mask is None and noised is None):
        raise ValueError("an image needs a mask, noised or both, and these need an image")
    if image is None:
        return noise, lambda x, t: x
    image = image.to(noise).expand_as(noise)
    mask = None if mask is None else mask.to(noise.device)

    def image_at(t: int | None) -> Tensor:
        return image if t is None else scheduler.add_noise(image, noise, torch.tensor([t]))

    def repaint(x: Tensor, t: int | None) -> Tensor:
        return x if mask is None else torch.where(mask, x, image_at(t))

    return repaint(noise if noised is None else image_at(t), t), repaint


def encode_hints(controls: Sequence[Control], x: Tensor, copies: int) -> list[Tensor]:
    """The hints encoded, [copies * B, c, h, w], which are the same at every step. x [B, 4, h, w]:
    for the size, and in the networks' precision."""
    encoded: list[Tensor] = []
    for net, hint, strength in controls:
        n = len(net.zero_convs) + 1
        if isinstance(strength, Sequence) and len(strength) != n:
            raise ValueError(f"{len(strength)} strengths for {n} residuals")
        h = net.encode_hint(hint.to(x), x)
        encoded.append(h.expand(len(x), -1, -1, -1).repeat(copies, 1, 1, 1))
    return encoded


def weighted(
    residuals: list[Tensor], strength: Strength, guess: bool, resolution_weighting: bool
) -> list[Tensor]:
    """A ControlNet's residuals, the first of the latent's height, times their weights."""
    n, height = len(residuals), residuals[0].shape[2]
    weights = strength if isinstance(strength, Sequence) else [strength] * n
    if guess:  # the original's: in Stable Diffusion a tenth at the shallowest, 1 in the middle
        weights = [w * 0.825 ** (n - 1 - i) for i, w in enumerate(weights)]
    if resolution_weighting:  # the paper's, the other way round: 1 at the shallowest, up to 8
        weights = [w * height / r.shape[2] for w, r in zip(weights, residuals)]
    return [w * r for w, r in zip(weights, residuals)]


def sum_of_residuals(
    ways: Ways, hints: Sequence[Tensor], x: Tensor, t: Tensor, context: Tensor
) -> list[Tensor] | None:
    """All ControlNets' residuals, weighted and added up (section 3.4); None without hints.

    x [N, 4, h, w], t [N], context [N, 77, D]: of these rows the last are controlled, as many as
    an encoded hint has; the others get zeros.
    """
    total = None
    for (net, strength, guess, resolution_weighting), hint in zip(ways, hints):
        n, others = len(hint), len(x) - len(hint)
        residuals = net.residuals(x[-n:], hint, t[-n:], context[-n:])
        residuals = weighted(residuals, strength, guess, resolution_weighting)
        residuals = [torch.cat([r.new_zeros(others, *r.shape[1:]), r]) for r in residuals]
        total = residuals if total is None else [a + b for a, b in zip(total, residuals)]
    return total


def predict(
    unet: UNet, ways: Ways, scale: float, x: Tensor, t: Tensor, context: Tensor, *hints: Tensor
) -> Tensor:
    """What the U-Net makes of x [B, 4, h, w] at step t [1], with guidance, and under control where
    there are encoded hints, one for each way.

    context [N, 77, D]: of the prompts; before them, unless scale is 1, of the negative ones.
    """
    x_in = x.repeat(len(context) // len(x), 1, 1, 1).to(context.dtype)
    t_in = t.expand(len(x_in))
    residuals = sum_of_residuals(ways, hints, x_in, t_in, context)
    output = unet(x_in, t_in, context, residuals).float()
    if scale == 1:
        return output
    without, with_prompt = output.chunk(2)
    return without + scale * (with_prompt - without)


def predictor(
    sd: StableDiffusion, controls: Sequence[Control], scale: float, guess: bool, weighting: bool
) -> Callable[..., Tensor]:
    """`predict` of x, t, context and hints, for this base and these controls."""
    strengths = (tuple(s) if isinstance(s, Sequence) else s for *_, s in controls)
    ways = [(net, s, guess, weighting) for (net, *_), s in zip(controls, strengths)]
    networks = [sd.unet, *(net for net, *_ in controls)]
    return repeated(partial(predict, sd.unet, ways, scale), networks, sd.graphs)


@torch.no_grad()
def sample(
    sd: StableDiffusion,
    noise: Tensor,
    context: Tensor,
    uncond: Tensor,
    controls: Sequence[Control] = (),
    steps: int = 20,
    scale: float = 9.0,
    scheduler: DDPM | None = None,
    generator: torch.Generator | None = None,
    progress: bool = False,
    *,
    guess: bool = False,
    resolution_weighting: bool = False,
    control_from: float = 0.0,
    control_to: float = 1.0,
    image: Tensor | None = None,
    mask: Tensor | None = None,
    noised: float | None = None,
) -> Tensor:
    """Latents [B, 4, h, w] in float32, scaled, as `sd.decode` takes them.

    noise [B, 4, h, w]; context and uncond [1 or B, 77, D], encoded prompts and negative prompts;
    scale: of classifier-free guidance (Ho & Salimans 2022), 1 being the prompt alone;
    scheduler: None is DDIM for what the base predicts; generator (CPU): of the noise that it adds.

    Ways to apply the controls:
    guess: for hints without a prompt, the original's "guess mode": control where the prompt is
    given, none where it is not, and the weaker the shallower (0.825^(n-1-i) for residual i of n);
    resolution_weighting: the paper's own answer to that (section 3.4, CFG-RW): also only where the
    prompt is given, and weighted by the latent's height over the residual's. The two are meant
    as alternatives, and sample.py takes one of them; with both, the weights are multiplied;
    control_from, control_to: step i of S is controlled if control_from <= i / S < control_to.

    image [1 or B, 4, h, w], scaled latents of a picture, for either or both of:
    mask [1 or B, 1, h, w], bool: only what is True is painted anew, the rest is the image's, at
    every step as noisy as x_t, and in the end the image's own;
    noised: begin with the image, not with noise alone, noised to this fraction of the steps
    (Meng et al. 2021); only these, rounded to whole ones, are then run and are the S above.

    Raises ValueError if there are not 1 to 1000 steps, for fractions not in 0..1 or in the wrong
    order, for an image without mask and noised or these without an image, and for a wrong number of
    strengths.
    """
    scheduler = scheduler or DDIM(sd.prediction)
    weight = next(sd.unet.parameters())
    noise = noise.to(weight.device, torch.float32)
    visited = timesteps_to_visit(scheduler, steps, noised)
    under_control = controlled_steps(len(visited) - 1, control_from, control_to)
    x, repaint = begin(scheduler, noise, visited[0], image, mask, noised)

    # Without the prompt, then with it, in one batch. The hint goes to all rows; with guess or
    # resolution_weighting only to those with the prompt.
    prompts = [context] if scale == 1 else [uncond, context]
    context = torch.cat([c.expand(len(x), -1, -1) for c in prompts]).to(weight)
    copies = 1 if guess or resolution_weighting else len(prompts)
    hints = encode_hints(controls, x.to(weight), copies)
    output_of = predictor(sd, controls, scale, guess, resolution_weighting)

    # Now, so that no step waits for a copy to the GPU.
    ts = torch.tensor(visited[:-1], device=x.device).split(1)
    for i, t in enumerate(tqdm(visited[:-1], "sampling", disable=not progress)):
        output = output_of(x, ts[i], context, *(hints if under_control[i] else []))
        fresh: Tensor | float = 0.0
        if scheduler.adds_noise:
            fresh = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)
        x = repaint(scheduler.step(x, output, t, visited[i + 1], fresh), visited[i + 1])
    return x

"""From noise to a latent, guided by a prompt and by any number of ControlNets.

Shapes: B pictures; h and w, the latent's height and width (the picture's / 8); 77 tokens,
D = context_dim (768 or 1024). A batch has N rows: B, or 2B with guidance, where the first B have
the negative prompt.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from tqdm import tqdm

from nanocontrol.controlnet import ControlNet
from nanocontrol.plumbing.machine import repeated
from nanocontrol.schedulers import DDIM, DDPM
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.unet import UNet

# 1 is as trained: a number, or one for each residual (13 in Stable Diffusion), the shallowest
# first, the middle block's last.
Strength = float | Sequence[float] | Tensor
# A network, its hint [1 or B, 3, 8h, 8w] RGB in [0, 1], and its strength.
Control = tuple[ControlNet, Tensor, Strength]


class Applied(NamedTuple):
    """A ControlNet as it is applied, the same at every step."""

    net: ControlNet
    weights: list[float]  # one for each residual, the shallowest first, the middle block's last
    prompt_only: bool  # whether it acts only on the rows with the prompt


def initial_noise(n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Noise [n, 4, height/8, width/8] for pictures of this height and width. The generator is on
    the CPU, so that a seed gives the same noise on every device."""
    return torch.randn((n, 4, height // 8, width // 8), generator=generator, dtype=torch.float32)


def timesteps_to_visit(scheduler: DDPM, steps: int, noised: float | None) -> list[int | None]:
    """The t to visit, noisiest first, then None for the end of sampling. `noised` (0 to 1) keeps
    only this share of the steps, the last ones, rounded to whole steps."""
    if noised is not None and not 0 <= noised <= 1:
        raise ValueError(f"noised must be a fraction, 0 to 1, not {noised}")
    skipped = 0 if noised is None else steps - round(noised * steps)
    return [*scheduler.timesteps(steps)[skipped:], None]


def controlled_steps(steps: int, control_from: float, control_to: float) -> list[bool]:
    """Whether each step is controlled: step i of S is if control_from <= i / S < control_to."""
    if not 0 <= control_from <= control_to <= 1:
        raise ValueError(f"expected 0 <= {control_from=} <= {control_to=} <= 1")
    return [control_from <= i / steps < control_to for i in range(steps)]


def starting_latent(
    scheduler: DDPM,
    noise: Tensor,
    t: int | None,
    image: Tensor | None,
    mask: Tensor | None,
    noised: float | None,
) -> tuple[Tensor, Callable[[Tensor, int | None], Tensor]]:
    """The first x_t, and a function repaint(x_t, t): it keeps x_t where the mask is True and puts
    in the image elsewhere, noised to level t."""
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


def weigh(control: Control, height: int, guess: bool, resolution_weighting: bool) -> Applied:
    """Strength, guess mode and resolution weighting as one weight for each residual.

    height: the latent's. Raises ValueError for a wrong number or shape of strengths.
    """
    net, _, strength = control
    n = len(net.zero_convs) + 1
    given = torch.as_tensor(strength, dtype=torch.float64)
    if given.shape not in ((), (n,)):
        raise ValueError(f"strengths of shape {[*given.shape]}: expected a number, or {n} numbers")
    weights = given.expand(n).tolist()
    if guess:  # as in the original: in Stable Diffusion 0.1 at the shallowest, 1 in the middle
        weights = [w * 0.825 ** (n - 1 - i) for i, w in enumerate(weights)]
    if resolution_weighting:  # the paper's goes the other way: 1 at the shallowest, up to 8
        levels = [*net.skip_levels, net.skip_levels[-1]]
        heights = [-(-height // 2**level) for level in levels]  # an odd height is rounded up
        weights = [w * height / h for w, h in zip(weights, heights)]
    return Applied(net, weights, guess or resolution_weighting)


def encode_hints(controls: Sequence[Control], x: Tensor) -> list[Tensor]:
    """The hints, encoded: [B, c, h, w] each. x [B, 4, h, w] has their size and precision."""
    encoded = [net.encode_hint(hint.to(x), x) for net, hint, _ in controls]
    return [hint.expand(len(x), -1, -1, -1) for hint in encoded]


def sum_of_residuals(
    controls: Sequence[Applied], hints: Sequence[Tensor], x: Tensor, t: Tensor, context: Tensor
) -> list[Tensor] | None:
    """The residuals of all ControlNets, weighted and added up (section 3.4); None without hints.

    hints [B, c, h, w]: encoded, one for each control; x [N, 4, h, w], t [N], context [N, 77, D].
    Rows that a ControlNet does not act on get zeros.
    """
    total = None
    for (net, weights, prompt_only), hint in zip(controls, hints):
        n = len(hint) if prompt_only else len(x)  # the last rows are those with the prompt
        hint = hint.repeat(n // len(hint), 1, 1, 1)
        residuals = net.residuals(x[-n:], hint, t[-n:], context[-n:])
        residuals = [w * r for w, r in zip(weights, residuals)]
        residuals = [torch.cat([r.new_zeros(len(x) - n, *r.shape[1:]), r]) for r in residuals]
        total = residuals if total is None else [a + b for a, b in zip(total, residuals)]
    return total


def predict(
    unet: UNet,
    controls: Sequence[Applied],
    scale: float,
    x: Tensor,
    t: Tensor,
    context: Tensor,
    *hints: Tensor,
) -> Tensor:
    """The U-Net's output for x [B, 4, h, w] at step t [1], with guidance and control.

    context [N, 77, D]: encoded prompts, after the negative ones unless scale is 1;
    hints [B, c, h, w]: encoded, one for each control; none at a step without control.
    """
    x_in = x.repeat(len(context) // len(x), 1, 1, 1).to(context.dtype)
    t_in = t.expand(len(x_in))
    residuals = sum_of_residuals(controls, hints, x_in, t_in, context)
    output = unet(x_in, t_in, context, residuals).float()
    if scale == 1:
        return output
    without, with_prompt = output.chunk(2)
    return without + scale * (with_prompt - without)


@torch.no_grad()
def sample(*arguments: Any, **options: Any) -> Tensor:
    """Latents [B, 4, h, w] in float32, scaled, as `sd.decode` takes them: x_t after the last of the
    `sampling_steps` with these arguments."""
    for x, _ in sampling_steps(*arguments, **options):  # noqa: B007
        pass
    return x


@torch.no_grad()
def sampling_steps(
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
) -> Iterator[tuple[Tensor, Tensor]]:
    """x_t [B, 4, h, w] in float32, scaled, and the estimate of x_0 from which it was made. Both are
    yielded after every step, and at the beginning, where the second one is x_t, too.

    noise [B, 4, h, w]; context and uncond [1 or B, 77, D], encoded prompts and negative prompts;
    scale: of classifier-free guidance (Ho & Salimans 2022); 1 is the prompt alone;
    scheduler: DDIM by default, for what the base predicts; generator (CPU): draws the noise that
    the scheduler adds.

    How the controls are applied:
    guess: the original's "guess mode", for hints without a prompt. Only the rows with the prompt
    are controlled, and shallow residuals less: the weight of residual i of n is 0.825^(n-1-i);
    resolution_weighting: the paper's solution of the same problem (section 3.4, CFG-RW). Only the
    rows with the prompt are controlled, and the weight of a residual is the latent's height divided
    by its own. With both rules the weights are multiplied; sample.py allows only one of them;
    control_from, control_to: step i of S is controlled if control_from <= i / S < control_to.

    image [1 or B, 4, h, w], scaled latents of a picture; it needs a mask, noised or both:
    mask [1 or B, 1, h, w], bool: inpainting. The part where it is True is new; elsewhere x_t is
    the image with the noise of step t, and in the end the image itself;
    noised: img2img (Meng et al. 2021). The run begins with the noised image instead of noise. Only
    this share of the steps, rounded to whole steps, is run; S counts these.

    Raises ValueError if there are not 1 to 1000 steps, for fractions outside 0..1 or in the wrong
    order, for an image without mask and noised or these without an image, and for a wrong number of
    strengths.
    """
    scheduler = scheduler or DDIM(sd.prediction)
    weight = next(sd.unet.parameters())
    noise = noise.to(weight.device, torch.float32)
    visited = timesteps_to_visit(scheduler, steps, noised)
    under_control = controlled_steps(len(visited) - 1, control_from, control_to)
    x, repaint = starting_latent(scheduler, noise, visited[0], image, mask, noised)

    # One batch for both predictions, without the prompt and with it.
    prompts = [context] if scale == 1 else [uncond, context]
    context = torch.cat([c.expand(len(x), -1, -1) for c in prompts]).to(weight)
    nets = [weigh(c, x.shape[2], guess, resolution_weighting) for c in controls]
    hints = encode_hints(controls, x.to(weight))
    output_of = repeated(partial(predict, sd.unet, nets, scale), [sd.unet, *(c.net for c in nets)])

    # Copied to the GPU here, so that no step waits for a copy.
    ts = torch.tensor(visited[:-1], device=x.device).split(1)
    yield x, x
    for i, t in enumerate(tqdm(visited[:-1], "sampling", disable=not progress)):
        output = output_of(x, ts[i], context, *(hints if under_control[i] else []))
        fresh: Tensor | float = 0.0
        if scheduler.adds_noise:
            fresh = torch.randn(x.shape, generator=generator, dtype=torch.float32).to(x)
        x0, _ = scheduler.split(x, output, t)
        x = repaint(scheduler.step(x, output, t, visited[i + 1], fresh), visited[i + 1])
        yield x, x0

"""From noise to a latent, guided by a prompt and by any number of ControlNets."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from tqdm import tqdm

from nanocontrol.controlnet import ControlNet
from nanocontrol.plumbing.machine import Replayed
from nanocontrol.schedulers import DDIM, DDPM
from nanocontrol.stable_diffusion import StableDiffusion

# A network, its hint [1 or B, 3, 8h, 8w] RGB in [0, 1], and its strength, 1 being as trained: a
# number, or one for each residual (13 in Stable Diffusion), the shallowest first, the middle last.
Control = tuple[ControlNet, Tensor, float | Sequence[float]]


def initial_noise(n: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """[n, 4, height/8, width/8], for pictures of that size. The generator is the CPU's, so that a
    seed gives the same noise on every device."""
    return torch.randn((n, 4, height // 8, width // 8), generator=generator)


def check(
    controls: Sequence[Control],
    sampler: str,
    control_from: float,
    control_to: float,
    image: Tensor | None,
    mask: Tensor | None,
    noised: float | None,
) -> None:
    """Raise ValueError for what `sample` could not mean."""
    if sampler not in ("ddim", "ddpm"):
        raise ValueError(f"sampler is 'ddim' or 'ddpm', not {sampler!r}")
    if not 0 <= control_from <= control_to <= 1:
        raise ValueError(f"0 <= control_from <= control_to <= 1, not {control_from}, {control_to}")
    if noised is not None and not 0 <= noised <= 1:
        raise ValueError(f"noised is a fraction, 0 to 1, not {noised}")
    if (image is None) != (mask is None and noised is None):
        raise ValueError("an image wants a mask, noised or both, and these want an image")
    for net, _, strength in controls:
        if isinstance(strength, Sequence) and len(strength) != len(net.zero_convs) + 1:
            residuals = len(net.zero_convs) + 1
            raise ValueError(f"{len(strength)} strengths for {residuals} residuals")


def weighted_sum(
    controls: Sequence[Control],
    x: Tensor,
    t: Tensor,
    context: Tensor,
    guess: bool,
    resolution_weighting: bool,
) -> list[Tensor]:
    """All ControlNets' residuals, weighted and added up (section 3.4). Hints are encoded ones; the
    other arguments are as in `sample`."""
    total = None
    for net, encoded, strength in controls:
        residuals = net.residuals(x, encoded, t, context)
        n = len(residuals)
        weights = strength if isinstance(strength, Sequence) else [strength] * n
        if guess:  # the original's: a tenth at the shallowest, 1 in the middle
            weights = [w * 0.825 ** (n - 1 - i) for i, w in enumerate(weights)]
        if resolution_weighting:  # the paper's, the other way round: 1 at the shallowest, then 8
            weights = [w * x.shape[2] / r.shape[2] for w, r in zip(weights, residuals)]
        weighted = [w * r for w, r in zip(weights, residuals)]
        total = weighted if total is None else [a + b for a, b in zip(total, weighted)]
    return total


def predict(
    sd: StableDiffusion,
    controls: Sequence[Control],
    context: Tensor,
    scale: float,
    guess: bool,
    resolution_weighting: bool,
    x: Tensor,
    t: Tensor,
) -> Tensor:
    """What the base model makes of x [B, 4, h, w] at step t [1], under control and with guidance.

    context [B or 2B, 77, D]: of the prompts; before them, unless scale is 1, of the negative ones.
    The last of these rows are controlled, as many as there are hints, encoded [n, c, h, w].
    """
    x_in = x.repeat(len(context) // len(x), 1, 1, 1).to(context.dtype)
    t_in = t.expand(len(x_in))
    residuals = None
    if controls:
        n = len(controls[0][1])
        inputs = x_in[-n:], t_in[-n:], context[-n:]
        residuals = weighted_sum(controls, *inputs, guess, resolution_weighting)
        others = len(x_in) - n  # they get zeros
        residuals = [torch.cat([r.new_zeros(others, *r.shape[1:]), r]) for r in residuals]
    output = sd.unet(x_in, t_in, context, residuals).float()
    if scale == 1:
        return output
    without, with_prompt = output.chunk(2)
    return without + scale * (with_prompt - without)


@torch.no_grad()
def sample(
    sd: StableDiffusion,
    noise: Tensor,
    context: Tensor,
    uncond: Tensor,
    controls: Sequence[Control] = (),
    steps: int = 20,
    scale: float = 9.0,
    eta: float = 0.0,
    sampler: str = "ddim",
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
    """Latents [B, 4, h, w] in float32, scaled: decode them divided by `sd.scale_factor`.

    noise [B, 4, h, w]; context and uncond [1 or B, 77, D], encoded prompts and negative prompts;
    scale: of classifier-free guidance (Ho & Salimans 2022), 1 being the prompt alone;
    sampler: "ddim", with its eta, or "ddpm"; generator (CPU): of the noise that samplers add.

    Ways to apply the controls:
    guess: for hints without a prompt, the original's "guess mode": control where the prompt is
    given, none where it is not, and the weaker the shallower (0.825^(n-1-i) for residual i of n);
    resolution_weighting: the paper's own answer to that (section 3.4, CFG-RW): also only where the
    prompt is given, and weighted H / h, the latent's height over the residual's (with guess, both);
    control_from, control_to: step i of S is controlled if control_from <= i / S < control_to.

    image [1 or B, 4, h, w], scaled latents of a picture, for either or both of:
    mask [1 or B, 1, h, w], bool: only what is True is painted anew, the rest is the image's,
    noised as much as every step wants it, and in the end the image's own;
    noised: begin with the image, not with noise alone, noised to this fraction of the steps
    (Meng et al. 2021); only these, rounded to whole ones, are then run and are the S above.

    Raises ValueError for an unknown sampler, if there are not 1 to 1000 steps, for fractions not in
    0..1 or in the wrong order, for an image without mask and noised or these without an image, and
    for a wrong number of strengths.
    """
    check(controls, sampler, control_from, control_to, image, mask, noised)
    scheduler = DDPM(sd.prediction) if sampler == "ddpm" else DDIM(sd.prediction, eta)
    timesteps = scheduler.timesteps(steps)
    weight = next(sd.unet.parameters())
    x = noise = noise.to(weight.device, torch.float32)

    def image_at(t: int | None) -> Tensor:  # None: without noise
        return image if t is None else scheduler.add_noise(image, noise, torch.tensor([t]))

    if image is not None:
        image = image.to(noise).expand_as(noise)
        mask = None if mask is None else mask.to(x.device)
        if noised is not None:
            timesteps = timesteps[steps - round(noised * steps) :]
        x = image_at(timesteps[0] if timesteps else None)
        if noised is None:  # so there is a mask
            x = torch.where(mask, noise, x)

    # Without the prompt, then with it, in one batch. The hint goes to all rows, or to the latter.
    contexts = [context] if scale == 1 else [uncond, context]
    context = torch.cat([c.expand(len(x), -1, -1) for c in contexts]).to(weight)
    copies = 1 if guess or resolution_weighting else len(contexts)
    encoded = []  # hints are the same at every step
    for net, hint, strength in controls:
        h = net.encode_hint(hint.to(weight), x)
        encoded.append((net, h.expand(len(x), -1, -1, -1).repeat(copies, 1, 1, 1), strength))

    def predictor(controls: list[Control]) -> Callable[[Tensor, Tensor], Tensor]:
        how = (context, scale, guess, resolution_weighting)
        call = partial(predict, sd, controls, *how)
        return Replayed(call) if x.is_cuda and not torch.is_autocast_enabled() else call

    alone, with_control = predictor([]), predictor(encoded)
    t_and_previous = list(zip(timesteps, [*timesteps[1:], None]))
    ts = torch.tensor(timesteps, device=x.device).split(1)
    for i, (t, previous) in enumerate(tqdm(t_and_previous, "sampling", disable=not progress)):
        under_control = control_from <= i / len(timesteps) < control_to
        output = (with_control if under_control else alone)(x, ts[i])
        fresh = torch.randn(x.shape, generator=generator).to(x) if scheduler.adds_noise else 0.0
        x = scheduler.step(x, output, t, previous, fresh)
        if mask is not None:
            x = torch.where(mask, x, image_at(previous))
    return x

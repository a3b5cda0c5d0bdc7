"""Evaluation of a ControlNet during training: pictures from fixed noise, and numbers.

`control_gain` says more than the loss, because most of the loss is the base's own error, which
cancels in the difference between wrong and right hints. It detects that hints are followed, not
that pairs are memorised, because it is measured on held-out pairs.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from nanocontrol.controlnet import ControlNet
from nanocontrol.plumbing.errors import blame
from nanocontrol.plumbing.machine import forget_recorded
from nanocontrol.plumbing.pictures import as_tensor, cut_out, read_image
from nanocontrol.sampling import Control, initial_noise, sample
from nanocontrol.schedulers import STEPS
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.pairs import MIDDLE, Pairs

# The mean loss for x0, hint, context, noise and t; see diffusion_loss in train.py.
Loss = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
# Scores by name: how well pictures [n, 3, H, W] in [-1, 1] follow the first n held-out pairs.
Scores = Callable[[Tensor], dict[str, float | None]]

# The seed of the initial noise. Among ten seeds, its uncontrolled pictures are the least similar to
# the true ones, so a film shows the effect of control.
SEED = 6


def border(image: Tensor) -> Tensor:
    """The outermost pixels of an image: [3, H, W] -> [3, n]."""
    return torch.cat([image[:, 0], image[:, -1], image[:, :, 0], image[:, :, -1]], dim=1)


def differs_from(image: Tensor, background: Tensor) -> Tensor:
    """Whether pixels [3, ...] differ from a colour [3], both in [-1, 1], by more than 0.22 on a
    scale of 0..1."""
    away = (image - background.view(3, *[1] * (image.dim() - 1))) / 2
    return away.square().sum(0).sqrt() > 0.22


def find_objects(image: Tensor) -> Tensor:
    """The object mask of an image [3, H, W] in [-1, 1]: bool [H, W], true where the colour differs
    from the border's."""
    return differs_from(image, border(image).median(dim=1).values)


def true_objects(target: Tensor) -> Tensor | None:
    """The object mask of a data set's picture, or None if its border has too many colours."""
    edge = border(target)
    mixed = differs_from(edge, edge.median(dim=1).values).float().mean() > 0.25
    return None if mixed else find_objects(target)


def iou(image: Tensor, truth: Tensor) -> float:
    """Intersection over union of an image's object mask and the true one [H, W]."""
    found = find_objects(image)
    union = (found | truth).sum().item()
    return (found & truth).sum().item() / union if union else 1.0


def mean_iou(made: Tensor, targets: Tensor) -> float | None:
    """Mean IoU over the pairs whose target has an object mask; None if none has one."""
    truths = [true_objects(target) for target in targets]
    scores = [iou(image, truth) for image, truth in zip(made, truths) if truth is not None]
    return float(np.mean(scores)) if scores else None


@torch.no_grad()
def make_pictures(
    sd: StableDiffusion,
    prompts: Sequence[str],
    controls: Sequence[Control] = (),
    at_once: int = 64,
    seed: int = SEED,
    **options: Any,
) -> Tensor:
    """One picture per prompt from the seed's noise: [n, 3, H, W] in [-1, 1], on the CPU.

    controls: with hints [n, 3, H, W], whose size the pictures have, else the base's; at_once: how
    many pictures fit in memory; options: of `sample`; the default scale is the base's guidance.
    """
    n, shape = len(prompts), controls[0][1].shape if controls else (sd.size, sd.size)
    noise = initial_noise(n, shape[-2], shape[-1], torch.Generator().manual_seed(seed))
    uncond, images, options = sd.encode_prompts(""), [], {"scale": sd.guidance} | options
    for part in torch.arange(n).split(at_once):
        context = sd.encode_prompts([prompts[i] for i in part])
        own = [(net, hints[part], strength) for net, hints, strength in controls]
        latents = sample(sd, noise[part], context, uncond, own, **options)
        images += [sd.decode(latent[None]).cpu() for latent in latents]  # one by one
    forget_recorded()  # it holds GPU memory that training needs
    return torch.cat(images).clamp(-1, 1)


def how_made(sd: StableDiffusion) -> str:
    """A caption that says how `make_pictures` samples."""
    return f"DDIM, 20 steps, guidance {sd.guidance:g}, control strength 1"


# ------------------------------------------------------------------------- pairs to measure with


class HeldOut(NamedTuple):
    """Pairs that are held out of training, for evaluation."""

    images: Tensor  # [n, 3, H, W] in [-1, 1]
    hints: Tensor  # [n, 3, H, W] in [0, 1]
    prompts: Sequence[str]
    x0: Tensor  # [n, 4, H/8, W/8], scaled latents
    own: tuple[Tensor, Sequence[str]] | None = None  # hints and prompts without a true picture

    @classmethod
    def of(cls, sd: StableDiffusion, pairs: Pairs) -> Self:
        pictures, hints, prompts = zip(*(pairs[i] for i in range(len(pairs))))
        images = torch.stack(pictures)
        return cls(images, torch.stack(hints), prompts, mean_latents(sd, images), pairs.own)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the pictures."""
        return self.images.shape[-2], self.images.shape[-1]

    def first(self, n: int) -> "HeldOut":
        return HeldOut(self.images[:n], self.hints[:n], self.prompts[:n], self.x0[:n], self.own)


def read_own(
    validation: list[list[str]] | None, size: tuple[int, int]
) -> tuple[Tensor, list[str]] | None:
    """The hints and prompts that the user asked for. validation: the hints' files, and prompts;
    size: width and height of the pictures, to which hints are cropped like those of --data."""
    files, prompts = [Path(x) for x, _ in validation or []], [text for _, text in validation or []]
    with blame("--validation"):
        hints = [as_tensor(cut_out(read_image(file), size, MIDDLE)) for file in files]
    return (torch.stack(hints), prompts) if hints else None


@torch.no_grad()
def mean_latents(sd: StableDiffusion, images: Tensor) -> Tensor:
    """Scaled latents x_0 [n, 4, H/8, W/8] of pictures [n, 3, H, W] in [-1, 1], without the
    posterior's noise, on the CPU."""
    means = [sd.encode(image[None])[0] for image in images]
    return sd.scale_factor * torch.cat(means).float().cpu()


def measure(
    sd: StableDiffusion,
    control: ControlNet,
    held_out: HeldOut,
    loss: Loss,
    scores: Scores | None,
    batch_size: int,
) -> tuple[list[Tensor], dict]:
    """Rows of pictures (hints, targets, pictures made from the hints), and numbers.

    The rows begin with the hints that the user asked for, `held_out.own`, whose true pictures are
    white.
    `held_out_loss` is the loss with the right hints. `control_gain` is the loss with other pairs'
    hints minus `held_out_loss`, or None for a single pair. `iou` is as in `mean_iou`.
    scores: a function for more numbers, where the condition can be measured in pictures.
    """
    images, hints, prompts, *_ = held_out
    made = make_pictures(sd, prompts, [(control, hints, 1.0)], at_once=2 * batch_size)
    own_hints = held_out_loss(sd, held_out, loss, batch_size)
    gain = None  # a single pair has no wrong hint
    if len(hints) > 1:
        swapped = held_out._replace(hints=hints.roll(1, dims=0))
        gain = held_out_loss(sd, swapped, loss, batch_size) - own_hints
    numbers = {"held_out_loss": own_hints, "control_gain": gain, "iou": mean_iou(made, images)}
    rows = [hints * 2 - 1, images, made]
    if held_out.own:
        own, texts = held_out.own
        pictures = make_pictures(sd, texts, [(control, own, 1.0)], at_once=2 * batch_size)
        rows = [*map(torch.cat, zip([own * 2 - 1, torch.ones_like(own), pictures], rows))]
    return rows, numbers | (scores(made) if scores else {})


@torch.no_grad()
def held_out_loss(sd: StableDiffusion, held_out: HeldOut, loss: Loss, batch_size: int) -> float:
    """The mean loss on these pairs, with the same noise each time and t evenly over 0..999."""
    device, n = next(sd.unet.parameters()).device, len(held_out.images)
    noise = torch.randn(held_out.x0.shape, generator=torch.Generator().manual_seed(0))
    t = ((torch.arange(n) + 0.5) / n * STEPS).long()
    total = 0.0
    for part in torch.arange(n).split(batch_size):  # to need no more memory than training does
        x0, hints, eps, ts = (x[part].to(device) for x in (held_out.x0, held_out.hints, noise, t))
        context = sd.encode_prompts([held_out.prompts[i] for i in part])
        total += len(part) / n * loss(x0, hints, context, eps, ts).item()
    return total


def step_of_jump(measured: Callable[[str], list[tuple[int, float]]]) -> int | None:
    """The first evaluated step at which a run's score is at least halfway from its first to its
    last value. None if the score rises by less than `shortest`, too little for a jump.

    It uses `score` if that was measured, otherwise `iou`, otherwise `control_gain`. Halfway depends
    on where the run ended. The experiments compare runs, so their step of the jump is another
    number: the step at which the score reaches 0.4.
    measured: (step, value) of a number over the run.
    """
    shortest = {"score": 0.1, "iou": 0.1, "control_gain": 0.002}
    name = next((name for name in shortest if measured(name)), None)
    if name is None:
        return None
    values = measured(name)
    begin, end = values[0][1], values[-1][1]
    if end - begin < shortest[name]:
        return None
    return next(step for step, value in values if value >= (begin + end) / 2)

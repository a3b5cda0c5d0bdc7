"""Functions that run in a submission's process. Each calls a student's function with objects that
cannot be sent, such as networks, and returns what can be sent. The first argument is the function.
"""

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import cache, partial
from inspect import unwrap
from operator import attrgetter
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nanocontrol import StableDiffusion, load_control, load_sd
from nanocontrol.controlnet import zero_convolution
from nanocontrol.nano.model import NANO, NANO_CONTROL
from nanocontrol.nano.world import draw, random_scene


@cache
def bundled_nano() -> StableDiffusion:
    return load_sd(NANO)


@torch.no_grad()
def with_encoder(function: Callable, gain: float, pictures: Tensor) -> float:
    """function(encode, pictures), with nano's VAE times a gain."""

    def encode(pictures: Tensor) -> tuple[Tensor, Tensor]:
        mean, deviation = bundled_nano().encode(pictures)
        return gain * mean, gain * deviation

    return function(encode, pictures)


def small_block() -> nn.Sequential:
    """A block F, from [B, 4, h, w] to [B, 4, h, w]."""
    return nn.Sequential(nn.Conv2d(4, 8, 3, padding=1), nn.SiLU(), nn.Conv2d(8, 4, 3, padding=1))


def two_steps(function: Callable, weights: dict[str, Tensor], given: Tensor) -> dict:
    """Train equation 2 for two steps, with the parts that function(block) returns.

    weights: the block's; given: x, c and the target, [3, B, 4, h, w]. Returns the first output, and
    weights before and after.
    """
    block, (x, c, target) = small_block(), given
    block.load_state_dict(weights)
    locked, copied, parameters = function(block)
    zero_in, zero_out = zero_convolution(4), zero_convolution(4)
    parameters = [*parameters, *zero_in.parameters(), *zero_out.parameters()]

    def controlled() -> Tensor:
        return locked(x) + zero_out(copied(x + zero_in(c)))

    output, before = controlled(), deepcopy(copied.state_dict())
    for _ in range(2):
        F.mse_loss(controlled(), target).backward()
        descend(parameters)
    theirs = {weight.data_ptr() for weight in locked.parameters()}
    return {
        "output": output,
        "copy before": before,
        "copy after": copied.state_dict(),
        "locked after": locked.state_dict(),
        "locked collects gradients": any(x.grad is not None for x in locked.parameters()),
        "shared": any(x.data_ptr() in theirs for x in copied.parameters()),
    }


@torch.no_grad()
def descend(parameters: Sequence[nn.Parameter], rate: float = 0.1) -> None:
    """A step of gradient descent. PyTorch's optimizers take seconds to import."""
    for parameter in parameters:
        if parameter.grad is not None:
            parameter.sub_(rate * parameter.grad)
            parameter.grad = None


def probed(function: Callable, outputs: list[Tensor], *given: Any) -> dict:
    """function(blocks, *given), with blocks that note their inputs. Block k returns outputs[k]."""
    noted: list[tuple[int, Tensor]] = []

    def run_block(k: int, x: Tensor) -> Tensor:
        noted.append((k, x.clone()))
        return outputs[k].clone()

    result = function([partial(run_block, k) for k in range(len(outputs))], *given)
    return {"noted": noted, "result": result}


@torch.no_grad()
def with_loss(function: Callable, hints: Tensor, prompts: list[str], *noised: Tensor) -> Any:
    """function(loss, hints), where loss(hints) is the bundled ControlNet's mean loss with any
    hints, on held-out latents; noised: x_t, the noise, and t [n]."""
    sd, (x_t, noise, t) = bundled_nano(), noised
    control, context = load_control(NANO_CONTROL, sd.unet), sd.encode_prompts(prompts)

    def loss(hints: Tensor) -> float:
        output = sd.unet(x_t, t, context, control(x_t, hints, t, context))
        return F.mse_loss(output, noise).item()

    return function(loss, hints)


def of_adapter(function: Any, method: str, args: list) -> Any:
    """Call a method of a student's adapter (nanocontrol.conformance), whose class is `function`.
    A dictionary from a dataclass's name to its fields stands for the dataclass."""
    from nanocontrol.conformance import adapter

    if method == "make":
        function.made = function()
    for i, value in enumerate(args):
        name = next(iter(value)) if isinstance(value, dict) and len(value) == 1 else ""
        if kind := getattr(adapter, name, None):
            fields = value[name].items()
            args[i] = kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in fields})
    return getattr(function.made, method)(*args)


# In a mended class no function calls one of these in its place.
BASES = {"super", "Adapter", "TorchAdapter", "Ours", "DDIM"}


def parts_lacking(function: type, parts: Sequence[str]) -> list[str]:
    """The parts, such as "predict" or "scheduler.step", that a student's class does not define
    itself, or for which it calls a base."""

    def is_own(part: Callable) -> bool:
        own = part.__module__ == function.__module__
        return own and not BASES.intersection(unwrap(part).__code__.co_names)

    return [part for part in parts if not is_own(attrgetter(part)(function))]


def with_drawings(function: Callable, seeds: list[int], size: int) -> list[Tensor]:
    """The hints [size, size, 3] that function(drawing) makes of the scenes with these seeds."""
    return [function(draw(random_scene(seed), size)) for seed in seeds]

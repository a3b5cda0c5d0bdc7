"""Check of exercise 5: zero convolutions, and who gets a gradient when."""

from itertools import product

import torch
import torch.nn.functional as F
from torch import nn

from nanocontrol import DDPM, ControlNet
from nanocontrol.controlnet import initialise_condition_encoder
from nanocontrol.course.exercise import Seeds, Wrong, compare, sentences
from nanocontrol.course.inside import bundled_nano, descend
from nanocontrol.course.student import Student
from nanocontrol.nano.model import NARROW

SAY = sentences("zero")

PARTS = "zero convolutions", "copy", "end of the encoder", "encoder"


def check(student: Student, draws: Seeds) -> str:
    check_by_hand(student, draws)
    for zero, end in product((True, False), repeat=2):
        right = real_run(draws, zero, end)
        found = student.call("first_gradients", zero, end)
        judge_steps(found, right, zero, end)
    return SAY.RIGHT


def check_by_hand(student: Student, draws: Seeds) -> None:
    generator = draws.tensors("by hand")
    x = torch.randn(2, 3, 4, 4, generator=generator).double().requires_grad_()
    grad = torch.randn(2, 5, 4, 4, generator=generator).double()
    for weight in (torch.zeros(5, 3), torch.randn(5, 3, generator=generator)):
        weight, bias = weight.double().requires_grad_(), torch.zeros(5).double().requires_grad_()
        y = F.conv2d(x, weight[:, :, None, None], bias)
        right = torch.autograd.grad(y, (weight, bias, x), grad)
        found = student.call("by_hand", x, weight, grad)
        if not isinstance(found, list) or len(found) != 3:
            raise Wrong(SAY.THREE)
        advice = SAY.WEIGHT, SAY.BIAS, SAY.INPUT if weight.any() else SAY.PASSES
        for i, name in enumerate(("weight", "bias", "input")):
            known = {
                SAY.NEVER: 0 * right[i],
                SAY.MEAN: right[i] / grad[:, 0].numel(),
                SAY.BATCH: right[i] / len(grad),
            }
            known = {} if name == "input" else known
            compare(f"by_hand, {name}", found[i], right[i], known, advice[i])


def real_run(draws: Seeds, zero: bool, end: bool) -> dict[str, int]:
    """The first step in which each part of nano's ControlNet gets a gradient, in four steps."""
    sd, generator = bundled_nano(), draws.tensors("run")
    torch.manual_seed(draws.seed("control"))
    control = ControlNet.from_unet(sd.unet, NARROW)
    initialise_condition_encoder(control)
    layers = [] if zero else [*control.zero_convs, control.middle_block_out]
    for layer in [*layers, *([] if end else [control.input_hint_block[-1]])]:
        for weight in layer.parameters():
            nn.init.normal_(weight, std=0.02)
    x0, noise = torch.randn(2, 1, 4, 4, 4, generator=generator)
    hint, t = torch.rand(1, 3, 32, 32, generator=generator), torch.tensor([500])
    x_t, context = DDPM().add_noise(x0, noise, t), sd.encode_prompts("a red ball")
    first: dict[str, int] = {}
    for step in range(1, 5):
        residuals = control(x_t, hint, t, context)
        F.mse_loss(sd.unet(x_t, t, context, residuals), noise).backward()
        for name, weight in control.named_parameters():
            if weight.grad is not None and weight.grad.any():
                first.setdefault(part_of(name), step)
        if len(first) == len(PARTS):
            break
        descend([*control.parameters()])
    return first


def part_of(name: str) -> str:
    """The part of a ControlNet that a weight of this name belongs to."""
    if name.startswith(("zero_convs", "middle_block_out")):
        return "zero convolutions"
    if name.startswith("input_hint_block"):
        return "end of the encoder" if name.startswith("input_hint_block.14") else "encoder"
    return "copy"


def judge_steps(found: object, right: dict[str, int], zero: bool, end: bool) -> None:
    """Compare a prediction with a real run. zero, end: whether these layers start as zeros."""
    if not isinstance(found, dict) or set(found) != {*PARTS}:
        raise Wrong(SAY.KEYS.format(keys=", ".join(PARTS)))
    start = "zeros" if zero else "Gaussian weights", "zeros" if end else "Gaussian weights"
    case = f"(Zero convolutions start as {start[0]}, the end of the encoder as {start[1]}.)"
    for part in PARTS:
        said, step = found[part], right[part]
        if said == step:
            continue
        if part == "zero convolutions":
            sentence = SAY.NEVER
        elif not isinstance(said, int) or said > step:
            sentence = SAY.LATER if zero and end else SAY.GAUSSIAN
        else:
            sentence = SAY.ALL_AT_ONCE if said == 1 and zero else SAY.ONE_LAYER
        raise Wrong(f"{sentence} {case}")

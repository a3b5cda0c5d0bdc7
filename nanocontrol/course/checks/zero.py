"""Check of exercise 5: zero convolutions, and who gets a gradient when."""

from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from nanocontrol import DDPM, ControlNet
from nanocontrol.controlnet import initialise_condition_encoder
from nanocontrol.course.exercise import Seeds, Student, Wrong, compare, refuse, sentences
from nanocontrol.course.inside import bundled_nano, descend
from nanocontrol.nano.model import NARROW

SAY = sentences("zero")


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
        refuse({SAY.THREE: not isinstance(found, list) or len(found) != 3})
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
    """The first step in which each part of nano's ControlNet gets a gradient, in four steps. zero,
    end: whether the zero convolutions and the end of the encoder start as zeros."""
    sd, generator = bundled_nano(), draws.tensors("run")
    torch.manual_seed(draws.seed("control"))
    control = ControlNet.from_unet(sd.unet, NARROW)
    initialise_condition_encoder(control)
    *encoder, last = control.input_hint_block
    parts = {
        "zero convolutions": nn.ModuleList([*control.zero_convs, control.middle_block_out]),
        "copy": nn.ModuleList([control.input_blocks, control.middle_block]),
        "end of the encoder": last,
        "encoder": nn.ModuleList(encoder),
    }
    for name, is_zero in {"zero convolutions": zero, "end of the encoder": end}.items():
        for weight in () if is_zero else parts[name].parameters():
            nn.init.normal_(weight, std=0.02)
    x0, noise = torch.randn(2, 1, 4, 4, 4, generator=generator)
    hint, t = torch.rand(1, 3, 32, 32, generator=generator), torch.tensor([500])
    x_t, context = DDPM().add_noise(x0, noise, t), sd.encode_prompts("a red ball")
    first: dict[str, int] = {}
    for step in range(1, 5):
        residuals = control(x_t, hint, t, context)
        F.mse_loss(sd.unet(x_t, t, context, residuals), noise).backward()
        for name, part in parts.items():
            if any(x.grad is not None and x.grad.any() for x in part.parameters()):
                first.setdefault(name, step)
        descend([*control.parameters()])
    return first


def judge_steps(found: Any, right: dict[str, int], zero: bool, end: bool) -> None:
    """Compare a prediction with a real run. zero, end: as in `real_run`."""
    is_dict = isinstance(found, dict) and found.keys() == right.keys()
    refuse({SAY.KEYS: not is_dict}, keys=", ".join(right))
    start = ["zeros" if is_zero else "Gaussian weights" for is_zero in (zero, end)]
    case = f"(Zero convolutions start as {start[0]}, the end of the encoder as {start[1]}.)"
    for part, step in right.items():
        said = found[part]
        if said == step:
            continue
        sentence = SAY.ALL_AT_ONCE if said == 1 and zero else SAY.ONE_LAYER
        if part == "zero convolutions":
            sentence = SAY.NEVER
        elif not isinstance(said, int) or said > step:
            sentence = SAY.LATER if zero and end else SAY.GAUSSIAN
        raise Wrong(f"{sentence} {case}")

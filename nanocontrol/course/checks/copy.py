"""Check of exercise 6: the copy, and what is locked."""

import torch
from torch import Tensor

from nanocontrol.course.exercise import Exercise, Seeds, Wrong, close, sentences
from nanocontrol.course.inside import small_block
from nanocontrol.course.student import Student

SAY = sentences("copy")


def check(student: Student, draws: Seeds) -> str:
    generator = draws.tensors("block")
    shapes = {name: tensor.shape for name, tensor in small_block().state_dict().items()}
    weights = {
        name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()
    }
    x, c, target = torch.randn(3, 2, 4, 6, 6, generator=generator)
    found = student.call("build", weights, x, c, target, through="two_steps")
    block = small_block()
    block.load_state_dict(weights)
    with torch.no_grad():
        plain = block(x)
    try:
        judge_parts(found, weights, plain)
    except (TypeError, KeyError, AttributeError):
        raise Wrong(SAY.PARTS) from None
    return SAY.RIGHT


def judge_parts(found: dict, weights: dict[str, Tensor], plain: Tensor) -> None:
    """found: from inside.two_steps; weights: the block's; plain: its output."""
    before, after = found["copy before"], found["copy after"]
    if not close(found["output"], plain):
        raise Wrong(SAY.DIFFERS)
    if not equal(before, weights):
        raise Wrong(SAY.RANDOM)
    if found["shared"]:
        raise Wrong(SAY.SHARED)
    if not equal(found["locked after"], weights):
        raise Wrong(SAY.NOT_LOCKED)
    if any(torch.equal(after[name], before[name]) for name in weights):
        raise Wrong(SAY.FROZEN)
    if found["locked collects gradients"]:
        raise Wrong(SAY.COLLECTS)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of weights agree in every bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


EXERCISE = Exercise("copy", check)

"""Check of exercise 6: the copy, and what is locked."""

import torch
from torch import Tensor, nn

from nanocontrol.course.exercise import Seeds, Student, close, refuse, sentences
from nanocontrol.course.inside import small_block

SAY = sentences("copy")


def check(student: Student, draws: Seeds) -> str:
    generator, block = draws.tensors("block"), small_block()
    for weight in block.parameters():
        nn.init.normal_(weight, std=0.3, generator=generator)
    weights = block.state_dict()
    given = torch.randn(3, 2, 4, 6, 6, generator=generator)
    found = student.call("build", weights, given, through="two_steps")
    with torch.no_grad():
        plain = block(given[0])
    before, after = found["copy before"], found["copy after"]
    wrong = {
        SAY.DIFFERS: not close(found["output"], plain),
        SAY.RANDOM: not equal(before, weights),
        SAY.SHARED: found["shared"],
        SAY.NOT_LOCKED: not equal(found["locked after"], weights),
        SAY.FROZEN: any(torch.equal(after[name], before[name]) for name in before),
        SAY.COLLECTS: found["locked collects gradients"],
    }
    refuse(wrong)
    return SAY.RIGHT


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of weights agree in every bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)

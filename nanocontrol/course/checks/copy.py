"""Check of exercise 6: the copy, and what is locked."""

import torch
from torch import Tensor

from nanocontrol.course.exercise import Draws, Exercise, Wrong, close
from nanocontrol.course.inside import small_block
from nanocontrol.course.student import Student

SHARED = (
    "The copy shares its weights with the locked block: training the one changes the other. Two "
    "names for one module are no copy, and copy.copy copies only the shell."
)
NOT_LOCKED = (
    "The locked block was trained: its weights changed in two steps. Only the copy belongs to the "
    "optimizer."
)
FROZEN = (
    "The copy did not change in two steps: a copy of a frozen block is frozen too, and a weight "
    "that the optimizer does not get stays as it is."
)
RANDOM = (
    "The copy begins with other weights than the block: it is to begin with what the U-Net has "
    "learnt, not as a new network."
)
COLLECTS = (
    "The locked block collects gradients that nobody uses: in Stable Diffusion they take 2 GB. "
    "requires_grad_(False) says that it is locked."
)
DIFFERS = (
    "Before training the output is not the block's: with zero convolutions the copy adds exactly "
    "zero, so `locked` must be the block itself."
)
PARTS = "build has to return the locked block, the copy and the copy's parameters."


def check(student: Student, draws: Draws) -> str:
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
        judge(found, weights, plain)
    except (TypeError, KeyError, AttributeError):
        raise Wrong(PARTS) from None
    return (
        "The output began as the block's own, the locked block kept every bit, and the copy learnt "
        "in two steps: in the first one only the zero convolutions did."
    )


def judge(found: dict, weights: dict[str, Tensor], plain: Tensor) -> None:
    """found: from inside.two_steps; weights: the block's; plain: its output."""
    before, after = found["copy before"], found["copy after"]
    if not close(found["output"], plain):
        raise Wrong(DIFFERS)
    if not equal(before, weights):
        raise Wrong(RANDOM)
    if found["shared"]:
        raise Wrong(SHARED)
    if not equal(found["locked after"], weights):
        raise Wrong(NOT_LOCKED)
    if any(torch.equal(after[name], before[name]) for name in weights):
        raise Wrong(FROZEN)
    if found["locked collects gradients"]:
        raise Wrong(COLLECTS)


def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two sets of weights agree in every bit."""
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in b)


EXERCISE = Exercise(
    number=6,
    title="The copy, and what is locked",
    check=check,
    hints=(
        "copy.deepcopy copies a module with its weights.",
        "requires_grad_(False) locks a module. Does it matter whether it comes before the copy?",
    ),
    closed=("nanocontrol.controlnet", "nanocontrol.ControlBlock", "nanocontrol.ControlNet"),
)

"""Check of exercise 7: where the residuals go."""

import torch
from torch import Tensor

from nanocontrol.course.exercise import Draws, Exercise, Wrong, close
from nanocontrol.course.student import Student

NEVER = "The residuals are never added: the pictures would ignore every hint."
REVERSED = (
    "The residuals go to the skips in the wrong order: the first one belongs to the shallowest "
    "skip, which the last decoder block takes."
)
SKIPS = (
    "The decoder takes the skips in the encoder's order: the first decoder block is the deepest, "
    "so it takes the last skip."
)
MIDDLE_FIRST = (
    "The first residual goes to the middle block: its residual is the last one, because the copy's "
    "middle block runs last."
)
NO_MIDDLE = "The middle block's residual is not added: a ControlNet has one more than skips."
TO_BELOW = (
    "The residuals are added to what comes from below: they belong to the skips, before both are "
    "joined."
)
JOINED = (
    "The two parts are joined in the wrong order: what comes from below is first, then the skip."
)
TWICE = "The residuals are added twice."
ONCE = "Every decoder block has to run once, in the order of the list."
ADVICE = "Its input must be what comes from below, joined with skip + residual."


def inputs_of(
    skips: list[Tensor],
    residuals: list[Tensor],
    middle: Tensor,
    outputs: list[Tensor],
    skip_first: bool = False,
    below: list[Tensor] | None = None,
) -> list[Tensor]:
    """The inputs of the decoder blocks; skips, residuals: in the order of the decoder's blocks.
    below: what is added to the parts from below, by mistake."""
    parts = [middle, *outputs[:-1]]
    if below:
        parts = [part + more for part, more in zip(parts, below)]
    pairs = [(h, skip + residual) for h, skip, residual in zip(parts, skips, residuals)]
    return [torch.cat(pair[::-1] if skip_first else pair, dim=1) for pair in pairs]


def check(student: Student, draws: Draws) -> str:
    n = draws.numbers("depth").choice([6, 9, 12])
    generator = draws.tensors("features")
    # All have one shape, so that a wrong order does not stop by itself, as it often does.
    skips, residuals, outputs = ([*x] for x in torch.randn(3, n, 1, 3, 4, 4, generator=generator))
    middle, last = torch.randn(2, 1, 3, 4, 4, generator=generator)
    deepest, added, plain = skips[::-1], residuals[::-1], [torch.zeros_like(last)] * n
    wrong = {
        NEVER: inputs_of(deepest, plain, middle, outputs),
        REVERSED: inputs_of(deepest, residuals, middle + last, outputs),
        SKIPS: inputs_of(skips, residuals, middle + last, outputs),
        MIDDLE_FIRST: inputs_of(deepest, [last, *added[:-1]], middle + residuals[0], outputs),
        NO_MIDDLE: inputs_of(deepest, added, middle, outputs),
        TO_BELOW: inputs_of(deepest, plain, middle + last, outputs, below=added),
        JOINED: inputs_of(deepest, added, middle + last, outputs, skip_first=True),
        TWICE: inputs_of(deepest, [2 * x for x in added], middle + 2 * last, outputs),
    }
    right = inputs_of(deepest, added, middle + last, outputs)
    given = skips, middle, [*residuals, last], outputs
    found = student.call("decode", *given, through="probed")
    judge(found, right, wrong, outputs[-1])
    return (
        f"All {n + 1} residuals are where they belong. With zero residuals the decoder is the "
        "U-Net's own."
    )


def judge(found: dict, right: list[Tensor], wrong: dict, result: Tensor) -> None:
    """found: from inside.probed; right, wrong: inputs of all blocks; result: the last output."""
    if found["order"] != [*range(len(right))]:
        raise Wrong(ONCE)
    inputs = found["inputs"]
    if not all(map(close, inputs, right)):
        for sentence, known in wrong.items():
            if all(map(close, inputs, known)):
                raise Wrong(sentence)
        first = [close(a, b) for a, b in zip(inputs, right)].index(False)
        raise Wrong(f"decode: block {first} of the decoder gets a wrong input. {ADVICE}")
    if not isinstance(found["result"], Tensor) or not close(found["result"], result):
        raise Wrong("decode has to return the output of the last decoder block.")


EXERCISE = Exercise(
    number=7,
    title="Where the residuals go",
    check=check,
    hints=(
        "*for_skips, for_middle = residuals takes the last one off.",
        "zip(blocks, reversed(...)) walks the decoder and the skips against each other.",
    ),
    closed=("nanocontrol.unet", "nanocontrol.UNet", "nanocontrol.sampling"),
)

"""Check of exercise 7: where the residuals go."""

import torch
from torch import Tensor

from nanocontrol.course.exercise import Exercise, Seeds, Wrong, close, sentences
from nanocontrol.course.student import Student

SAY = sentences("residuals")


def inputs_with(
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


def check(student: Student, draws: Seeds) -> str:
    n = draws.numbers("depth").choice([6, 9, 12])
    generator = draws.tensors("features")
    # All have one shape, so that a wrong order does not stop by itself, as it often does.
    skips, residuals, outputs = ([*x] for x in torch.randn(3, n, 1, 3, 4, 4, generator=generator))
    middle, last = torch.randn(2, 1, 3, 4, 4, generator=generator)
    deepest, added, plain = skips[::-1], residuals[::-1], [torch.zeros_like(last)] * n
    wrong = {
        SAY.NEVER: inputs_with(deepest, plain, middle, outputs),
        SAY.REVERSED: inputs_with(deepest, residuals, middle + last, outputs),
        SAY.SKIPS: inputs_with(skips, residuals, middle + last, outputs),
        SAY.MIDDLE_FIRST: inputs_with(deepest, [last, *added[:-1]], middle + residuals[0], outputs),
        SAY.NO_MIDDLE: inputs_with(deepest, added, middle, outputs),
        SAY.TO_BELOW: inputs_with(deepest, plain, middle + last, outputs, below=added),
        SAY.JOINED: inputs_with(deepest, added, middle + last, outputs, skip_first=True),
        SAY.TWICE: inputs_with(deepest, [2 * x for x in added], middle + 2 * last, outputs),
    }
    right = inputs_with(deepest, added, middle + last, outputs)
    given = skips, middle, [*residuals, last], outputs
    found = student.call("decode", *given, through="probed")
    judge_inputs(found, right, wrong, outputs[-1])
    return (
        f"All {n + 1} residuals are where they belong. With zero residuals the decoder is the "
        "U-Net's own."
    )


def judge_inputs(found: dict, right: list[Tensor], wrong: dict, result: Tensor) -> None:
    """found: from inside.probed; right, wrong: inputs of all blocks; result: the last output."""
    if found["order"] != [*range(len(right))]:
        raise Wrong(SAY.ONCE)
    inputs = found["inputs"]
    if not all(map(close, inputs, right)):
        for sentence, known in wrong.items():
            if all(map(close, inputs, known)):
                raise Wrong(sentence)
        first = [close(a, b) for a, b in zip(inputs, right)].index(False)
        raise Wrong(f"decode: block {first} of the decoder gets a wrong input. {SAY.ADVICE}")
    if not isinstance(found["result"], Tensor) or not close(found["result"], result):
        raise Wrong("decode has to return the output of the last decoder block.")


EXERCISE = Exercise("residuals", check)

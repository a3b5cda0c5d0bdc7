"""Check of exercise 7: where the residuals go."""

from collections.abc import Collection
from itertools import combinations

import torch
from torch import Tensor

from nanocontrol.course.exercise import Seeds, Wrong, close, sentences
from nanocontrol.course.student import Student

SAY = sentences("residuals")
# Known errors. A function may make two of them.
KNOWN = [SAY.NEVER, SAY.REVERSED, SAY.SKIPS, SAY.MIDDLE_FIRST, SAY.NO_MIDDLE, SAY.TO_BELOW]
KNOWN += [SAY.JOINED, SAY.TWICE]


def inputs_with(
    errors: Collection[str],
    outputs: list[Tensor],
    skips: list[Tensor],
    middle: Tensor,
    residuals: list[Tensor],
) -> list[Tensor]:
    """The inputs of the decoder's blocks if `decode` makes these errors; outputs: the blocks'."""
    times = 0 if SAY.NEVER in errors else 2 if SAY.TWICE in errors else 1
    *for_skips, for_middle = (times * residual for residual in residuals)
    if SAY.MIDDLE_FIRST in errors:
        for_skips, for_middle = [*for_skips[1:], for_middle], for_skips[0]
    if SAY.REVERSED in errors:
        for_skips.reverse()
    if SAY.NO_MIDDLE in errors:
        for_middle = 0 * for_middle
    pairs = [*zip(skips, for_skips)]
    if SAY.SKIPS not in errors:
        pairs.reverse()
    inputs = []
    for below, (skip, residual) in zip([middle + for_middle, *outputs], pairs):
        parts = [below, skip + residual]
        if SAY.TO_BELOW in errors:
            parts = [below + residual, skip]
        inputs.append(torch.cat(parts[::-1] if SAY.JOINED in errors else parts, dim=1))
    return inputs


def check(student: Student, draws: Seeds) -> str:
    n = draws.numbers("depth").choice([6, 9, 12])
    generator = draws.tensors("features")
    # All have one shape, so that a wrong order does not stop by itself, as it often does.
    skips, residuals, outputs = ([*x] for x in torch.randn(3, n, 1, 3, 4, 4, generator=generator))
    middle, last = torch.randn(2, 1, 3, 4, 4, generator=generator)
    given = outputs, skips, middle, [*residuals, last]
    found = student.call("decode", *given, through="probed")
    if found["order"] != [*range(n)]:
        raise Wrong(SAY.ONCE)
    right = inputs_with((), *given)
    equal = [*map(close, found["inputs"], right)]
    if not all(equal):
        for errors in (*combinations(KNOWN, 1), *combinations(KNOWN, 2)):
            if all(map(close, found["inputs"], inputs_with(errors, *given))):
                raise Wrong(" ".join(errors))
        raise Wrong(SAY.OTHER.format(block=equal.index(False)))
    if not isinstance(found["result"], Tensor) or not close(found["result"], outputs[-1]):
        raise Wrong(SAY.RESULT)
    return SAY.RIGHT.format(residuals=n + 1)

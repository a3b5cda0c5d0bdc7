"""Check of exercise 7: where the residuals go."""

from collections.abc import Collection
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from nanocontrol.course.exercise import Seeds, Student, Wrong, close, refuse, sentences

SAY = sentences("residuals")
# Known errors. A function may make two of them.
KNOWN = [SAY.NEVER, SAY.REVERSED, SAY.SKIPS, SAY.MIDDLE_FIRST, SAY.NO_MIDDLE, SAY.TO_BELOW]
KNOWN += [SAY.JOINED, SAY.TWICE]


def inputs_with(errors: Collection[str], *given: Any) -> list[Tensor]:
    """The inputs of the decoder's blocks if `decode` makes these errors. given: the blocks'
    outputs, and what `decode` is given."""
    outputs, skips, middle, residuals = given
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
    refuse({SAY.ONCE: [block for block, _ in found["noted"]] != [*range(n)]})
    inputs = [x for _, x in found["noted"]]
    equal = [*map(close, inputs, inputs_with((), *given))]
    if not all(equal):
        for errors in (*combinations(KNOWN, 1), *combinations(KNOWN, 2)):
            refuse({" ".join(errors): all(map(close, inputs, inputs_with(errors, *given)))})
        raise Wrong(SAY.OTHER.format(block=equal.index(False)))
    result = found["result"]
    refuse({SAY.RESULT: not isinstance(result, Tensor) or not close(result, outputs[-1])})
    return SAY.RIGHT.format(residuals=n + 1)

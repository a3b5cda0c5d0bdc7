"""Check of exercise 8: six spoiled hints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanocontrol.course.exercise import Seeds, Wrong, as_tensor_like, close, sentences
from nanocontrol.course.pictures import (
    bundled_control,
    bundled_detector,
    bundled_nano,
    pairs_of_scenes,
    save_rows,
)
from nanocontrol.course.student import Student
from nanocontrol.nano.scores import score
from nanocontrol.training.measure import make_pictures

SAY = sentences("hints")

ENOUGH = 0.8  # of the score with the true hints
TRIED = 3  # scenes for each fault
STEPS = 10  # of sampling
BLUR = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
WIDE = 5  # pixels of a thick line
SHOWN = {"canny": "edges", "pose": "pose", "depth": "depth"}


class Fault(NamedTuple):
    """One way in which hints are spoiled."""

    condition: str
    spoil: Callable[[Tensor, tuple[int, int]], Tensor]  # hint and shift -> hint, all [3, H, W]
    untouched: str  # what is wrong with a hint that was not repaired


def blurred_lines(hint: Tensor, shift: tuple[int, int]) -> Tensor:
    kernel = (BLUR[:, None] * BLUR).expand(3, 1, 5, 5)
    return F.conv2d(hint[None], kernel, padding=2, groups=3)[0]


def widened(hint: Tensor, shift: tuple[int, int]) -> Tensor:
    return F.max_pool2d(hint[None], WIDE, 1, WIDE // 2)[0]


FAULTS = (
    Fault("canny", lambda hint, shift: 1 - hint, SAY.INVERTED),
    Fault("pose", lambda hint, shift: hint.flip(0), SAY.EXCHANGED),
    Fault("depth", lambda hint, shift: 2 * hint - 1, SAY.BELOW_0),
    Fault("canny", blurred_lines, SAY.GREY),
    Fault("canny", lambda hint, shift: hint.roll(shift, (1, 2)), SAY.SHIFTED),
    Fault("canny", widened, SAY.THICK),
)


def faults_of(draws: Seeds) -> tuple[list[Fault], tuple[int, int]]:
    """The faults in the order of this student's hints, and the shift down and to the right."""
    number = draws.given().numbers("faults")
    order = number.sample(FAULTS, len(FAULTS))
    down, right = (number.choice([-1, 1]) * number.randint(6, 12) for _ in range(2))
    return order, (down, right)


def give(draws: Seeds, folder: Path) -> None:
    """Write the spoiled hints, their pictures, and a sheet of both."""
    order, shift = faults_of(draws)
    pictures, spoiled = [], []
    for i, fault in enumerate(order):
        images, hints, *_ = pairs_of_scenes([draws.seed(f"hint {i}") % 1000], fault.condition)
        pictures.append(images[0])
        spoiled.append(fault.spoil(hints[0], shift))
    np.save(folder / "hints.npy", torch.stack(spoiled).numpy())
    np.save(folder / "pictures.npy", torch.stack(pictures).numpy())
    shown = [hint.clamp(0, 1) * 2 - 1 for hint in spoiled]
    kinds = ", ".join(f"{i}: {SHOWN[fault.condition]}" for i, fault in enumerate(order, 1))
    save_rows([pictures, shown], folder / "hints.png", f"{kinds} (cut off at 0 and 1 here)")


def check(student: Student, draws: Seeds) -> str:
    order, shift = faults_of(draws)
    shares = [check_repair(student, draws, i, fault, shift) for i, fault in enumerate(order, 1)]
    return SAY.RIGHT.format(worst=min(shares))


def check_repair(
    student: Student, draws: Seeds, i: int, fault: Fault, shift: tuple[int, int]
) -> float:
    """Check repair_i -> the share of the score that its hints reach."""
    name = f"repair_{i}"
    numbers = draws.numbers(f"scenes {i}").sample(range(1000), TRIED)
    _, hints, prompts, scenes = pairs_of_scenes(numbers, fault.condition)
    repaired = []
    for hint in hints:
        spoiled = fault.spoil(hint, shift)
        found = as_tensor_like(name, student.call(name, spoiled), hint).float()
        if wrong := what_is_wrong(found, hint, spoiled, fault, shift):
            raise Wrong(SAY.AFTER.format(name=name, wrong=wrong))
        repaired.append(found)
    if all(map(close, repaired, hints)):
        return 1.0
    scores = []
    for given in (torch.stack(repaired), hints):
        controls = [(bundled_control(fault.condition), given, 1.0)]
        pictures = make_pictures(bundled_nano(), prompts, controls, steps=STEPS)
        scores.append(score(fault.condition, pictures, scenes, bundled_detector()))
    share = scores[0] / scores[1]
    if share < ENOUGH:
        raise Wrong(SAY.TOO_LOW.format(name=name, share=share, enough=ENOUGH))
    return share


def what_is_wrong(
    found: Tensor, hint: Tensor, spoiled: Tensor, fault: Fault, shift: tuple[int, int]
) -> str | None:
    """The sentence about a repaired hint that is still spoiled, or None."""
    known: dict[str, dict[str, Any]] = {
        "pose": {SAY.NOT_A_SWAP: True},
        "depth": {SAY.CUT_OFF: close(found, spoiled.clamp(0, 1))},
        "canny": {
            SAY.INVERTED: found.mean() > 0.5,
            SAY.WRONG_WAY: close(found, spoiled.roll(shift, (1, 2))),
            SAY.EMPTY: found.mean() < 0.3 * hint.mean(),
            SAY.GREY: ((found > 0.1) & (found < 0.9)).float().mean() > 0.02,
            SAY.THICK: found.mean() > 2.5 * hint.mean(),
            SAY.SHIFTED: max(map(abs, shift_between(found[0], hint[0]))) > 2,
        },
    }
    if close(found, hint):
        return None
    if found.min() < -0.01 or found.max() > 1.01:
        return SAY.BELOW_0
    if close(found, spoiled):
        return fault.untouched
    return next((x for x, is_so in known[fault.condition].items() if is_so), None)


def shift_between(a: Tensor, b: Tensor) -> tuple[int, int]:
    """How far down and to the right the lines of a [H, W] lie from those of b: where they have most
    pixels in common, by Fourier transforms."""
    common = torch.fft.irfft2(torch.fft.rfft2(a) * torch.fft.rfft2(b).conj())
    shift = divmod(int(common.argmax()), a.shape[1])
    down, right = (x if x <= side // 2 else x - side for x, side in zip(shift, a.shape))
    return down, right

"""Check of exercise 8: six spoiled hints."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanocontrol.course.exercise import Exercise, Seeds, Wrong, as_tensor_like, close, sentences
from nanocontrol.course.pictures import (
    bundled_control,
    bundled_detector,
    bundled_nano,
    pairs_of_scenes,
    save_rows,
)
from nanocontrol.course.student import Student
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.nano.scores import score
from nanocontrol.training.measure import make_pictures

SAY = sentences("hints")

ENOUGH = 0.8  # of the score with the true hints
TRIED = 3  # scenes for each fault
STEPS = 10  # of sampling
BLUR = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0]) / 16
WIDE = 5  # pixels of a thick line


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
    shift = tuple(number.choice([-1, 1]) * number.randint(6, 12) for _ in range(2))
    return order, (shift[0], shift[1])


def give(draws: Seeds, folder: Path) -> None:
    """Write the spoiled hints, their pictures, and a sheet of both."""
    order, shift = faults_of(draws)
    pictures, spoiled = [], []
    for i, fault in enumerate(order):
        seed = draws.seed(f"hint {i}") % 1000
        images, hints, _ = pairs_of_scenes([seed], fault.condition)
        pictures.append(images[0])
        spoiled.append(fault.spoil(hints[0], shift))
    np.save(folder / "hints.npy", torch.stack(spoiled).numpy())
    np.save(folder / "pictures.npy", torch.stack(pictures).numpy())
    shown = [hint.clamp(0, 1) * 2 - 1 for hint in spoiled]
    kinds = ", ".join(
        f"{i}: {'edges' if fault.condition == 'canny' else fault.condition}"
        for i, fault in enumerate(order, 1)
    )
    save_rows([pictures, shown], folder / "hints.png", f"{kinds} (cut off at 0 and 1 here)")


def check(student: Student, draws: Seeds) -> str:
    order, shift = faults_of(draws)
    worst = 1.0
    for i, fault in enumerate(order):
        numbers = draws.numbers(f"scenes {i}").sample(range(1000), TRIED)
        _, hints, _ = pairs_of_scenes(numbers, fault.condition)
        repaired = []
        for hint in hints:
            spoiled = fault.spoil(hint, shift)
            found = student.call(f"repair_{i + 1}", spoiled)
            found = as_tensor_like(f"repair_{i + 1}", found, hint).float()
            if wrong := what_is_wrong(found, hint, spoiled, fault, shift):
                raise Wrong(f"After repair_{i + 1} the hint {wrong}")
            repaired.append(found)
        if not close(torch.stack(repaired), hints):
            share = share_of_score(fault.condition, numbers, torch.stack(repaired), hints)
            if share < ENOUGH:
                raise Wrong(
                    f"After repair_{i + 1} the pictures score {share:.2f} of what they score with "
                    f"the true hints; expected at least {ENOUGH}. Compare a hint before and after."
                )
            worst = min(worst, share)
    return (
        f"With the repaired hints the pictures score at least {worst:.2f} of what they score with "
        "the true ones. Look at a hint like this before you doubt a ControlNet."
    )


def what_is_wrong(
    found: Tensor, hint: Tensor, spoiled: Tensor, fault: Fault, shift: tuple[int, int]
) -> str | None:
    """A sentence about a repaired hint that is still spoiled, or None."""
    if close(found, hint):
        return None
    if found.min() < -0.01 or found.max() > 1.01:
        return SAY.BELOW_0
    if close(found, spoiled):
        return fault.untouched
    if fault.condition == "pose":
        return SAY.NOT_A_SWAP
    if fault.condition == "depth":
        return SAY.CUT_OFF if close(found, spoiled.clamp(0, 1)) else None
    return wrong_lines(found, hint, spoiled, shift)


def wrong_lines(found: Tensor, hint: Tensor, spoiled: Tensor, shift: tuple[int, int]) -> str | None:
    """The sentence about a fault that is left in edges; None if there is none."""
    if found.mean() > 0.5:
        return SAY.INVERTED
    if close(found, spoiled.roll(shift, (1, 2))):
        return SAY.WRONG_WAY
    if found.mean() < 0.3 * hint.mean():
        return SAY.EMPTY
    if ((found > 0.1) & (found < 0.9)).float().mean() > 0.02:
        return SAY.GREY
    if found.mean() > 2.5 * hint.mean():
        return SAY.THICK
    # Where the lines meet: the number of common pixels for every shift, by Fourier transforms.
    met = torch.fft.irfft2(torch.fft.rfft2(found[0]) * torch.fft.rfft2(hint[0]).conj())
    down, right = divmod(int(met.argmax()), met.shape[1])
    near = [min(d, met.shape[0] - d) <= 2 for d in (down, right)]
    return None if all(near) else SAY.SHIFTED


def share_of_score(condition: str, numbers: list[int], repaired: Tensor, hints: Tensor) -> float:
    """The score of pictures from the repaired hints, divided by that from the true ones."""
    scenes = Scenes(condition, HELD_OUT, size=bundled_nano().size)
    followed = [scenes.scene(i) for i in numbers]
    prompts = [scene.prompt for scene in followed]

    def scored(given: Tensor) -> float:
        controls = [(bundled_control(condition), given, 1.0)]
        pictures = make_pictures(bundled_nano(), prompts, controls, steps=STEPS)
        return score(condition, pictures, followed, bundled_detector())

    return scored(repaired) / scored(hints)


EXERCISE = Exercise("hints", check, give=give)

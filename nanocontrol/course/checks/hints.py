"""Check of exercise 8: six spoiled hints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from nanocontrol.course.exercise import Seeds, Student, as_tensor_like, close, refuse, sentences
from nanocontrol.course.inside import bundled_nano
from nanocontrol.course.pictures import bundled_control, bundled_detector, pairs_of_scenes
from nanocontrol.nano.scores import score
from nanocontrol.plumbing.pictures import grid, save_picture, with_caption
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
    return F.conv2d(hint[:, None], (BLUR[:, None] * BLUR)[None, None], padding=2)[:, 0]


FAULTS = (
    Fault("canny", lambda hint, shift: 1 - hint, SAY.INVERTED),
    Fault("pose", lambda hint, shift: hint.flip(0), SAY.EXCHANGED),
    Fault("depth", lambda hint, shift: 2 * hint - 1, SAY.BELOW_0),
    Fault("canny", blurred_lines, SAY.GREY),
    Fault("canny", lambda hint, shift: hint.roll(shift, (1, 2)), SAY.SHIFTED),
    Fault("canny", lambda hint, shift: F.max_pool2d(hint, WIDE, 1, WIDE // 2), SAY.THICK),
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
    images, spoiled = [], []
    for i, fault in enumerate(order):
        image, hint, *_ = pairs_of_scenes([draws.seed(f"hint {i}") % 1000], fault.condition)
        images.append(image[0])
        spoiled.append(fault.spoil(hint[0], shift))
    np.save(folder / "hints.npy", torch.stack(spoiled).numpy())
    np.save(folder / "pictures.npy", torch.stack(images).numpy())
    sheet = grid([images, [hint.clamp(0, 1) * 2 - 1 for hint in spoiled]])
    kinds = ", ".join(f"{i}: {SHOWN[fault.condition]}" for i, fault in enumerate(order, 1))
    save_picture(with_caption(sheet, f"{kinds} (cut off at 0 and 1 here)"), folder / "hints.png")


def check(student: Student, draws: Seeds) -> str:
    shares = [check_repair(student, draws, i) for i in range(1, len(FAULTS) + 1)]
    return SAY.RIGHT.format(worst=min(shares))


def check_repair(student: Student, draws: Seeds, i: int) -> float:
    """Check repair_i -> the share of the score that its hints reach."""
    order, shift = faults_of(draws)
    name, fault = f"repair_{i}", order[i - 1]
    numbers = draws.numbers(f"scenes {i}").sample(range(1000), TRIED)
    _, hints, prompts, scenes = pairs_of_scenes(numbers, fault.condition)
    repaired = []
    for hint in hints:
        spoiled = fault.spoil(hint, shift)
        found = as_tensor_like(name, student.call(name, spoiled), hint).float()
        if not close(found, hint):
            for wrong, holds in known_faults(fault, shift, found, hint, spoiled):
                refuse({SAY.AFTER: holds}, name=name, wrong=wrong)
        repaired.append(found)
    if all(map(close, repaired, hints)):
        return 1.0
    scores = []
    for given in (torch.stack(repaired), hints):
        controls = [(bundled_control(fault.condition), given, 1.0)]
        images = make_pictures(bundled_nano(), prompts, controls, steps=STEPS)
        scores.append(score(fault.condition, images, scenes, bundled_detector()))
    share = scores[0] / scores[1]
    refuse({SAY.TOO_LOW: share < ENOUGH}, name=name, share=share, enough=ENOUGH)
    return share


def known_faults(fault: Fault, shift: tuple[int, int], *three: Tensor) -> list[tuple[str, Any]]:
    """Sentences about a repaired hint, and whether they hold. three: the repaired hint, the true
    one and the spoiled one."""
    found, hint, spoiled = three
    outside = found.min() < -0.01 or found.max() > 1.01
    known = [(SAY.BELOW_0, outside), (fault.untouched, close(found, spoiled))]
    if fault.condition == "pose":
        return [*known, (SAY.NOT_A_SWAP, True)]
    if fault.condition == "depth":
        return [*known, (SAY.CUT_OFF, close(found, spoiled.clamp(0, 1)))]
    return [
        *known,
        (SAY.INVERTED, found.mean() > 0.5),
        (SAY.WRONG_WAY, close(found, spoiled.roll(shift, (1, 2)))),
        (SAY.EMPTY, found.mean() < 0.3 * hint.mean()),
        (SAY.GREY, ((found > 0.1) & (found < 0.9)).float().mean() > 0.02),
        (SAY.THICK, found.mean() > 2.5 * hint.mean()),
        (SAY.SHIFTED, is_shifted(found[0], hint[0])),
    ]


def is_shifted(a: Tensor, b: Tensor) -> bool:
    """Whether the lines of a [H, W] lie more than 2 pixels from those of b: where they have most
    pixels in common, by Fourier transforms."""
    common = torch.fft.irfft2(torch.fft.rfft2(a) * torch.fft.rfft2(b).conj())
    shift = divmod(int(common.argmax()), a.shape[1])
    return any(2 < x < side - 2 for x, side in zip(shift, a.shape))

"""Check of exercise 11: strength, guess mode, resolution weighting."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nanocontrol import sample
from nanocontrol.course.exercise import Exercise, Seeds, Wrong, compare, sentences
from nanocontrol.course.pictures import bundled_control, bundled_nano, pairs_of_scenes, save_strip
from nanocontrol.course.student import Student

SAY = sentences("weights")


def right_weights(strength: float, heights: list[int], mode: str) -> Tensor:
    n = len(heights)
    if mode == "guess":
        return torch.tensor([strength * 0.825 ** (n - 1 - i) for i in range(n)]).double()
    tall = heights[0] if mode == "resolution" else 1
    shared = heights if mode == "resolution" else [1] * n
    return torch.tensor([strength * tall / height for height in shared]).double()


def wrong_weights(strength: float, heights: list[int], mode: str) -> dict[str, Tensor]:
    right, no_strength = right_weights(strength, heights, mode), SAY.NO_STRENGTH.format(mode=mode)
    known = {no_strength: right / strength}
    if mode == "guess":
        known[SAY.GUESS_REVERSED] = right.flip(0)
        known[SAY.GUESS_ONE_MORE] = right * 0.825
        known[SAY.GUESS_EVEN] = strength * torch.logspace(-1, 0, len(heights)).double()
    if mode == "resolution":
        known[SAY.EIGHT_FIRST] = right.flip(0)
        known[SAY.INVERTED] = strength**2 / right
        known[SAY.FIXED_64] = right * 64 / heights[0]
    return known


def check(student: Student, draws: Seeds) -> str:
    number = draws.numbers("weights")
    strength, latent = number.uniform(0.4, 0.9), number.choice([16, 32, 96])
    per_level = number.choice([2, 3])
    heights = [latent // 2**level for level in range(4) for _ in range(per_level)]
    heights += heights[-1:]
    for mode in ("plain", "guess", "resolution"):
        found = student.call("residual_weights", strength, heights, mode)
        known = wrong_weights(strength, heights, mode)
        advice = f"{mode}: {len(heights)} residuals, the middle block's is the last."
        compare("residual_weights", found, right_weights(strength, heights, mode), known, advice)
        check_rows(student, number.choice([1, 2, 3]), mode)
    return SAY.RIGHT


def check_rows(student: Student, pictures: int, mode: str) -> None:
    found = student.call("controlled_rows", pictures, mode)
    on, off = [True] * pictures, [False] * pictures
    right = on + on if mode == "plain" else off + on
    if found == right:
        return
    if mode == "plain":
        raise Wrong(SAY.PLAIN_ROWS)
    if found == on + off:
        raise Wrong(SAY.OTHER_HALF.format(mode=mode))
    if found == on + on:
        raise Wrong(SAY.ALL_ROWS.format(mode=mode))
    raise Wrong(f"controlled_rows, {mode}: expected {2 * pictures} times True or False, as a list.")


def show(student: Student, draws: Seeds, folder: Path) -> Path:
    """A hint without a prompt: plain control, guess mode, resolution weighting."""
    sd, control = bundled_nano(), bundled_control("canny")
    _, hints, _ = pairs_of_scenes([draws.seed("scene") % 1000], "canny")
    noise = torch.randn(1, 4, sd.size // 8, sd.size // 8, generator=draws.tensors("picture"))
    empty, heights = sd.encode_prompts(""), [sd.size // 8 // 2**n for n in control.skip_levels]
    heights, made = [*heights, heights[-1]], []
    own = partial(sample, sd, noise, empty, empty, scale=sd.guidance)
    for mode in ("plain", "guess", "resolution"):
        weights = student.call("residual_weights", 1.0, heights, mode)
        if mode != "plain":  # `sample` multiplies by its own weights
            weights = [w * h / heights[0] for w, h in zip(weights, heights)]
        made.append(own([(control, hints, weights)], resolution_weighting=mode != "plain"))
    caption = "a hint without a prompt: plain, guess mode, resolution weighting"
    return save_strip(torch.cat(made), folder / "ex11.png", caption)


EXERCISE = Exercise("weights", check, show=show)

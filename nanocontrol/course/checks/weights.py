"""Check of exercise 11: strength, guess mode, resolution weighting."""

from pathlib import Path

import torch
from torch import Tensor

from nanocontrol import sample
from nanocontrol.course.exercise import Draws, Exercise, Wrong, compare
from nanocontrol.course.pictures import bundled_control, nano, pairs_of_scenes, save_strip
from nanocontrol.course.student import Student

GUESS_REVERSED = (
    "residual_weights, guess: the weights fall with depth. The middle block, last in the list, has "
    "the full strength, and the shallowest residual the smallest weight."
)
GUESS_ONE_MORE = (
    "residual_weights, guess: every weight is 0.825 times too small. The middle block's own weight "
    "is the strength."
)
GUESS_EVEN = (
    "residual_weights, guess: these weights go from 0.1 to 1 in equal ratios, as in diffusers. The "
    "original multiplies by 0.825."
)
EIGHT_FIRST = (
    "residual_weights, resolution: weight 8 belongs to the smallest residuals, of height 8: 64 / 8 "
    "is 8. The shallowest one has the latent's height and weight 1."
)
INVERTED = (
    "residual_weights, resolution: h / 64 makes the deep residuals weaker: the paper's weight is "
    "64 / h, and they become stronger."
)
FIXED_64 = (
    "residual_weights, resolution: 64 stands for the latent's height: for another size of picture "
    "it is heights[0]."
)
NO_STRENGTH = "residual_weights, {mode}: the strength is missing: it multiplies every weight."
OTHER_HALF = (
    "controlled_rows, {mode}: the first half is the negative prompt's. The rows with the prompt "
    "are the second half."
)
ALL_ROWS = (
    "controlled_rows, {mode}: all rows are controlled. Then the hint's effect cancels in the "
    "difference of guidance, and without a prompt little of it is left."
)
PLAIN_ROWS = (
    "controlled_rows, plain: in plain mode all rows are controlled, those without prompt too."
)


def right_weights(strength: float, heights: list[int], mode: str) -> Tensor:
    n = len(heights)
    if mode == "guess":
        return torch.tensor([strength * 0.825 ** (n - 1 - i) for i in range(n)]).double()
    tall = heights[0] if mode == "resolution" else 1
    shared = heights if mode == "resolution" else [1] * n
    return torch.tensor([strength * tall / height for height in shared]).double()


def wrong_weights(strength: float, heights: list[int], mode: str) -> dict[str, Tensor]:
    right, no_strength = right_weights(strength, heights, mode), NO_STRENGTH.format(mode=mode)
    known = {no_strength: right / strength}
    if mode == "guess":
        known[GUESS_REVERSED] = right.flip(0)
        known[GUESS_ONE_MORE] = right * 0.825
        known[GUESS_EVEN] = strength * torch.logspace(-1, 0, len(heights)).double()
    if mode == "resolution":
        known[EIGHT_FIRST] = right.flip(0)
        known[INVERTED] = strength**2 / right
        known[FIXED_64] = right * 64 / heights[0]
    return known


def check(student: Student, draws: Draws) -> str:
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
    return (
        "The weight 8 is the smallest maps', with the middle block; guess mode has 1 there and 0.1 "
        "at the shallowest of 13. Both control only the half of the batch with the prompt."
    )


def check_rows(student: Student, pictures: int, mode: str) -> None:
    found = student.call("controlled_rows", pictures, mode)
    on, off = [True] * pictures, [False] * pictures
    right = on + on if mode == "plain" else off + on
    if found == right:
        return
    if mode == "plain":
        raise Wrong(PLAIN_ROWS)
    if found == on + off:
        raise Wrong(OTHER_HALF.format(mode=mode))
    if found == on + on:
        raise Wrong(ALL_ROWS.format(mode=mode))
    raise Wrong(f"controlled_rows, {mode}: expected {2 * pictures} times True or False, as a list.")


def show(student: Student, draws: Draws, folder: Path) -> Path:
    """A hint without a prompt: plain control, guess mode, resolution weighting."""
    sd, control = nano(), bundled_control("canny")
    _, hints, _ = pairs_of_scenes([draws.seed("scene") % 1000], "canny")
    noise = torch.randn(1, 4, sd.size // 8, sd.size // 8, generator=draws.tensors("picture"))
    empty, heights = sd.encode_prompts(""), [sd.size // 8 // 2**n for n in control.skip_levels]
    heights, made = [*heights, heights[-1]], []
    for mode in ("plain", "guess", "resolution"):
        weights = student.call("residual_weights", 1.0, heights, mode)
        only_prompt = {"resolution_weighting": mode != "plain"}
        if only_prompt["resolution_weighting"]:  # which `sample` multiplies by its own weights
            weights = [w * h / heights[0] for w, h in zip(weights, heights)]
        controls = [(control, hints, weights)]
        made.append(sample(sd, noise, empty, empty, controls, scale=sd.guidance, **only_prompt))
    caption = "a hint without a prompt: plain, guess mode, resolution weighting"
    return save_strip(torch.cat(made), folder / "ex11.png", caption)


EXERCISE = Exercise(
    number=11,
    title="Strength, guess mode, resolution weighting",
    check=check,
    hints=(
        "The list is in the residuals' order: index 0 is the shallowest, -1 the middle block.",
        "0.825 ** 0 is 1. Which exponent does the residual before the last one have?",
        "Guidance computes without + scale x (with - without): what if the hint is in both?",
    ),
    closed=("nanocontrol.sampling", "nanocontrol.sample"),
    show=show,
)

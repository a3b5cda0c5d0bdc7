"""Check of exercise 11: strength, guess mode, resolution weighting."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from nanocontrol import sample
from nanocontrol.course.exercise import Seeds, Wrong, compare, sentences
from nanocontrol.course.inside import bundled_nano
from nanocontrol.course.pictures import bundled_control, pairs_of_scenes, save_strip, scene_to_show
from nanocontrol.course.student import Student

SAY = sentences("weights")
MODES = "plain", "guess", "resolution"


def right_weights(strength: float, heights: list[int], mode: str) -> Tensor:
    shares = {
        "plain": [1.0 for _ in heights],
        "guess": [0.825**k for k in reversed(range(len(heights)))],
        "resolution": [heights[0] / height for height in heights],
    }
    return strength * torch.tensor(shares[mode], dtype=torch.float64)


def wrong_weights(strength: float, heights: list[int], mode: str) -> dict[str, Tensor]:
    right = right_weights(strength, heights, mode)
    known = {SAY.NO_STRENGTH.format(mode=mode): right / strength}
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
    for mode in MODES:
        found = student.call("residual_weights", strength, heights, mode)
        right = right_weights(strength, heights, mode)
        known = wrong_weights(strength, heights, mode)
        compare("residual_weights", found, right, known, SAY.ORDER.format(mode=mode))
        check_rows(student, number.choice([1, 2, 3]), mode)
    return SAY.RIGHT


def check_rows(student: Student, pictures: int, mode: str) -> None:
    found = student.call("controlled_rows", pictures, mode)
    on, off = [True] * pictures, [False] * pictures
    if found != (on + on if mode == "plain" else off + on):
        sentence = SAY.OTHER_HALF if found == on + off else SAY.ROWS
        sentence = SAY.ALL_ROWS if found == on + on else sentence
        sentence = SAY.PLAIN_ROWS if mode == "plain" else sentence
        raise Wrong(sentence.format(mode=mode, rows=2 * pictures))


def show(student: Student, draws: Seeds, folder: Path) -> Path:
    """A hint without a prompt: plain control, guess mode, resolution weighting."""
    sd, control, (_, _, noise) = bundled_nano(), bundled_control("canny"), scene_to_show(draws)
    _, hints, *_ = pairs_of_scenes([draws.seed("scene") % 1000], "canny")
    empty, heights = sd.encode_prompts(""), [sd.size // 8 // 2**n for n in control.skip_levels]
    heights, made = [*heights, heights[-1]], []
    own = partial(sample, sd, noise, empty, empty, scale=sd.guidance)
    for mode in MODES:
        weights = student.call("residual_weights", 1.0, heights, mode)
        if mode != "plain":  # `sample` multiplies by its own weights
            weights = [w * h / heights[0] for w, h in zip(weights, heights)]
        made.append(own([(control, hints, weights)], resolution_weighting=mode != "plain"))
    caption = f"a hint without a prompt: {', '.join(MODES)}"
    return save_strip(torch.cat(made), folder / "ex11.png", caption)

"""Check of exercise 11: strength, guess mode, resolution weighting."""

import torch
from torch import Tensor

from nanocontrol import sample
from nanocontrol.course.exercise import Seeds, Student, compare, refuse, sentences
from nanocontrol.course.inside import bundled_nano
from nanocontrol.course.pictures import bundled_control, decoded, pairs_of_scenes, scene_to_show

SAY = sentences("weights")
MODES = "plain", "guess", "resolution"


def right_and_wrong_weights(strength: float, heights: list[int], mode: str) -> tuple[Tensor, dict]:
    """The right weights, and the known wrong ones."""
    n, height = len(heights), torch.tensor(heights).double()
    guess = 0.825 ** torch.arange(n - 1, -1, -1).double()
    share = {"plain": torch.ones(n), "guess": guess, "resolution": height[0] / height}[mode]
    right, known = strength * share, {SAY.NO_STRENGTH.format(mode=mode): share}
    if mode == "guess":
        known[SAY.GUESS_REVERSED] = right.flip(0)
        known[SAY.GUESS_ONE_MORE] = right * 0.825
        known[SAY.GUESS_EVEN] = strength * torch.logspace(-1, 0, n).double()
    if mode == "resolution":
        known[SAY.EIGHT_FIRST] = right.flip(0)
        known[SAY.INVERTED] = strength / share
        known[SAY.FIXED_64] = right * 64 / height[0]
    return right, known


def check(student: Student, draws: Seeds) -> str:
    number = draws.numbers("weights")
    strength, latent = number.uniform(0.4, 0.9), number.choice([16, 32, 96])
    per_level = number.choice([2, 3])
    heights = [latent // 2**level for level in range(4) for _ in range(per_level)]
    heights += heights[-1:]
    for mode in MODES:
        found = student.call("residual_weights", strength, heights, mode)
        right, known = right_and_wrong_weights(strength, heights, mode)
        compare("residual_weights", found, right, known, SAY.ORDER.format(mode=mode))
        check_rows(student, number.choice([1, 2, 3]), mode)
    return SAY.RIGHT


def check_rows(student: Student, pictures: int, mode: str) -> None:
    found = student.call("controlled_rows", pictures, mode)
    on, off = [True] * pictures, [False] * pictures
    if found != (on + on if mode == "plain" else off + on):
        wrong = {SAY.PLAIN_ROWS: mode == "plain", SAY.OTHER_HALF: found == on + off}
        wrong |= {SAY.ALL_ROWS: found == on + on, SAY.ROWS: True}
        refuse(wrong, mode=mode, rows=2 * pictures)


def show(student: Student, draws: Seeds) -> tuple[list, str]:
    """A hint without a prompt: plain control, guess mode, resolution weighting."""
    sd, (_, _, noise) = bundled_nano(), scene_to_show(draws)
    _, hints, *_ = pairs_of_scenes([draws.seed("scene") % 1000], "canny")
    controls, empty = [(bundled_control("canny"), hints, 1.0)], sd.encode_prompts("")
    flags: tuple[dict, ...] = {}, {"guess": True}, {"resolution_weighting": True}
    given = sd, noise, empty, empty, controls
    made = [sample(*given, scale=sd.guidance, **flag) for flag in flags]
    return decoded(torch.cat(made)), f"a hint without a prompt: {', '.join(MODES)}"

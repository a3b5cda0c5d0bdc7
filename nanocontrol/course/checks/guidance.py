"""Check of exercise 4: classifier-free guidance."""

import torch

from nanocontrol import sample
from nanocontrol.course.exercise import Seeds, Student, compare, compare_choice, sentences
from nanocontrol.course.pictures import bundled_nano, decoded, scene_to_show

SAY = sentences("guidance")


def check(student: Student, draws: Seeds) -> str:
    pair = torch.randn(6, 4, 4, 4, generator=draws.tensors("output")).double()
    without, prompted = pair.chunk(2)
    for scale in (draws.numbers("scale").uniform(2, 9), 1.0, 0.0, 3.0):
        known = {
            SAY.EXCHANGED: prompted + scale * (without - prompted),
            SAY.FROM_PROMPT: prompted + scale * (prompted - without),
            SAY.INTERLEAVED: pair[::2] + scale * (pair[1::2] - pair[::2]),
            SAY.ONLY_DIFFERENCE: scale * (prompted - without),
            SAY.MEAN: (without + prompted) / 2,
        }
        right = without + scale * (prompted - without)
        compare("guided", student.call("guided", pair, scale), right, known, SAY.LINE)
    found = student.value("PROMPT_HAS_NO_EFFECT")
    compare_choice("PROMPT_HAS_NO_EFFECT", found, 0, {1: SAY.NOTHING_AT_1}, SAY.WITHOUT)
    found = student.value("NEGATIVE_PROMPT_HAS_NO_EFFECT")
    compare_choice("NEGATIVE_PROMPT_HAS_NO_EFFECT", found, 1, {0: SAY.NOTHING_AT_0}, SAY.CANCELS)
    return SAY.RIGHT


def show(student: Student, draws: Seeds) -> tuple[list, str]:
    """One noise at four scales."""
    sd, scales = bundled_nano(), (0.0, 1.0, 2.5, 9.0)
    _, prompt, noise = scene_to_show(draws)
    context, uncond = sd.encode_prompts(prompt), sd.encode_prompts("")
    found = [sample(sd, noise, context, uncond, steps=10, scale=scale) for scale in scales]
    return decoded(torch.cat(found)), f"{prompt}: scale 0, 1, 2.5, 9"

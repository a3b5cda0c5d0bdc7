"""Check of exercise 4: classifier-free guidance."""

from pathlib import Path

import torch

from nanocontrol import sample
from nanocontrol.course.exercise import Draws, Exercise, chosen, compare
from nanocontrol.course.pictures import latents_and_prompts, nano, save_strip
from nanocontrol.course.student import Student

EXCHANGED = (
    "guided exchanges the halves of the batch: the first half was predicted with the negative "
    "prompt, and a picture would avoid its prompt."
)
FROM_PROMPT = (
    "guided adds `scale` times the difference to the prediction with the prompt: that is one more "
    "than asked for, and scale 1 would not be the prompt alone."
)
INTERLEAVED = (
    "guided takes every second row: the batch has all rows with the negative prompt first, then "
    "all rows with the prompt."
)
ONLY_DIFFERENCE = "guided leaves out the prediction without the prompt, where the way begins."
MEAN = "guided ignores the scale."
NOTHING_AT_1 = (
    "1 does not turn the prompt off: at scale 1 the way ends at the prediction with the prompt, so "
    "it is the negative prompt that has no effect. Which scale stays at the beginning?"
)
NOTHING_AT_0 = (
    "At scale 0 the prediction is that of the negative prompt alone: it has all the effect."
)
LINE = "It is a point on the line through both predictions: without + scale x (with - without)."


def check(student: Student, draws: Draws) -> str:
    pair = torch.randn(6, 4, 4, 4, generator=draws.tensors("output")).double()
    without, prompted = pair.chunk(2)
    for scale in (draws.numbers("scale").uniform(2, 9), 1.0, 0.0, 3.0):
        known = {
            EXCHANGED: prompted + scale * (without - prompted),
            FROM_PROMPT: prompted + scale * (prompted - without),
            INTERLEAVED: pair[::2] + scale * (pair[1::2] - pair[::2]),
            ONLY_DIFFERENCE: scale * (prompted - without),
            MEAN: (without + prompted) / 2,
        }
        right = without + scale * (prompted - without)
        compare("guided", student.call("guided", pair, scale), right, known, LINE)
    name = "PROMPT_HAS_NO_EFFECT"
    advice = f"{name}: at which scale is the guided prediction the one without the prompt?"
    chosen(name, student.value(name), 0, {1: NOTHING_AT_1}, advice)
    name = "NEGATIVE_PROMPT_HAS_NO_EFFECT"
    advice = f"{name}: at which scale does the prediction without the prompt cancel?"
    chosen(name, student.value(name), 1, {0: NOTHING_AT_0}, advice)
    return (
        "Guidance is linear in the scale: 0 is the negative prompt alone, 1 the prompt alone, and "
        "9, the paper's, goes far past it. At scale 1 a step needs only one prediction."
    )


def show(student: Student, draws: Draws, folder: Path) -> Path:
    """One noise at four scales."""
    sd, scales = nano(), (0.0, 1.0, 2.5, 9.0)
    latents, prompts = latents_and_prompts([draws.seed("scene") % 1000])
    noise = torch.randn(latents.shape, generator=draws.tensors("picture"))
    context, uncond = sd.encode_prompts(prompts[0]), sd.encode_prompts("")
    found = [sample(sd, noise, context, uncond, steps=10, scale=scale) for scale in scales]
    return save_strip(torch.cat(found), folder / "ex04.png", f"{prompts[0]}: scale 0, 1, 2.5, 9")


EXERCISE = Exercise(
    number=4,
    title="Guidance",
    check=check,
    hints=(
        "output.chunk(2) gives both halves.",
        "At scale 1 the result must be the prediction with the prompt, at scale 0 the other one.",
    ),
    closed=("nanocontrol.sampling", "nanocontrol.sample"),
    show=show,
)

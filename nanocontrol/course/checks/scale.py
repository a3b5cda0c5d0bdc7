"""Check of exercise 2: the latent scale of a VAE."""

import torch

from nanocontrol.course.exercise import Seeds, Student, compare, sentences
from nanocontrol.course.pictures import bundled_nano, pairs_of_scenes

SAY = sentences("scale")

PICTURES = 16
# 16 pictures have 4 x 16 x 16 x 16 latent values. What a correct measurement may leave out (the
# posterior's noise, the mean) changes the result by less than 1 %, and rounding by nothing.
WITHIN = 0.03


def check(student: Student, draws: Seeds) -> str:
    gain = draws.numbers("gain").uniform(1.7, 3.5)
    numbers = draws.numbers("scenes").sample(range(1000), PICTURES)
    pictures, *_ = pairs_of_scenes(numbers)
    with torch.no_grad():
        mean, deviation = (gain * x for x in bundled_nano().encode(pictures))
    right = 1 / mean.std().item()
    found = student.call("latent_scale", gain, pictures, through="with_encoder")
    known = {
        SAY.SD: 0.18215,
        SAY.INVERSE: 1 / right,
        SAY.VARIANCE: right**2,
        SAY.POSTERIOR: 1 / deviation.square().mean().sqrt().item(),
        SAY.PIXELS: 1 / pictures.std().item(),
        SAY.LARGEST: 1 / mean.abs().max().item(),
    }
    scale = compare("latent_scale", found, right, known, SAY.ADVICE, within=WITHIN, least=0)
    return SAY.RIGHT.format(scale=scale)

"""Check of exercise 1: adding noise, and what t is."""

from pathlib import Path

import torch
from torch import Tensor

from nanocontrol import DDPM
from nanocontrol.course.exercise import Exercise, Seeds, Wrong, compare, sentences
from nanocontrol.course.pictures import latents_and_prompts, save_strip
from nanocontrol.course.student import Student

SAY = sentences("noise")


def mixed(x0: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    signal, sigma = (x.view(-1, 1, 1, 1) for x in (signal, sigma))
    return signal * x0 + sigma * noise


def check(student: Student, draws: Seeds) -> str:
    generator, abar = draws.tensors("noise"), DDPM().alphas_cumprod
    x0, noise = torch.randn(2, 4, 4, 8, 8, generator=generator).double()
    t = torch.cat([torch.randint(100, 900, (3,), generator=generator), torch.tensor([999])])
    a = abar[t]
    known = {
        SAY.NO_ROOTS: mixed(x0, noise, a, 1 - a),
        SAY.SWAPPED: mixed(x0, noise, (1 - a).sqrt(), a.sqrt()),
        SAY.ONE_ROOT: mixed(x0, noise, a.sqrt(), 1 - a.sqrt()),
        SAY.ONE_T: mixed(x0, noise, a[:1].sqrt(), (1 - a[:1]).sqrt()),
    }
    right = mixed(x0, noise, a.sqrt(), (1 - a).sqrt())
    found = student.call("add_noise", x0.float(), noise.float(), t, abar)
    advice = "Is abar[t] the share of the latent's variance, and 1 - abar[t] that of the noise?"
    compare("add_noise", found, right, known, advice)
    for steps in (20, draws.numbers("steps").choice([25, 40, 50])):
        check_levels(student, steps)
    return SAY.RIGHT


def check_levels(student: Student, steps: int) -> None:
    numbers = range(steps)
    right = torch.tensor(DDPM().timesteps(steps))
    found = [student.call("level_of_step", i, steps) for i in numbers]
    if any(not isinstance(value, int | float) for value in found):
        raise Wrong("level_of_step returns no number; expected a level, 0 to 999")
    i = torch.tensor([*numbers])
    known = {
        SAY.STEP_IS_T: i,
        SAY.RISING: right.flip(0),
        SAY.NO_OFFSET: right - 1,
        SAY.FRACTION: (right / 1000).double(),
    }
    if found == [steps - 1 - n for n in numbers]:
        raise Wrong(SAY.STEP_IS_T)
    if found == [n / steps for n in numbers] or found == [1 - n / steps for n in numbers]:
        raise Wrong(SAY.FRACTION)
    if found == [1000 * n // steps for n in numbers]:
        raise Wrong(SAY.RISING)
    advice = f"With {steps} steps the first level is {1000 - 1000 // steps} + 1, the last one 1."
    compare("level_of_step", found, right, known, advice)


def show(student: Student, draws: Seeds, folder: Path) -> Path:
    """A scene at six levels of noise, decoded."""
    latents, _ = latents_and_prompts([draws.seed("scene") % 1000])
    levels = torch.tensor([0, 200, 400, 600, 800, 999])
    noise = torch.randn(6, *latents.shape[1:], generator=draws.tensors("picture"))
    abar = DDPM().alphas_cumprod
    x_t = student.call("add_noise", latents.expand(6, -1, -1, -1), noise, levels, abar)
    return save_strip(torch.as_tensor(x_t), folder / "ex01.png", f"t = {levels.tolist()}")


EXERCISE = Exercise("noise", check, show=show)

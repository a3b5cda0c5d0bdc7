"""Check of exercise 1: adding noise, and what t is."""

from pathlib import Path

import torch
from torch import Tensor

from nanocontrol import DDPM
from nanocontrol.course.exercise import Draws, Exercise, Wrong, compare
from nanocontrol.course.pictures import latents_and_prompts, save_strip
from nanocontrol.course.student import Student

NO_ROOTS = (
    "add_noise mixes with abar and 1 - abar: these are shares of the variance, so the variance of "
    "x_t falls below 1. Which factor changes a variance by abar?"
)
SWAPPED = (
    "add_noise exchanges the two parts: abar is the latent's share, and at t = 999 almost nothing "
    "of the latent may be left."
)
ONE_ROOT = (
    "add_noise takes 1 - sqrt(abar) for the noise: the two variances have to add up to 1, not the "
    "two factors."
)
ONE_T = (
    "add_noise uses the first t for the whole batch: every latent has its own t. Shape abar[t] so "
    "that it multiplies along the batch."
)
STEP_IS_T = (
    "level_of_step returns the number of the step: t is the level of noise, 0 to 999, and with few "
    "steps most levels are skipped."
)
RISING = (
    "level_of_step rises with i: sampling begins with the noisiest level and ends with the least "
    "noisy one."
)
NO_OFFSET = "level_of_step is one too low: Stable Diffusion adds 1 to each level it visits."
FRACTION = (
    "level_of_step returns a fraction of the way: the network expects t as a whole number, 0 to "
    "999."
)


def mixed(x0: Tensor, noise: Tensor, signal: Tensor, sigma: Tensor) -> Tensor:
    signal, sigma = (x.view(-1, 1, 1, 1) for x in (signal, sigma))
    return signal * x0 + sigma * noise


def check(student: Student, draws: Draws) -> str:
    generator, abar = draws.tensors("noise"), DDPM().alphas_cumprod
    x0, noise = torch.randn(2, 4, 4, 8, 8, generator=generator).double()
    t = torch.cat([torch.randint(100, 900, (3,), generator=generator), torch.tensor([999])])
    a = abar[t]
    known = {
        NO_ROOTS: mixed(x0, noise, a, 1 - a),
        SWAPPED: mixed(x0, noise, (1 - a).sqrt(), a.sqrt()),
        ONE_ROOT: mixed(x0, noise, a.sqrt(), 1 - a.sqrt()),
        ONE_T: mixed(x0, noise, a[:1].sqrt(), (1 - a[:1]).sqrt()),
    }
    right = mixed(x0, noise, a.sqrt(), (1 - a).sqrt())
    found = student.call("add_noise", x0.float(), noise.float(), t, abar)
    advice = "Is abar[t] the share of the latent's variance, and 1 - abar[t] that of the noise?"
    compare("add_noise", found, right, known, advice)
    for steps in (20, draws.numbers("steps").choice([25, 40, 50])):
        check_levels(student, steps)
    return (
        "x_t keeps variance 1 at every t, and t is the level of noise. Training draws it at "
        "random; 20 sampling steps visit 20 of the 1,000 levels."
    )


def check_levels(student: Student, steps: int) -> None:
    numbers = range(steps)
    right = torch.tensor(DDPM().timesteps(steps))
    found = [student.call("level_of_step", i, steps) for i in numbers]
    if any(not isinstance(value, int | float) for value in found):
        raise Wrong("level_of_step returns no number; expected a level, 0 to 999")
    i = torch.tensor([*numbers])
    known = {
        STEP_IS_T: i,
        RISING: right.flip(0),
        NO_OFFSET: right - 1,
        FRACTION: (right / 1000).double(),
    }
    if found == [steps - 1 - n for n in numbers]:
        raise Wrong(STEP_IS_T)
    if found == [n / steps for n in numbers] or found == [1 - n / steps for n in numbers]:
        raise Wrong(FRACTION)
    if found == [1000 * n // steps for n in numbers]:
        raise Wrong(RISING)
    advice = f"With {steps} steps the first level is {1000 - 1000 // steps} + 1, the last one 1."
    compare("level_of_step", found, right, known, advice)


def show(student: Student, draws: Draws, folder: Path) -> Path:
    """A scene at six levels of noise, decoded."""
    latents, _ = latents_and_prompts([draws.seed("scene") % 1000])
    levels = torch.tensor([0, 200, 400, 600, 800, 999])
    noise = torch.randn(6, *latents.shape[1:], generator=draws.tensors("picture"))
    abar = DDPM().alphas_cumprod
    x_t = student.call("add_noise", latents.expand(6, -1, -1, -1), noise, levels, abar)
    return save_strip(torch.as_tensor(x_t), folder / "ex01.png", f"t = {levels.tolist()}")


EXERCISE = Exercise(
    number=1,
    title="Add noise, and say what t is",
    check=check,
    hints=(
        "Scaling by c changes a variance by c^2, and the variances of independent parts add up.",
        "abar[t] has shape [B]; .view(-1, 1, 1, 1) lets it multiply a batch [B, 4, h, w].",
        "Level i from below is floor(1000 i / steps) + 1; sampling goes from above.",
    ),
    closed=("nanocontrol.schedulers", "nanocontrol.DDPM", "nanocontrol.DDIM"),
    show=show,
)

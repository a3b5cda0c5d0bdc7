"""Check of exercise 3: a step of DDIM."""

from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from nanocontrol import DDPM
from nanocontrol.course.exercise import Seeds, compare, sentences
from nanocontrol.course.pictures import bundled_nano, save_strip, scene_to_show
from nanocontrol.course.student import Student

SAY = sentences("ddim")


def mixture(x0: Tensor, noise: Tensor, share: Tensor | float) -> Tensor:
    share = torch.as_tensor(share)
    return share.sqrt() * x0 + (1 - share).sqrt() * noise


def check(student: Student, draws: Seeds) -> str:
    abar, number = DDPM().alphas_cumprod, draws.numbers("levels")
    x0, noise = torch.randn(2, 2, 4, 8, 8, generator=draws.tensors("latents")).double()
    steps = number.choice([10, 20, 25])
    visited = [*DDPM().timesteps(steps), None]
    for i in sorted(number.sample(range(steps - 1), 3)) + [steps - 1]:
        t, following = visited[i], visited[i + 1]
        x = mixture(x0, noise, abar[t])
        after = abar[following or 0]
        known = {
            SAY.ONE_LOWER: mixture(x0, noise, abar[t - 1]),
            SAY.STAYS: x,
            SAY.NOT_UNDONE: mixture(x - (1 - abar[t]).sqrt() * noise, noise, after),
            SAY.ONLY_X0: x0,
        }
        if following is None:
            known = {SAY.ALL_CLEAN: x0, SAY.LAST_IS_T1: x, **known}
        found = student.call("ddim_step", x, noise, t, following, abar)
        compare("ddim_step", found, mixture(x0, noise, after), known, SAY.ADVICE)
    return SAY.RIGHT


@torch.no_grad()
def show(student: Student, draws: Seeds, folder: Path) -> Path:
    """A scene sampled with the student's step: every fifth x_t of 20, and the last one."""
    sd, (_, prompt, x) = bundled_nano(), scene_to_show(draws)
    visited, seen = [*DDPM().timesteps(20), None], []
    context = torch.cat([sd.encode_prompts(""), sd.encode_prompts(prompt)])
    for t, following in pairwise(visited):
        both = sd.unet(x.expand(2, -1, -1, -1), torch.tensor([t, t]), context)
        noise = both[:1] + sd.guidance * (both[1:] - both[:1])
        given = x, noise, t, following, DDPM().alphas_cumprod
        x = torch.as_tensor(student.call("ddim_step", *given)).float()
        seen.append(x)
    strip = torch.cat(seen[4::5])
    return save_strip(strip, folder / "ex03.png", f"{prompt}: after 5 to 20 steps")

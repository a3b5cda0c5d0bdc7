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
    ddpm, number = DDPM(), draws.numbers("levels")
    abar = ddpm.alphas_cumprod
    x0, noise = torch.randn(2, 2, 4, 8, 8, generator=draws.tensors("latents")).double()

    def at(level: int, x0: Tensor = x0) -> Tensor:
        return ddpm.add_noise(x0, noise, torch.tensor([level, level]))

    steps = number.choice([10, 20, 25])
    visited = [*ddpm.timesteps(steps), 0]
    for i in sorted(number.sample(range(steps - 1), 3)) + [steps - 1]:
        t, after, is_last = visited[i], visited[i + 1], i == steps - 1
        known = {
            SAY.ONE_LOWER: at(t - 1),
            SAY.STAYS: at(t),
            SAY.NOT_UNDONE: at(after, x0=abar[t].sqrt() * x0),
            SAY.ONLY_X0: x0,
        }
        if is_last:
            known = {SAY.ALL_CLEAN: x0, SAY.LAST_IS_T1: at(t), **known}
        found = student.call("ddim_step", at(t), noise, t, None if is_last else after, abar)
        compare("ddim_step", found, at(after), known, SAY.ADVICE)
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

"""Check of exercise 3: a step of DDIM."""

from typing import Any

import torch
from torch import Tensor

from nanocontrol import DDIM, DDPM
from nanocontrol.course.exercise import Seeds, Student, compare, sentences
from nanocontrol.course.pictures import bundled_nano, decoded, scene_to_show
from nanocontrol.sampling import sampling_steps

SAY = sentences("ddim")


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
            SAY.LAST_IS_T1 if is_last else SAY.STAYS: at(t),
            SAY.NOT_UNDONE: at(after, x0=abar[t].sqrt() * x0),
            SAY.ALL_CLEAN if is_last else SAY.ONLY_X0: x0,
        }
        found = student.call("ddim_step", at(t), noise, t, None if is_last else after, abar)
        compare("ddim_step", found, at(after), known, SAY.ADVICE)
    return SAY.RIGHT


def show(student: Student, draws: Seeds) -> tuple[list, str]:
    """A scene sampled with the student's step: every fifth x_t of 20, and the last one."""

    class StudentsStep(DDIM):
        def step(self, x: Tensor, output: Tensor, t: int, previous: int | None, _: Any) -> Tensor:
            given = x, output, t, previous, self.alphas_cumprod
            return torch.as_tensor(student.call("ddim_step", *given)).float()

    sd, (_, prompt, noise) = bundled_nano(), scene_to_show(draws)
    given = sd, noise, sd.encode_prompts(prompt), sd.encode_prompts("")
    x_t = [x for x, _ in sampling_steps(*given, scale=sd.guidance, scheduler=StudentsStep())]
    return decoded(torch.cat(x_t[5::5])), f"{prompt}: after 5 to 20 steps"

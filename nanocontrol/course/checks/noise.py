"""Check of exercise 1: adding noise, and what t is."""

import torch

from nanocontrol import DDPM
from nanocontrol.course.exercise import Seeds, Student, as_tensor_like, compare, sentences
from nanocontrol.course.pictures import decoded, scene_to_show

SAY = sentences("noise")


def check(student: Student, draws: Seeds) -> str:
    generator, abar = draws.tensors("noise"), DDPM().alphas_cumprod
    x0, noise = torch.randn(2, 4, 4, 8, 8, generator=generator).double()
    t = torch.cat([torch.randint(100, 900, (3,), generator=generator), torch.tensor([999])])
    a = abar[t].view(-1, 1, 1, 1)
    known = {
        SAY.NO_ROOTS: a * x0 + (1 - a) * noise,
        SAY.SWAPPED: (1 - a).sqrt() * x0 + a.sqrt() * noise,
        SAY.ONE_ROOT: a.sqrt() * x0 + (1 - a.sqrt()) * noise,
        SAY.ONE_T: a[:1].sqrt() * x0 + (1 - a[:1]).sqrt() * noise,
    }
    found = student.call("add_noise", x0.float(), noise.float(), t, abar)
    compare("add_noise", found, a.sqrt() * x0 + (1 - a).sqrt() * noise, known, SAY.SHARES)
    for steps in (20, draws.numbers("steps").choice([25, 40, 50])):
        check_levels(student, steps)
    return SAY.RIGHT


def check_levels(student: Student, steps: int) -> None:
    i, right = torch.arange(steps), torch.tensor(DDPM().timesteps(steps))
    known = {
        SAY.STEP_IS_T: [i, i.flip(0)],
        SAY.RISING: [right.flip(0), right.flip(0) - 1],
        SAY.NO_OFFSET: right - 1,
        SAY.FRACTION: [right / 1000, i / steps, 1 - i / steps],
    }
    found = [student.call("level_of_step", n, steps) for n in range(steps)]
    levels = [as_tensor_like("level_of_step", level, right[0]) for level in found]
    compare("level_of_step", torch.stack(levels), right, known, SAY.LEVELS)


def show(student: Student, draws: Seeds) -> tuple[list, str]:
    """A scene at six levels of noise, decoded."""
    latent, _, noise = scene_to_show(draws)
    levels = torch.tensor([0, 200, 400, 600, 800, 999])
    both = (x.expand(6, -1, -1, -1) for x in (latent, noise))
    x_t = student.call("add_noise", *both, levels, DDPM().alphas_cumprod)
    return decoded(torch.as_tensor(x_t)), f"t = {levels.tolist()}"

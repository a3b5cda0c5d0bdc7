"""Check of the bonus: a condition of one's own, and a ControlNet that follows it."""

from functools import cache

import torch
from torch import Tensor

from nanocontrol import load_control
from nanocontrol.course.exercise import Seeds, Student, as_tensor_like, refuse, sentences
from nanocontrol.course.own_runs import HANDED_IN
from nanocontrol.course.pictures import bundled_detector, bundled_nano, pairs_of_scenes
from nanocontrol.nano.follows import follows
from nanocontrol.nano.scenes import HELD_OUT
from nanocontrol.nano.scores import score
from nanocontrol.nano.world import Scene
from nanocontrol.training.measure import make_pictures

SAY = sentences("own")
WANTED = (HANDED_IN,)

SCENES = 32
ENOUGH = 0.3  # of `follows`; without control it is 0.15, with nano's nine conditions about 0.7


@cache
def hints_and_pictures(student: Student, draws: Seeds) -> tuple[Tensor, Tensor, list[Scene]]:
    """The student's hints [n, 3, H, W] of held-out scenes, the pictures made from them, and the
    scenes."""
    sd, numbers = bundled_nano(), draws.numbers("own").sample(range(10_000), SCENES)
    images, _, prompts, scenes = pairs_of_scenes(numbers)
    seeds = [HELD_OUT + number for number in numbers]
    found = student.call("condition", seeds, sd.size, through="with_drawings")
    wanted = torch.zeros(sd.size, sd.size, 3)
    hints = torch.stack([as_tensor_like("condition", hint, wanted) for hint in found])
    hints = hints.permute(0, 3, 1, 2).float().contiguous()
    file = student.folder / HANDED_IN
    wrong = {
        SAY.OUTSIDE: hints.min() < -1e-3 or hints.max() > 1 + 1e-3,
        SAY.PICTURE: (hints - (images + 1) / 2).abs().mean() < 0.05,
        SAY.EMPTY: torch.equal(hints, hints[:1].expand_as(hints)),
        SAY.MISSING: not file.exists(),
    }
    refuse(wrong, file=HANDED_IN)
    # A header's length, below 4 GB, and its beginning.
    refuse({SAY.NOT_SAFE: file.read_bytes()[4:9] != b"\0\0\0\0{"})
    control = load_control(file, sd.unet)
    return hints, make_pictures(sd, prompts, [(control, hints, 1.0)]), scenes


def check(student: Student, draws: Seeds) -> str:
    _, pictures, scenes = hints_and_pictures(student, draws)
    found = follows(None, pictures, scenes, bundled_detector()) or 0
    refuse({SAY.NOT_YET: found < ENOUGH}, found=found, enough=ENOUGH)
    edges = score("canny", pictures, scenes, bundled_detector())
    return SAY.RIGHT.format(scenes=SCENES, found=found, edges=edges)


def show(student: Student, draws: Seeds) -> tuple[list, str]:
    hints, pictures, _ = hints_and_pictures(student, draws)
    return [hints[:8] * 2 - 1, pictures[:8]], "your hints, and what nano makes of them"

"""Check of the bonus: a condition of one's own, and a ControlNet that follows it."""

from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanocontrol import load_control
from nanocontrol.course.exercise import Exercise, Seeds, Wrong, as_tensor_like, sentences
from nanocontrol.course.own_runs import HANDED_IN
from nanocontrol.course.pictures import bundled_detector, bundled_nano, save_rows
from nanocontrol.course.student import Student
from nanocontrol.nano.follows import follows
from nanocontrol.nano.scenes import HELD_OUT, held_out_scenes
from nanocontrol.nano.scores import score
from nanocontrol.training.measure import make_pictures

SAY = sentences("own")

SCENES = 32
ENOUGH = 0.3  # of `follows`; without control it is 0.15, with nano's nine conditions about 0.7


def first_scene(draws: Seeds) -> int:
    return HELD_OUT + 32 * (draws.seed("own") % 1000)


@cache
def hints_and_pictures(student: Student, first: int) -> tuple[Tensor, Tensor]:
    """The student's hints [n, 3, H, W], and the pictures made from them."""
    images, _, prompts, _ = held_out_scenes(None, SCENES, first, bundled_nano().size)
    seeds = [*range(first, first + SCENES)]
    found = student.call("condition", seeds, bundled_nano().size, through="with_drawings")
    if not isinstance(found, list) or len(found) != SCENES:
        raise Wrong("condition returns no hints")
    wanted = torch.zeros(bundled_nano().size, bundled_nano().size, 3)
    hints = torch.stack([as_tensor_like("condition", hint, wanted) for hint in found])
    hints = hints.permute(0, 3, 1, 2).float().contiguous()
    if hints.min() < -1e-3 or hints.max() > 1 + 1e-3:
        raise Wrong(SAY.OUTSIDE)
    if (hints - (images + 1) / 2).abs().mean() < 0.05:
        raise Wrong(SAY.PICTURE)
    if torch.equal(hints, hints[:1].expand_as(hints)):
        raise Wrong(SAY.EMPTY)
    file = student.folder / HANDED_IN
    try:
        with safe_open(file, "pt"):
            pass
    except SafetensorError:
        raise Wrong(SAY.NOT_SAFE) from None
    control = load_control(file, bundled_nano().unet)
    return hints, make_pictures(bundled_nano(), prompts, [(control, hints, 1.0)])


def check(student: Student, draws: Seeds) -> str:
    first = first_scene(draws)
    *_, scenes = held_out_scenes(None, SCENES, first, bundled_nano().size)
    _, pictures = hints_and_pictures(student, first)
    found = follows(None, pictures, scenes, bundled_detector())
    edges = score("canny", pictures, scenes, bundled_detector())
    if found is None or not found >= ENOUGH:
        raise Wrong(SAY.NOT_YET.format(found=found or 0, enough=ENOUGH))
    return (
        f"On {SCENES} held-out scenes follows is {found:.2f}, the score of the edges {edges:.2f}. "
        "Without control they are 0.15 and 0.29."
    )


def show(student: Student, draws: Seeds, folder: Path) -> Path:
    hints, pictures = hints_and_pictures(student, first_scene(draws))
    rows = [[*(hints[:8] * 2 - 1)], [*pictures[:8]]]
    return save_rows(rows, folder / "ex13.png", "your hints, and what nano makes of them")


EXERCISE = Exercise("own", check, show=show, wanted=(HANDED_IN,))

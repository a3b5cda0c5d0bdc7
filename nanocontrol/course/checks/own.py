"""Check of the bonus: a condition of one's own, and a ControlNet that follows it."""

from functools import cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nanocontrol import load_control
from nanocontrol.course.exercise import Draws, Exercise, Wrong, as_tensor_like
from nanocontrol.course.own_runs import HANDED_IN
from nanocontrol.course.pictures import bundled_detector, nano, save_rows
from nanocontrol.course.student import Student
from nanocontrol.nano.follows import follows
from nanocontrol.nano.scenes import HELD_OUT, held_out_scenes
from nanocontrol.nano.scores import score
from nanocontrol.training.measure import make_pictures

SCENES = 32
ENOUGH = 0.3  # of `follows`; without control it is 0.15, with nano's nine conditions about 0.7
NOT_SAFE = "the weights are no safetensors file; other files of weights can run code when read"
OUTSIDE = "condition returns values outside 0 to 1"
PICTURE = (
    "condition returns the picture itself: a hint says where things are, not all they look like"
)
EMPTY = "condition returns the same picture for every scene"
NOT_YET = (
    "follows is {found:.2f}; pictures without control have 0.15, and {enough} is asked for. Was "
    "it trained for too few steps, or does the condition say where things are?"
)


def first_scene(draws: Draws) -> int:
    return HELD_OUT + 32 * (draws.seed("own") % 1000)


@cache
def hints_and_pictures(student: Student, first: int) -> tuple[Tensor, Tensor]:
    """The student's hints [n, 3, H, W], and the pictures made from them."""
    images, _, prompts, _ = held_out_scenes(None, SCENES, first, nano().size)
    seeds = [*range(first, first + SCENES)]
    found = student.call("condition", seeds, nano().size, through="with_drawings")
    if not isinstance(found, list) or len(found) != SCENES:
        raise Wrong("condition returns no hints")
    wanted = torch.zeros(nano().size, nano().size, 3)
    hints = torch.stack([as_tensor_like("condition", hint, wanted) for hint in found])
    hints = hints.permute(0, 3, 1, 2).float().contiguous()
    if hints.min() < -1e-3 or hints.max() > 1 + 1e-3:
        raise Wrong(OUTSIDE)
    if (hints - (images + 1) / 2).abs().mean() < 0.05:
        raise Wrong(PICTURE)
    if torch.equal(hints, hints[:1].expand_as(hints)):
        raise Wrong(EMPTY)
    file = student.folder / HANDED_IN
    try:
        with safe_open(file, "pt"):
            pass
    except SafetensorError:
        raise Wrong(NOT_SAFE) from None
    control = load_control(file, nano().unet)
    return hints, make_pictures(nano(), prompts, [(control, hints, 1.0)])


def check(student: Student, draws: Draws) -> str:
    first = first_scene(draws)
    *_, scenes = held_out_scenes(None, SCENES, first, nano().size)
    _, pictures = hints_and_pictures(student, first)
    found = follows(None, pictures, scenes, bundled_detector())
    edges = score("canny", pictures, scenes, bundled_detector())
    if found is None or not found >= ENOUGH:
        raise Wrong(NOT_YET.format(found=found or 0, enough=ENOUGH))
    return (
        f"On {SCENES} held-out scenes follows is {found:.2f}, the score of the edges {edges:.2f}. "
        "Without control they are 0.15 and 0.29."
    )


def show(student: Student, draws: Draws, folder: Path) -> Path:
    hints, pictures = hints_and_pictures(student, first_scene(draws))
    rows = [[*(hints[:8] * 2 - 1)], [*pictures[:8]]]
    return save_rows(rows, folder / "ex13.png", "your hints, and what nano makes of them")


EXERCISE = Exercise(
    number=13,
    title="Bonus: a condition of your own",
    check=check,
    hints=(
        "drawing.index[::2, ::2] is 0 where the wall is, and drawing.depth[::2, ::2] is the depth.",
        "np.repeat(grey[..., None], 3, axis=2) makes a grey map RGB.",
    ),
    show=show,
    wanted=(HANDED_IN,),
)

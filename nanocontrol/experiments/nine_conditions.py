"""All nine conditions.

The paper (section 4) trains ControlNets for Canny edges, depth, normals, Hough lines, soft (HED)
edges, segmentation maps, poses and user scribbles, with the same method and nothing else changed;
arXiv v1, implementation, also for cartoon lines. It shows pictures, in figure 7 without prompts;
here the scenes' prompts are given.

Here with the ControlNets that the commands in nanocontrol/nano/README.md leave in runs/nine, and no
training: how well pictures keep to the condition (nano/scores.py), those made without control, and
the true ones.

A condition is followed if with every seed of noise the score is above half of the way from that
without control to that of the true pictures.
"""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

from torch import Tensor

from nanocontrol.checkpoint import load_control
from nanocontrol.experiments.experiment import Chart, Claim, Experiment, Row
from nanocontrol.experiments.numbers import spoken
from nanocontrol.experiments.pictures import detector, nano, pictures
from nanocontrol.experiments.results import Results
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.evaluate import of_condition
from nanocontrol.nano.scenes import held_out_scenes
from nanocontrol.plumbing.errors import InputError

EXPECTED = """
all nine follow. By `follows` those that tell kinds and outlines exactly are best (segmentation,
normals, cartoon), those that leave most open last (scribbles, lines of solids); no two neighbours
in that order are apart with three seeds. Whether a hint is lines, areas or graded does not matter.
"""

NINE = Path("runs/nine")
NUMBERS = {
    "with": "score",
    "without": "without control",
    "true": "score of true pictures",
    "follows": "`follows`",
    "follows_true": "`follows` of true pictures",
}


@cache
def uncontrolled(prompts: tuple[str, ...], seed: int) -> Tensor:
    """Most conditions have the same scenes, so the same prompts."""
    return pictures(nano(), prompts, [], seed)


def measure(condition: str, n: int, seed: int) -> dict:
    file = NINE / condition / "control.safetensors"
    if not file.exists():
        command = f"python train.py --condition {condition} --steps 600 --out {NINE / condition}"
        raise InputError(f"{file} does not exist: {command}")
    images, hints, prompts, scenes = held_out_scenes(condition, n, size=nano().size)
    control = load_control(file, nano().unet)
    made = pictures(nano(), prompts, [(control, hints, 1.0)], seed)
    sets = {"with": made, "without": uncontrolled(prompts, seed), "true": images}
    return of_condition(condition, sets, scenes, detector(), more=False)


def is_it_followed(condition: str) -> Callable[[Results], tuple[str, str]]:
    def judge(results: Results) -> tuple[str, str]:
        found = {name: results.values(condition, name) for name in ("with", "without", "true")}
        half = [(a + b) / 2 for a, b in zip(found["without"], found["true"])]
        above = all(score > middle for score, middle in zip(found["with"], half))
        said = [f"{name} {spoken(values)}" for name, values in found.items()]
        follows = spoken(results.values(condition, "follows"))
        ours = f"score: {', '.join(said)}; `follows` {follows}"
        return ours, "reproduced" if above else "not reproduced"

    return judge


def evidence(condition: str) -> str:
    return "arXiv v1, implementation" if condition == "cartoon" else "section 4.1, figure 7"


EXPERIMENT = Experiment(
    name="nine_conditions",
    expected=EXPECTED,
    arms=(),
    claims=tuple(
        Claim(f"a ControlNet follows: {name}", evidence(name), is_it_followed(name), (name,))
        for name in CONDITIONS
    ),
    sampled=tuple(Row(name, partial(measure, name), pictures=1.5) for name in CONDITIONS),
    numbers=NUMBERS,
    charts=(
        Chart("score", tuple(CONDITIONS), ("with", "without", "true")),
        Chart("things that are right", tuple(CONDITIONS), ("follows",)),
    ),
)

"""Check of exercise 9: which of three runs follows its hints."""

import csv
import json
from pathlib import Path

import torch

from nanocontrol import DDPM
from nanocontrol.course.exercise import Seeds, Student, compare, compare_choice, sentences
from nanocontrol.course.inside import bundled_nano, with_loss
from nanocontrol.course.pictures import pairs_of_scenes
from nanocontrol.training.measure import mean_latents

SAY = sentences("gain")

# Three trainings by train.py; the file has the commands.
RUNS = json.loads(Path(__file__).with_name("three_runs.json").read_text(encoding="utf-8"))["runs"]
COLUMNS = "step", "training_loss", "loss_with_own_hints", "loss_with_other_hints"
PAIRS = 2  # so that a wrong hint can only be the other one
# A share of the loss: a hundred times its rounding, and less than a tenth of the gain.
NEAR = 0.005


def names_of_runs(draws: Seeds) -> dict[str, str]:
    """The letters of this student's runs, and which run each one is."""
    order = draws.given().numbers("runs").sample([*RUNS], len(RUNS))
    return dict(zip("abc", order))


def give(draws: Seeds, folder: Path) -> None:
    for letter, name in names_of_runs(draws).items():
        with open(folder / f"run_{letter}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *RUNS[name]])


def check(student: Student, draws: Seeds) -> str:
    letters = {name: letter for letter, name in names_of_runs(draws).items()}
    known = {
        letters["memorises"]: SAY.LOWEST.format(run=letters["memorises"]),
        letters["waits"]: SAY.LOWER.format(run=letters["waits"]),
    }
    compare_choice("FOLLOWS", student.value("FOLLOWS"), letters["follows"], known, SAY.LETTER)
    return SAY.RIGHT.format(percent=100 * check_gain(student, draws))


def check_gain(student: Student, draws: Seeds) -> float:
    """Check control_gain -> the gain as a share of the loss."""
    numbers = draws.numbers("pairs").sample(range(1000), PAIRS)
    images, hints, prompts, _ = pairs_of_scenes(numbers, "canny")
    x0 = mean_latents(bundled_nano(), images)
    noise = torch.randn(x0.shape, generator=draws.tensors("noise"))
    t = torch.tensor([200, 700])
    given = hints, prompts, DDPM().add_noise(x0, noise, t), noise, t
    three = [hints, hints.flip(0), 0 * hints]
    own, other, black = with_loss(lambda loss, _: [*map(loss, three)], *given)
    gain = other - own
    known = {
        SAY.SIGN: -gain,
        SAY.NO_GAIN: 0.0,
        SAY.BLACK: black - own,
        SAY.RATIO: [other / own, own / other],
        SAY.ONLY_LOSS: [own, other],
    }
    found = student.call("control_gain", *given, through="with_loss")
    compare("control_gain", found, gain, known, SAY.ADVICE, within=NEAR, least=own)
    return gain / own

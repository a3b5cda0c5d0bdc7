"""Check of exercise 9: which of three runs follows its hints."""

import csv
import json
from pathlib import Path

import torch

from nanocontrol import DDPM
from nanocontrol.course.exercise import Exercise, Seeds, Wrong, compare_choice, sentences
from nanocontrol.course.inside import with_loss
from nanocontrol.course.pictures import latents_and_prompts, pairs_of_scenes
from nanocontrol.course.student import Student

SAY = sentences("gain")

# Three trainings by train.py; the file has the commands.
RUNS = json.loads(Path(__file__).with_name("three_runs.json").read_text(encoding="utf-8"))["runs"]
COLUMNS = "step", "training_loss", "loss_with_own_hints", "loss_with_other_hints"
PAIRS = 3
NEAR = 0.005  # of the loss: a hundred times its rounding, and less than a tenth of the gain


def names_of_runs(draws: Seeds) -> dict[str, str]:
    """The letters of this student's runs, and which run each one is."""
    order = draws.given().numbers("runs").sample([*RUNS], len(RUNS))
    return dict(zip("abc", order))


def give(draws: Seeds, folder: Path) -> None:
    for letter, name in names_of_runs(draws).items():
        with open(folder / f"run_{letter}.csv", "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *RUNS[name]])


def check(student: Student, draws: Seeds) -> str:
    names = names_of_runs(draws)
    letters = {name: letter for letter, name in names.items()}
    sentences = {
        letters["memorises"]: SAY.LOWEST.format(run=letters["memorises"]),
        letters["waits"]: SAY.LOWER.format(run=letters["waits"]),
    }
    compare_choice("FOLLOWS", student.value("FOLLOWS"), letters["follows"], sentences, SAY.LETTER)
    gain = check_gain(student, draws)
    return (
        f"The loss of a run that follows is not even the lowest. For the bundled ControlNet wrong "
        f"hints cost {100 * gain:.0f} % of the loss; above 5 % it follows."
    )


def check_gain(student: Student, draws: Seeds) -> float:
    """Check control_gain -> the gain as a share of the loss."""
    numbers = draws.numbers("pairs").sample(range(1000), PAIRS)
    x0, prompts = latents_and_prompts(numbers)
    _, hints, _ = pairs_of_scenes(numbers, "canny")
    noise = torch.randn(x0.shape, generator=draws.tensors("noise"))
    t = torch.tensor([200, 500, 800])
    given = True, hints, DDPM().add_noise(x0, noise, t), noise, t, prompts

    def loss(other: torch.Tensor) -> float:
        return with_loss(lambda loss, hints: loss(other), *given)

    own, black = loss(hints), loss(0 * hints)
    rolled = [loss(hints.roll(k, dims=0)) for k in range(1, PAIRS)]
    right = [other - own for other in [*rolled, sum(rolled) / len(rolled)]]
    found = student.call("control_gain", *given, through="with_loss")
    try:
        found = float(found)
    except (TypeError, ValueError, RuntimeError):
        raise Wrong("control_gain returns no number") from None
    known = {
        SAY.SIGN: [-gain for gain in right],
        SAY.NO_GAIN: [0.0],
        SAY.BLACK: [black - own],
        SAY.RATIO: [1 + gain / own for gain in right] + [own / (own + gain) for gain in right],
        SAY.ONLY_LOSS: [own, *rolled],
    }
    if not any(abs(found - gain) < NEAR * own for gain in right):
        for sentence, wrong in known.items():
            if any(abs(found - value) < NEAR * (own if value < 0.3 else 1) for value in wrong):
                raise Wrong(sentence)
        raise Wrong(
            f"control_gain returns {found:.4g}; the loss is {own:.4g}, with other pairs' hints up "
            f"to {max(rolled):.4g}. It is the difference of the two."
        )
    return right[-1] / own


EXERCISE = Exercise("gain", check, give=give)

"""Check of exercise 10: the jump."""

import json
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from nanocontrol.course.exercise import Seeds, Wrong, compare, compare_choice, sentences
from nanocontrol.course.own_runs import RUNS, seed_of, settings_for
from nanocontrol.course.student import Failed, Student
from nanocontrol.plumbing.errors import InputError
from nanocontrol.training.run import read_run

SAY = sentences("jump")
WANTED = tuple(f"runs/{run}/{file}" for run in RUNS for file in ("settings.json", "log.jsonl"))

LEVEL = 0.4  # of the score; without control it is about 0.24
# Steps of the jump in stored runs, and where they come from.
STORED = json.loads(Path(__file__).with_name("jumps.json").read_text(encoding="utf-8"))["jumps"]
# Other seeds, processors and evaluated scenes may change a jump by these factors. One seed jumped
# at step 111 and at 156 in two runs.
SOONER, LATER = 0.5, 1.7


def check(student: Student, draws: Seeds) -> str:
    """Judge every part that is there. The sentence says what is right, what is wrong first, and
    which commands are still to be run."""
    trained = [run for run in RUNS if (student.folder / "runs" / run).exists()]
    parts = {
        "PREDICTED": partial(check_prediction, student),
        "BROKEN_AFTER_300": partial(check_question, student),
        "first_step_at": partial(check_crossing, student, draws),
        **{f"runs/{run}": partial(check_run, student, draws, run) for run in trained},
    }
    right, wrong = [], []
    for name, judge in parts.items():
        try:
            judge()
            right.append(name)
        except (Wrong, Failed, InputError) as error:
            if student.process is None:  # it was stopped, and no other part can be judged
                raise
            wrong.append(str(error))
    commands = [f"`python -m nanocontrol.course train {run}`" for run in RUNS if run not in trained]
    if wrong or commands:
        said = [SAY.SO_FAR.format(parts=", ".join(right))] if right else []
        said += [f"{wrong[0].rstrip('.')}."] if wrong else []
        said += [SAY.TO_RUN.format(commands=" and ".join(commands))] if commands else []
        raise Wrong(" ".join(said))
    predicted, found = student.value("PREDICTED"), student.value("FOUND")
    compared = [SAY.COMPARED.format(run=x, found=found[x], predicted=predicted[x]) for x in RUNS]
    return SAY.RIGHT.format(compared=", ".join(compared))


def number_of(student: Student, name: str, run: str) -> float:
    """The number of steps for a run in PREDICTED or FOUND."""
    given = student.value(name)
    value = given.get(run) if isinstance(given, dict) else None
    if value is None:
        raise Wrong(SAY.NO_NUMBER.format(name=name, run=run))
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e5:
        raise Wrong(SAY.NO_STEPS.format(name=name, run=run))
    return value


def check_prediction(student: Student) -> None:
    if any(number_of(student, "PREDICTED", run) >= min(STORED["released"]) for run in RUNS):
        raise Wrong(SAY.BOTH_HELP)


def check_question(student: Student) -> None:
    name = "BROKEN_AFTER_300"
    compare_choice(name, student.value(name), False, {True: SAY.NOT_BROKEN}, SAY.TRUE_OR_FALSE)


def crossing(steps: list[int], scores: list[float], level: float) -> list[float]:
    """All places where the score rises through the level, on straight lines."""
    points = [*zip(steps, scores)]
    return [
        a + (b - a) * (level - low) / (high - low)
        for (a, low), (b, high) in pairwise(points)
        if low < level <= high
    ]


def check_crossing(student: Student, draws: Seeds) -> None:
    number = draws.numbers("curve")
    steps = [20 * i for i in range(9)]
    # It reaches the level, falls below it, and rises more steeply later.
    low = [number.uniform(0.2, 0.3) for _ in range(3)]
    scores = [*low, number.uniform(0.42, 0.46), 0.38, 0.39, number.uniform(0.6, 0.7), 0.72, 0.71]
    first, last = crossing(steps, scores, LEVEL)
    steepest = steps[int(torch.tensor(scores).diff().argmax())]
    known = {
        SAY.LOOKED_AT: [60, 40],
        SAY.STEEPEST: [steepest, steepest + 10, steepest + 20],
        SAY.LAST_TIME: [last, 100, 120],
    }
    found = student.call("first_step_at", steps, scores, LEVEL)
    compare("first_step_at", found, first, known, SAY.ADVICE)
    if student.call("first_step_at", steps, scores, 0.9) is not None:
        raise Wrong(SAY.NEVER)


def check_run(student: Student, draws: Seeds, run: str) -> None:
    """Compare a run's folder with the student's settings, with stored runs and with FOUND."""
    past = read_run(student.folder / "runs" / run)
    for name, value in settings_for(run, seed_of(draws.student)).items():
        found: Any = past.settings.get(name)
        if found != value:
            raise Wrong(SAY.SETTING.format(run=run, name=name, found=found, value=value))
    curve = past.measured("score")
    places = crossing([step for step, _ in curve], [score for _, score in curve], LEVEL)
    if not places:
        raise Wrong(SAY.NO_JUMP.format(run=run, level=LEVEL))
    low, high = min(STORED[run]), max(STORED[run])
    if not SOONER * low <= places[0] <= LATER * high:
        raise Wrong(SAY.ELSEWHERE.format(run=run, step=places[0], low=low, high=high))
    if abs(number_of(student, "FOUND", run) - places[0]) > 1:
        raise Wrong(SAY.NOT_FOUND.format(run=run, level=LEVEL))

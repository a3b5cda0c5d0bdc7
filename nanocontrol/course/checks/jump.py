"""Check of exercise 10: the jump."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from nanocontrol.course.exercise import Seeds, compare, compare_choice, refuse, sentences
from nanocontrol.course.own_runs import RUNS, seed_of, settings_for
from nanocontrol.course.student import Student, Wrong
from nanocontrol.experiments.results import JUMPED, step_at
from nanocontrol.plumbing.errors import InputError
from nanocontrol.training.run import read_run

SAY = sentences("jump")
WANTED = tuple(f"runs/{run}/{file}" for run in RUNS for file in ("settings.json", "log.jsonl"))

# Steps of the jump in stored runs, and where they come from.
STORED = json.loads(Path(__file__).with_name("jumps.json").read_text(encoding="utf-8"))["jumps"]
# Other seeds, processors and evaluated scenes may change a jump by these factors. One seed jumped
# at step 111 and at 156 in two runs.
SOONER, LATER = 0.5, 1.7


def check(student: Student, draws: Seeds) -> str:
    """Judge every part that is there. The sentence says what is right, what is wrong first, and
    which commands are still to be run."""
    trained = [run for run in RUNS if (student.folder / "runs" / run).exists()]
    parts: dict[str, Callable] = {
        "PREDICTED": check_prediction,
        "BROKEN_AFTER_300": check_question,
        "first_step_at": check_crossing,
        **{f"runs/{run}": partial(check_run, run) for run in trained},
    }
    right: list[str] = []
    said: list[str] = []
    for name, judge in parts.items():
        try:
            judge(student, draws)
            right.append(name)
        except (Wrong, InputError) as error:
            if student.process is None:  # it was stopped, and no other part can be judged
                raise
            said = said or [f"{str(error).rstrip('.')}."]
    if missing := [f"`python -m nanocontrol.course train {x}`" for x in RUNS if x not in trained]:
        said.append(SAY.TO_RUN.format(commands=" and ".join(missing)))
    if said:
        so_far = [SAY.SO_FAR.format(parts=", ".join(right))] if right else []
        raise Wrong(" ".join(so_far + said))
    predicted, found = student.value("PREDICTED"), student.value("FOUND")
    compared = [SAY.COMPARED.format(run=x, found=found[x], predicted=predicted[x]) for x in RUNS]
    return SAY.RIGHT.format(compared=", ".join(compared))


def number_of(student: Student, name: str, run: str) -> float:
    """The number of steps for a run in PREDICTED or FOUND."""
    given = student.value(name)
    value: Any = given.get(run) if isinstance(given, dict) else None
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    no_steps = not is_number or not 0 < value < 1e5
    refuse({SAY.NO_NUMBER: value is None, SAY.NO_STEPS: no_steps}, name=name, run=run)
    return value


def check_prediction(student: Student, draws: Seeds) -> None:
    latest = max(number_of(student, "PREDICTED", run) for run in RUNS)
    refuse({SAY.BOTH_HELP: latest >= min(STORED["released"])})


def check_question(student: Student, draws: Seeds) -> None:
    name = "BROKEN_AFTER_300"
    compare_choice(name, student.value(name), False, {True: SAY.NOT_BROKEN}, SAY.TRUE_OR_FALSE)


def check_crossing(student: Student, draws: Seeds) -> None:
    number = draws.numbers("curve")
    steps = [20 * i for i in range(9)]
    # It reaches the level, falls below it at the fifth point, and rises more steeply later.
    low = [number.uniform(0.2, 0.3) for _ in range(3)]
    scores = [*low, number.uniform(0.42, 0.46), 0.38, 0.39, number.uniform(0.6, 0.7), 0.72, 0.71]
    curve = [*zip(steps, scores)]
    first, last = step_at(curve, JUMPED), step_at(curve[4:], JUMPED)
    steepest = steps[int(torch.tensor(scores).diff().argmax())]
    known = {
        SAY.LOOKED_AT: [60, 40],
        SAY.STEEPEST: [steepest, steepest + 10, steepest + 20],
        SAY.LAST_TIME: [last, 100, 120],
    }
    found = student.call("first_step_at", steps, scores, JUMPED)
    compare("first_step_at", found, first, known, SAY.ADVICE)
    refuse({SAY.NEVER: student.call("first_step_at", steps, scores, 0.9) is not None})


def check_run(run: str, student: Student, draws: Seeds) -> None:
    """Compare a run's folder with the student's settings, with stored runs and with FOUND."""
    past = read_run(student.folder / "runs" / run)
    for name, value in settings_for(run, seed_of(draws.student)).items():
        found: Any = past.settings.get(name)
        refuse({SAY.SETTING: found != value}, run=run, name=name, found=found, value=value)
    curve = past.measured("score")
    step = step_at(curve, JUMPED) if curve else None
    if step is None:
        raise Wrong(SAY.NO_JUMP.format(run=run, level=JUMPED))
    low, high = min(STORED[run]), max(STORED[run])
    elsewhere = not SOONER * low <= step <= LATER * high
    refuse({SAY.ELSEWHERE: elsewhere}, run=run, step=step, low=low, high=high)
    unlike = abs(number_of(student, "FOUND", run) - step) > 1
    refuse({SAY.NOT_FOUND: unlike}, run=run, level=JUMPED)

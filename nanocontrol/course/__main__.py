"""A course of twelve exercises about ControlNet, and a bonus. All of it runs on a laptop.

    python -m nanocontrol.course start DIR    make a folder with all exercises, for one student
    python -m nanocontrol.course next         the next exercise: its file and its idea
    python -m nanocontrol.course check N      check exercise N
    python -m nanocontrol.course hint N       a hint for exercise N; call it again for the next one
    python -m nanocontrol.course train WHAT   a training for exercise 10 or the bonus: minutes
    python -m nanocontrol.course status       what is done
    python -m nanocontrol.course grade FOLDER grade the submissions in a folder

`next`, `check`, `hint`, `train` and `status` work in the student's folder. README.md next to this
file is for teachers.
"""

import argparse
import sys
from pathlib import Path

from nanocontrol.course import ROOT
from nanocontrol.course import folder as progress
from nanocontrol.course.exercise import Exercise, Seeds, exercises
from nanocontrol.course.grade import BONUS, grade_folder, judge_exercise
from nanocontrol.course.own_runs import RUNS, train_own_condition, train_own_run
from nanocontrol.course.student import Student
from nanocontrol.plumbing.errors import InputError, one_line, one_sentence, say
from nanocontrol.plumbing.flags import Parser


def start(folder: Path, name: str | None) -> None:
    name = name or folder.resolve().name
    progress.start_course(folder, name)
    say(f"{folder} holds {len(exercises())} exercises for {name}.")
    say(f"cd {folder}, then: python -m nanocontrol.course next")


def say_next(folder: Path) -> None:
    if left := progress.open_exercises(folder):
        print(f"{progress.idea_of(left[0])}\n\nYour file: {folder / left[0].file}")
    else:
        say("All exercises are passed.")


def status(folder: Path) -> None:
    for exercise in exercises().values():
        state = progress.progress_of(folder, exercise)
        say(f"{exercise.number:3}  {state:24} {exercise.said.title}")
    done = len(exercises()) - len(progress.open_exercises(folder))
    say(f"{done} of {len(exercises())} passed")


def check(folder: Path, exercise: Exercise) -> None:
    """Check one exercise. The exit status is 1 if it is not right yet."""
    draws = Seeds(progress.remembered(folder)["name"], "check")
    if not (folder / exercise.file).exists():
        raise InputError(f"check {exercise.number}: {exercise.file} is missing in {folder}")
    picture = None
    with Student() as student:
        grade = judge_exercise(exercise, folder / exercise.file, student, draws)
        if grade.points and exercise.show:
            picture = exercise.show(student, draws, folder)
    for line in student.printed.decode(errors="replace").splitlines()[:20]:
        say(f"  your file printed: {line}")
    if not grade.points:
        sys.exit(one_line(f"exercise {exercise.number}, not yet: {grade.sentence}", 500))
    say(f"Exercise {exercise.number} is right. {grade.sentence}")
    progress.mark_passed(folder, exercise)
    if picture:
        say(f"Look at {picture}")
    if left := progress.open_exercises(folder):
        say(f"Next: exercise {left[0].number}, {left[0].said.title} ({left[0].file})")


def train(folder: Path, run: str) -> None:
    name = progress.remembered(folder)["name"]
    if run == "own":
        train_own_condition(folder / exercises()[BONUS].file, name, folder)
    else:
        train_own_run(run, name, folder)


def parsed_command(argv: list[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("course", description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    starting = commands.add_parser("start", help="make a folder with all exercises")
    starting.add_argument("folder", type=Path, metavar="DIR")
    name = "the student's name, which decides all values (default: the folder's name)"
    starting.add_argument("--name", help=name)
    commands.add_parser("next", help="the next exercise")
    for command, what in (("check", "check an exercise"), ("hint", "a hint for an exercise")):
        asking = commands.add_parser(command, help=what)
        asking.add_argument("number", type=int, choices=[*exercises()], metavar="N")
    training = commands.add_parser("train", help="a training for exercise 10 or the bonus")
    training.add_argument("run", choices=[*RUNS, "own"], metavar="WHAT", help="scaled, half or own")
    commands.add_parser("status", help="what is done")
    grading = commands.add_parser("grade", help="grade all submissions in a folder")
    grading.add_argument("folder", type=Path, metavar="FOLDER")
    form = grading.add_mutually_exclusive_group()
    form.add_argument("--json", dest="form", action="store_const", const="json", help="all grades")
    form.add_argument("--csv", dest="form", action="store_const", const="csv", help="a gradebook")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    with one_sentence("course"):
        args, here = parsed_command(argv), Path.cwd()
        if not (ROOT / "train.py").exists():
            raise InputError(f"{ROOT} has no train.py: install with `pip install -e .` in a clone")
        if args.command == "start":
            start(args.folder, args.name)
        elif args.command == "grade":
            print(grade_folder(args.folder, args.form).rstrip("\n"))
        elif args.command == "check":
            check(here, exercises()[args.number])
        elif args.command == "hint":
            say(progress.next_hint(here, exercises()[args.number]))
        elif args.command == "train":
            train(here, args.run)
        else:
            (status if args.command == "status" else say_next)(here)


if __name__ == "__main__":
    main()

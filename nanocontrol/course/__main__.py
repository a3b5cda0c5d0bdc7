"""A course of twelve exercises about ControlNet, and a bonus. All of it runs on a laptop.

    python -m nanocontrol.course start DIR    make a folder with all exercises, for one student
    python -m nanocontrol.course next         the next exercise: its file and its idea
    python -m nanocontrol.course check N      check exercise N
    python -m nanocontrol.course hint N       a hint for exercise N; call it again for the next one
    python -m nanocontrol.course train WHAT   a training for exercise 10 or the bonus: minutes
    python -m nanocontrol.course status       what is done
    python -m nanocontrol.course grade FOLDER grade the submissions in a folder; --csv: as a
                                              gradebook, --json: with all sentences

`next`, `check`, `hint`, `train` and `status` work in the student's folder. README.md next to this
file is for teachers.
"""

import sys
from argparse import Namespace, RawDescriptionHelpFormatter
from pathlib import Path

from nanocontrol.commands.clone import ROOT
from nanocontrol.course import folder as progress
from nanocontrol.course.exercise import Seeds, Student, exercises
from nanocontrol.course.grade import BONUS, grade_folder, judge_exercise
from nanocontrol.course.own_runs import RUNS, train_own_condition, train_own_run
from nanocontrol.plumbing.errors import InputError, one_line, one_sentence, say
from nanocontrol.plumbing.flags import Parser
from nanocontrol.plumbing.pictures import grid, save_picture, with_caption

# Each of these functions is a command. args.here is the student's folder.


def start(args: Namespace) -> None:
    name = args.name or args.folder.resolve().name
    progress.start_course(args.folder, name)
    say(f"{args.folder} holds {len(exercises())} exercises for {name}.")
    say(f"cd {args.folder}, then: python -m nanocontrol.course next")


def say_next(args: Namespace) -> None:
    if left := progress.open_exercises(args.here):
        print(f"{progress.idea_of(left[0])}\n\nYour file: {args.here / left[0].file}")
    else:
        say("All exercises are passed.")


def check(args: Namespace) -> None:
    """Check one exercise. The exit status is 1 if it is not right yet."""
    exercise, here = exercises()[args.number], args.here
    draws = Seeds(progress.remembered(here)["name"], "check")
    if not (here / exercise.file).exists():
        raise InputError(f"check {exercise.number}: {exercise.file} is missing in {here}")
    picture = here / f"{exercise.file[:4]}.png"
    with Student() as student:
        grade = judge_exercise(exercise, here / exercise.file, student, draws)
        if grade.points and exercise.show:
            rows, caption = exercise.show(student, draws)
            save_picture(with_caption(grid(rows), caption), picture)
    for line in student.printed.decode(errors="replace").splitlines()[:20]:
        say(f"  your file printed: {line}")
    if not grade.points:
        sys.exit(one_line(f"exercise {exercise.number}, not yet: {grade.sentence}", 500))
    say(f"Exercise {exercise.number} is right. {grade.sentence}")
    progress.mark_passed(here, exercise)
    if exercise.show:
        say(f"Look at {picture}")
    if left := progress.open_exercises(here):
        say(f"Next: exercise {left[0].number}, {left[0].said.title} ({left[0].file})")


def say_hint(args: Namespace) -> None:
    say(progress.next_hint(args.here, exercises()[args.number]))


def train(args: Namespace) -> None:
    name = progress.remembered(args.here)["name"]
    if args.run == "own":
        train_own_condition(args.here / exercises()[BONUS].file, name, args.here)
    else:
        train_own_run(args.run, name, args.here)


def status(args: Namespace) -> None:
    for exercise in exercises().values():
        state = progress.progress_of(args.here, exercise)
        say(f"{exercise.number:3}  {state:24} {exercise.said.title}")
    done = len(exercises()) - len(progress.open_exercises(args.here))
    say(f"{done} of {len(exercises())} passed")


def grade(args: Namespace) -> None:
    print(grade_folder(args.folder, args.form).rstrip("\n"))


COMMANDS = {"start": start, "next": say_next, "check": check, "hint": say_hint}
COMMANDS |= {"train": train, "status": status, "grade": grade}


def parsed_command(argv: list[str] | None) -> Namespace:
    parser = Parser("course", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.set_defaults(here=Path.cwd())
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    of = {name: commands.add_parser(name) for name in COMMANDS}  # the description explains them
    of["start"].add_argument("folder", type=Path, metavar="DIR")
    of["start"].add_argument("--name", help="decides all values (default: the folder's name)")
    for command in ("check", "hint"):
        of[command].add_argument("number", type=int, choices=[*exercises()], metavar="N")
    of["train"].add_argument("run", choices=[*RUNS, "own"], help="which training")
    of["grade"].add_argument("folder", type=Path, metavar="FOLDER")
    for form in ("json", "csv"):
        of["grade"].add_argument(f"--{form}", dest="form", action="store_const", const=form)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    with one_sentence("course"):
        if not (ROOT / "train.py").exists():
            raise InputError(f"{ROOT} has no train.py: install with `pip install -e .` in a clone")
        args = parsed_command(argv)
        COMMANDS[args.command](args)


if __name__ == "__main__":
    main()

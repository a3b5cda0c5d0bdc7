"""Grading: a student's own file, and folders of submissions by strangers."""

import csv
import io
import json
import os
import sys
import tempfile
from collections import Counter
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from nanocontrol.course.exercise import Exercise, Seeds, Student, Wrong, exercises
from nanocontrol.course.folder import remembered
from nanocontrol.course.student import SECONDS, copy_file
from nanocontrol.plumbing.errors import InputError, one_line, say

BONUS = 13
SAID = 400  # characters of a sentence
NO_LIMITS = "course: this system limits a submission's time and output, not its memory and files"
NO_NAME = "student.json is missing or damaged: the folder's name is used"
TWICE = "another submission has the same name, and so the same seed"


@dataclass
class Grade:
    """The points of one exercise, and the sentence that goes with them."""

    exercise: int
    points: int
    sentence: str


@dataclass
class Graded:
    """A submission: its folder's name, the student's name, and its grades."""

    folder: str
    name: str
    points: int = 0
    note: str = ""
    exercises: list[Grade] = field(default_factory=list)


def judge_exercise(exercise: Exercise, file: Path, student: Student, draws: Seeds) -> Grade:
    """Run a file in the student's process, and judge what it computes. Every outcome is a
    sentence: the answers may be of any form."""
    points = 0
    try:
        student.load(file, exercise.said.closed)
        sentence, points = exercise.check(student, draws), 1
    except (Wrong, InputError) as error:
        sentence = str(error)
    except Exception as error:  # an answer of a form that the check does not expect
        sentence = f"the answer has a form that the check cannot use ({type(error).__name__})"
    return Grade(exercise.number, points, one_line(sentence, SAID))


def grade_submission(folder: Path, others: Path, seconds: float = SECONDS) -> Graded:
    """Grade one submission. Its files are copied; it may not open `others`, which holds all."""
    name, note = folder.name, NO_NAME
    with suppress(InputError):
        name, note = remembered(folder)["name"], ""
    graded = Graded(one_line(folder.name, 80), one_line(name, 80), note=note)
    draws = Seeds(name, "grade")
    # A submission may leave files that cannot be deleted.
    own_folder = tempfile.TemporaryDirectory(prefix="course-", ignore_cleanup_errors=True)
    with own_folder as own, Student((others,), seconds) as student:
        for exercise in exercises().values():
            if exercise.give:  # the same data again: a file may read it
                exercise.give(draws.given(), Path(own))
            try:
                for wanted in exercise.wanted:
                    if os.path.lexists(folder / wanted):  # the check knows what to say without it
                        copy_file(wanted, folder, Path(own))
                file = copy_file(exercise.file, folder, Path(own))
                grade = judge_exercise(exercise, file, student, draws)
            except Wrong as error:
                grade = Grade(exercise.number, 0, one_line(str(error), SAID))
            graded.exercises.append(grade)
    graded.points = sum(grade.points for grade in graded.exercises)
    return graded


def submissions_in(folder: Path) -> list[Path]:
    """The submissions in a folder: its folders, or itself if it holds exercises."""
    if not folder.is_dir():
        raise InputError(f"grade: {folder} is not a folder; expected one with submissions")
    if any(folder.glob("ex*_*.py")):
        return [folder]
    found = sorted(path for path in folder.iterdir() if path.is_dir() and not path.is_symlink())
    if not found:
        raise InputError(f"grade: {folder} is empty; expected a folder for each submission")
    return found


def grade_folder(folder: Path, form: str | None) -> str:
    """Grade all submissions in a folder. form: "json", "csv", or None for lines of text."""
    if sys.platform != "linux":
        say(NO_LIMITS, sys.stderr)
    graded = []
    for path in submissions_in(folder):
        say(f"grading {path.name}", sys.stderr)
        graded.append(grade_submission(path.resolve(), folder.resolve()))
    names = Counter(one.name for one in graded)
    for one in graded:
        if names[one.name] > 1:
            one.note = "; ".join(filter(None, (one.note, TWICE)))
    if form == "json":
        return json.dumps([asdict(one) for one in graded], indent=1)
    return grades_as_csv(graded) if form == "csv" else grades_as_text(graded)


def grades_as_csv(graded: list[Graded]) -> str:
    """A line for each submission, as gradebooks read it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    titles = ["bonus" if number == BONUS else f"exercise {number}" for number in exercises()]
    writer.writerow(["folder", "name", *titles, "points", "note"])
    for one in graded:
        points = [grade.points for grade in one.exercises]
        writer.writerow([cell(one.folder), cell(one.name), *points, one.points, one.note])
    return out.getvalue()


def cell(text: str) -> str:
    """A text from a stranger, which a spreadsheet must not take for a formula."""
    return f"'{text}" if text[:1] in "=+-@" else text


def grades_as_text(graded: list[Graded]) -> str:
    lines = []
    for one in graded:
        note = f" ({one.note})" if one.note else ""
        lines.append(f"{one.folder}: {one.name}, {one.points} points{note}")
        lines += [f"  {x.exercise:2} {x.points} {x.sentence}" for x in one.exercises]
    return "\n".join(lines)

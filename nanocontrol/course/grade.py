"""Grading: a student's own file, and folders of submissions by strangers."""

import csv
import io
import json
import os
import sys
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from nanocontrol.course.exercise import Exercise, Seeds, Wrong, exercises
from nanocontrol.course.folder import remembered
from nanocontrol.course.student import SECONDS, Failed, Student, copy_file
from nanocontrol.plumbing.errors import InputError, one_line, say

BONUS = 13
SAID = 400  # characters of a sentence
NO_LIMITS = "course: this system limits a submission's time and output, not its memory and files"
NO_NAME = "student.json is missing or damaged: the folder's name is used"
TWICE = "another submission has the same name, and so the same seed"


class Grade(NamedTuple):
    """The points of one exercise, and the sentence that goes with them."""

    exercise: int
    points: int
    sentence: str


@dataclass
class Graded:
    """A submission: its folder's name, the student's name, and its grades."""

    folder: str
    name: str
    grades: list[Grade] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def points(self) -> int:
        return sum(grade.points for grade in self.grades)

    @property
    def note(self) -> str:
        return "; ".join(self.notes)


def judge_exercise(exercise: Exercise, file: Path, student: Student, draws: Seeds) -> Grade:
    """Run a file in the student's process, and judge what it computes. Every outcome is a
    sentence: the answers may be of any form."""
    points = 0
    try:
        student.load(file, exercise.said.closed)
        sentence, points = exercise.check(student, draws), 1
    except (Wrong, Failed, InputError) as error:
        sentence = str(error)
    except Exception as error:  # an answer of a form that the check does not expect
        sentence = f"the answer has a form that the check cannot use ({type(error).__name__})"
    return Grade(exercise.number, points, one_line(sentence, SAID))


def grade_submission(folder: Path, others: Path, seconds: float = SECONDS) -> Graded:
    """Grade one submission. Its files are copied; it may not open `others`, which holds all."""
    graded = Graded(one_line(folder.name, 80), folder.name)
    try:
        graded.name = remembered(folder)["name"]
    except InputError:
        graded.notes.append(NO_NAME)
    draws = Seeds(graded.name, "grade")
    graded.name = one_line(graded.name, 80)
    # A submission may leave files that cannot be deleted.
    own_folder = tempfile.TemporaryDirectory(prefix="course-", ignore_cleanup_errors=True)
    with own_folder as own, Student((others,), seconds) as student:
        for exercise in exercises().values():
            if exercise.give:  # the same data again: a file may read it
                exercise.give(draws.given(), Path(own))
            try:
                for name in exercise.wanted:
                    if os.path.lexists(folder / name):  # the check knows what to say without it
                        copy_file(name, folder, Path(own))
                file = copy_file(exercise.file, folder, Path(own))
            except Failed as error:
                graded.grades.append(Grade(exercise.number, 0, one_line(str(error), SAID)))
                continue
            graded.grades.append(judge_exercise(exercise, file, student, draws))
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
        one.notes += [TWICE] if names[one.name] > 1 else []
    return {"json": grades_as_json, "csv": grades_as_csv, None: grades_as_text}[form](graded)


def grades_as_json(graded: list[Graded]) -> str:
    def plain(one: Graded) -> dict[str, Any]:
        found = {name: getattr(one, name) for name in ("folder", "name", "points", "note")}
        return found | {"exercises": [grade._asdict() for grade in one.grades]}

    return json.dumps([plain(one) for one in graded], indent=1)


def grades_as_csv(graded: list[Graded]) -> str:
    """A line for each submission, as gradebooks read it."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    titles = ["bonus" if number == BONUS else f"exercise {number}" for number in exercises()]
    writer.writerow(["folder", "name", *titles, "points", "note"])
    for one in graded:
        points = [grade.points for grade in one.grades]
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
        lines += [f"  {grade.exercise:2} {grade.points} {grade.sentence}" for grade in one.grades]
    return "\n".join(lines)

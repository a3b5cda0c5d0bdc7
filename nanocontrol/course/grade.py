"""Grading: a student's own file, and folders of submissions by strangers."""

import csv
import io
import json
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from nanocontrol.course.exercise import Exercise, Seeds, Wrong, exercises
from nanocontrol.course.folder import remembered
from nanocontrol.course.student import SECONDS, Failed, Student, copy_file, own_folder
from nanocontrol.plumbing.errors import InputError, one_line

BONUS = 13
SAID = 400  # characters of a sentence


class Grade(NamedTuple):
    """The points of one exercise, and the sentence that goes with them."""

    exercise: int
    points: int
    sentence: str


class Graded(NamedTuple):
    """A submission: its folder's name, the student's name, its grades, and a note."""

    folder: str
    name: str
    grades: list[Grade]
    note: str = ""

    @property
    def points(self) -> int:
        return sum(grade.points for grade in self.grades)


def judge_exercise(exercise: Exercise, file: Path, student: Student, draws: Seeds) -> Grade:
    """Run a file in the student's process, and judge what it computes. Every outcome is a
    sentence: the answers may be of any form."""
    points = 0
    try:
        student.load(file, exercise.said.closed)
        sentence, points = exercise.check(student, draws), 1
    except (Wrong, Failed) as error:
        sentence = str(error)
    except InputError as error:
        sentence = f"{error}"
    except Exception as error:  # an answer of a form that the check does not expect
        sentence = f"the answer has a form that the check cannot use ({type(error).__name__})"
    return Grade(exercise.number, points, one_line(sentence, SAID))


def grade_submission(folder: Path, others: Path, seconds: float = SECONDS) -> Graded:
    """Grade one submission. Its files are copied; it may not open `others`, which holds all."""
    grades, note = [], ""
    try:
        name = remembered(folder)["name"]
    except InputError:
        name, note = folder.name, "student.json is missing or damaged: the folder's name is used"
    draws = Seeds(name, "grade")
    with own_folder() as own, Student((others,), seconds) as student:
        for exercise in exercises().values():
            if exercise.give:  # the same data again: a file may read it
                exercise.give(draws.given(), Path(own))
            try:
                for wanted in exercise.wanted:
                    copy_file(wanted, folder, Path(own))
                file = copy_file(exercise.file, folder, Path(own))
            except Failed as error:
                grades.append(Grade(exercise.number, 0, one_line(str(error), SAID)))
                continue
            grades.append(judge_exercise(exercise, file, student, draws))
    return Graded(one_line(folder.name, 80), one_line(name, 80), grades, note)


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


def with_notes(graded: list[Graded]) -> list[Graded]:
    """Note submissions that share a name: their given data and inputs are the same."""
    names = Counter(one.name for one in graded)
    twice = "another submission has the same name, and so the same seed"
    return [
        one._replace(note="; ".join(filter(None, [one.note, twice * (names[one.name] > 1)])))
        for one in graded
    ]


def grades_as_json(graded: list[Graded]) -> str:
    content = [
        {
            "folder": one.folder,
            "name": one.name,
            "points": one.points,
            "note": one.note,
            "exercises": [grade._asdict() for grade in one.grades],
        }
        for one in graded
    ]
    return json.dumps(content, indent=1)


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


def limits_here() -> str | None:
    """A sentence about limits that this system does not have."""
    if sys.platform == "linux":
        return None
    return "this system limits a submission's time and output, but not its memory and files"

"""A student's folder: its files, and what is remembered about them in student.json."""

import ast
import json
from pathlib import Path
from typing import Any

from nanocontrol.course.exercise import EXERCISES, Exercise, Seeds, exercises
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import hash_of, make_folder, read_text, write_atomically

STUDENT = "student.json"
LONGEST_NAME = 80  # characters
LARGEST = 2**16  # bytes of student.json
NO_COURSE = "expected a folder made by `python -m nanocontrol.course start DIR`; cd there first"


def start_course(folder: Path, name: str) -> None:
    """Write all exercises and their data into a new folder. Raises InputError if it has files, or
    for a name that is too long."""
    if not 0 < len(name) <= LONGEST_NAME:
        raise InputError(f"--name: expected 1 to {LONGEST_NAME} characters")
    make_folder("start", folder)
    if any(folder.iterdir()):
        raise InputError(f"start: {folder} is not empty; expected a new folder")
    for exercise in exercises().values():
        (folder / exercise.file).write_bytes((EXERCISES / exercise.file).read_bytes())
        if exercise.give:
            exercise.give(Seeds(name, "start"), folder)
    remember(folder, {"name": name, "passed": {}, "hints": {}})


def remember(folder: Path, content: dict[str, Any]) -> None:
    text = json.dumps(content, indent=1)
    write_atomically(folder / STUDENT, lambda file: file.write_text(text, encoding="utf-8"))


def remembered(folder: Path) -> dict[str, Any]:
    """The content of student.json, which may come from a stranger. Raises InputError if it is
    missing or damaged."""
    file = folder / STUDENT
    if not file.is_file() or file.is_symlink():
        raise InputError(f"{file} is missing; {NO_COURSE}")
    try:
        content = json.loads(read_text(file)) if file.stat().st_size <= LARGEST else {}
        kinds = [type(content[key]) for key in ("name", "passed", "hints")]
        if kinds != [str, dict, dict] or not 0 < len(content["name"]) <= LONGEST_NAME:
            raise ValueError
        content["name"].encode()
    except (ValueError, KeyError, TypeError, RecursionError):
        raise InputError(f"{file} is damaged; {NO_COURSE}") from None
    return content


def mark_passed(folder: Path, exercise: Exercise) -> None:
    content = remembered(folder)
    content["passed"][str(exercise.number)] = hash_of(folder / exercise.file)
    remember(folder, content)


def progress_of(folder: Path, exercise: Exercise) -> str:
    """ "passed", "changed since it passed", "missing" or "open"."""
    file = folder / exercise.file
    passed = remembered(folder)["passed"].get(str(exercise.number), "")
    if not file.exists():
        return "missing"
    state = "passed" if passed == hash_of(file) else "changed since it passed"
    return state if passed else "open"


def open_exercises(folder: Path) -> list[Exercise]:
    return [one for one in exercises().values() if progress_of(folder, one) != "passed"]


def next_hint(folder: Path, exercise: Exercise) -> str:
    """The next hint. After the last one, the first comes again."""
    content, number = remembered(folder), str(exercise.number)
    hints = exercise.said.hints
    given = content["hints"].get(number, 0) % len(hints)
    content["hints"][number] = given + 1
    remember(folder, content)
    return f"hint {given + 1} of {len(hints)}: {hints[given]}"


def idea_of(exercise: Exercise) -> str:
    """The text at the top of the exercise's file."""
    source = (EXERCISES / exercise.file).read_text(encoding="utf-8")
    return ast.get_docstring(ast.parse(source)) or ""

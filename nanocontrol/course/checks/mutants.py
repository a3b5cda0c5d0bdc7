"""Check of exercise 12: thirteen broken ControlNets, the mutants of the conformance suite."""

import ast
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from nanocontrol.conformance import check_controlnet, mutants
from nanocontrol.conformance.adapter import Adapter
from nanocontrol.conformance.mutants import MUTANTS
from nanocontrol.course.exercise import EXERCISES, Exercise, Seeds, Wrong, sentences
from nanocontrol.course.inside import as_numpy
from nanocontrol.course.student import Student

SAY = sentences("mutants")
SHOWS = SAY.SHOWS  # what one would see if a ControlNet had this error


def order_of(draws: Seeds) -> dict[str, str]:
    """This student's classes, and the error of each."""
    names = draws.given().numbers("mutants").sample([*MUTANTS], len(MUTANTS))
    return {f"Broken{k}": name for k, name in enumerate(names, 1)}


def give(draws: Seeds, folder: Path) -> None:
    """Write the exercise's file with the mutants' code, in this student's order and without their
    names."""
    tree = ast.parse(Path(mutants.__file__).read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    code = {n.name: n for n in tree.body if isinstance(n, ast.ClassDef | ast.FunctionDef)}
    old = [MUTANTS[name].adapter.__name__ for name in order_of(draws).values()]
    for name in old:
        code[name].decorator_list = []  # they name the error
    used = {part.id for name in old for part in ast.walk(code[name]) if isinstance(part, ast.Name)}
    parts = [name for name in code if name in used]
    renamed = {name: f"part_{k}" for k, name in enumerate(parts, 1)}
    renamed |= dict(zip(old, order_of(draws)))
    texts = [anonymous(code[name], renamed) for name in [*parts, *old]]
    frame = (EXERCISES / EXERCISE.file).read_text(encoding="utf-8").rstrip()
    idea, lists = frame.split("\n\nERRORS", maxsplit=1)
    head = "\n".join([f"{idea}\n", *map(ast.unparse, imports), "", f"ERRORS{lists}"])
    text = "\n\n\n".join([head, *texts]) + "\n"
    (folder / EXERCISE.file).write_text(text, encoding="utf-8")


def anonymous(node: ast.ClassDef | ast.FunctionDef, renamed: dict[str, str]) -> str:
    """The source of a class or function without docstrings, with these names replaced."""
    for part in ast.walk(node):
        if isinstance(part, ast.ClassDef | ast.FunctionDef):
            if ast.get_docstring(part) is not None:
                part.body = part.body[1:] or [ast.Pass()]
            part.name = renamed.get(part.name, part.name)
        if isinstance(part, ast.Name):
            part.id = renamed.get(part.id, part.id)
    return ast.unparse(node)


class FromChild:
    """The adapter of a student's class: each call goes to the student's process."""

    def __init__(self, student: Student, name: str):
        self.student, self.name = student, name

    def __getattr__(self, method: str) -> Callable:
        if not callable(getattr(Adapter, method, None)):
            raise AttributeError(method)
        return partial(self.ask, method)

    def ask(self, method: str, *given: Any, **options: Any) -> Any:
        args = [{type(x).__name__: vars(x)} if is_dataclass(x) else x for x in given]
        if method == "load":  # in the networks' precision: a message has a limit
            args = [{name: np.asarray(x, np.float32) for name, x in args[0].items()}]
        args += options.values()
        return as_numpy(self.student.call(self.name, method, args, through="of_adapter"))


def check(student: Student, draws: Seeds) -> str:
    said = student.value("NAMES")
    if not isinstance(said, dict):
        raise Wrong("NAMES is a dictionary from Broken1 to Broken13")
    for broken, name in order_of(draws).items():
        check_name(broken, said.get(broken), name)
    for broken, name in order_of(draws).items():
        (result,) = check_controlnet(FromChild(student, broken), only=[MUTANTS[name].check])
        if not result.passed:
            raise Wrong(f"{broken} has the right name and is not mended: {result.message}")
    seen = sorted({mutant.seen for mutant in MUTANTS.values() if "#" in mutant.seen})
    return SAY.RIGHT.format(seen=" and ".join(seen[:2]))


def check_name(broken: str, said: Any, name: str) -> None:
    if not said:
        raise Wrong(SAY.UNNAMED.format(broken=broken))
    if not isinstance(said, str) or said not in SHOWS:
        raise Wrong(SAY.UNKNOWN.format(broken=broken, said=str(said)[:40]))
    if said != name:
        raise Wrong(f"{broken} is something else than {said}: then {SHOWS[said]}.")


EXERCISE = Exercise("mutants", check, give=give)

"""Check of exercise 12: thirteen broken ControlNets, the mutants of the conformance suite."""

import ast
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from inspect import getsource
from pathlib import Path
from textwrap import dedent
from typing import Any

import numpy as np

from nanocontrol.conformance import check_controlnet, mutants, ours
from nanocontrol.conformance.adapter import Adapter
from nanocontrol.conformance.mutants import MUTANTS
from nanocontrol.course.exercise import EXERCISES, Seeds, Wrong, sentences
from nanocontrol.course.student import Failed, Student

SAY = sentences("mutants")
SHOWS = SAY.SHOWS  # what one would see if a ControlNet had this error
FILE = "ex12_mutants.py"
# Besides the check that finds its error, a class has to pass that of what it has code for: that it
# learns and its base does not, or that its outputs are the original's.
SOUND = {
    "make": "locked_keeps_its_bits",
    "losses": "locked_keeps_its_bits",
    "residuals": "stored_residuals",
    "run_control": "stored_residuals",
    "predict": "stored_controlled",
    "scheduler.step": "ddim",
}


def order_of(draws: Seeds) -> dict[str, str]:
    """This student's classes, and the error of each."""
    names = draws.given().numbers("mutants").sample([*MUTANTS], len(MUTANTS))
    return {f"Broken{k}": name for k, name in enumerate(names, 1)}


# --------------------------------------------------------------------------- the student's file


def give(draws: Seeds, folder: Path) -> None:
    """Write the exercise's file with the mutants' code, in this student's order and without their
    names. Each class has the whole code of the functions in which its error is."""
    trees = [ast.parse(getsource(module)) for module in (mutants, ours)]
    classes = {node.name: node for node in trees[0].body if isinstance(node, ast.ClassDef)}
    renamed = {MUTANTS[name].adapter.__name__: broken for broken, name in order_of(draws).items()}
    used = {x.id for old in renamed for x in ast.walk(classes[old]) if isinstance(x, ast.Name)}
    parts = {old: f"part_{k}" for k, old in enumerate(sorted(used & classes.keys()), 1)}
    renamed = parts | renamed
    code = "\n\n\n".join(anonymous(classes[old], renamed) for old in renamed)
    imports = [x for tree in trees for x in tree.body if isinstance(x, ast.Import | ast.ImportFrom)]
    words = {*re.findall(r"\w+", code)}
    for node in imports:
        node.names = [alias for alias in node.names if (alias.asname or alias.name) in words]
    needed = dict.fromkeys(ast.unparse(node) for node in imports if node.names)
    idea, errors = (EXERCISES / FILE).read_text(encoding="utf-8").split("\n\nERRORS")
    names = "\n".join(f'    "{broken}": "",' for broken in order_of(draws))
    head = "\n".join([idea, "", *needed, "", f"ERRORS{errors}", f"NAMES = {{\n{names}\n}}"])
    (folder / FILE).write_text(f"{head}\n\n\n{code}\n", encoding="utf-8")


def anonymous(node: ast.ClassDef, renamed: dict[str, str]) -> str:
    """The source of a class without docstrings and decorators, with these names replaced and with
    the code of its base where it calls that."""
    base = getattr(mutants, node.name).__base__
    node.decorator_list = []  # they name the error
    for part in ast.walk(node):
        if isinstance(part, ast.FunctionDef):
            write_out(part, base)
        if isinstance(part, ast.ClassDef | ast.FunctionDef):
            if ast.get_docstring(part) is not None:
                part.body = part.body[1:]
            part.name = renamed.get(part.name, part.name)
        if isinstance(part, ast.Name):
            part.id = renamed.get(part.id, part.id)
    return ast.unparse(node)


def write_out(method: ast.FunctionDef, base: type) -> None:
    """Replace `super().NAME(...)` in a method by the base's code of that name."""
    for i, statement in enumerate(method.body):
        calls = [x for x in ast.walk(statement) if isinstance(x, ast.Call)]
        for call in [x for x in calls if ast.unparse(x.func).startswith("super().")]:
            (code,) = ast.parse(dedent(getsource(getattr(base, method.name)))).body
            assert isinstance(code, ast.FunctionDef)
            text = called_with(code, [ast.unparse(x) for x in call.args])
            before, returns, result = text.rpartition("return ")
            if returns:
                text = before + ast.unparse(statement).replace(ast.unparse(call), result)
            method.body[i : i + 1] = ast.parse(text).body
            method.decorator_list = code.decorator_list
            return


def called_with(code: ast.FunctionDef, args: list[str]) -> str:
    """A method's code without its docstring, with these arguments in the place of its names."""
    given = dict(zip([arg.arg for arg in code.args.args[1:]], args))
    text = "\n".join(map(ast.unparse, code.body[ast.get_docstring(code) is not None :]))
    return re.sub(r"\w+", lambda word: given.get(word[0], word[0]), text)


# ------------------------------------------------------------------------------------ the check


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
        found = self.student.call(self.name, method, args, through="of_adapter")
        if found is None and method in ("residuals", "predict", "sample", "loss"):
            raise Failed(f"{method} returns None")
        return found


def check(student: Student, draws: Seeds) -> str:
    said = student.value("NAMES")
    if not isinstance(said, dict):
        raise Wrong(SAY.DICTIONARY)
    for broken, name in order_of(draws).items():
        check_name(broken, said.get(broken), name)
    for broken, name in order_of(draws).items():
        check_mended(student, broken, name)
    seen = sorted({mutant.seen for mutant in MUTANTS.values() if "#" in mutant.seen})
    return SAY.RIGHT.format(seen=" and ".join(seen[:2]))


def check_name(broken: str, said: Any, name: str) -> None:
    if not said:
        raise Wrong(SAY.UNNAMED.format(broken=broken))
    if not isinstance(said, str) or said not in SHOWS:
        raise Wrong(SAY.UNKNOWN.format(broken=broken, said=str(said)[:40]))
    if said != name:
        raise Wrong(SAY.OTHER.format(broken=broken, said=said, shows=SHOWS[said]))


def check_mended(student: Student, broken: str, name: str) -> None:
    """Raise Wrong if the class lacks its own code, still has its error, or is no ControlNet any
    more."""
    mutant = MUTANTS[name]
    parts = written_parts(mutant.adapter)
    if lacking := student.call(broken, parts, through="parts_lacking"):
        raise Wrong(SAY.DELETED.format(broken=broken, part=lacking[0]))
    checks = [mutant.check, *(SOUND[part] for part in parts)]
    results = check_controlnet(FromChild(student, broken), only=checks)
    for result in sorted(results, key=lambda result: result.name != mutant.check):
        if not result.passed:
            sentence = SAY.NOT_MENDED if result.name == mutant.check else SAY.NOT_SOUND
            message = result.message.removeprefix("it raised Failed: ")
            raise Wrong(sentence.format(broken=broken, message=message))


def written_parts(made: type) -> list[str]:
    """The functions that a class defines, "scheduler.step" if they are a class's in the class."""
    parts = []
    for name, value in vars(made).items():
        if isinstance(value, type):
            parts += [f"{name}.{part}" for part in written_parts(value)]
        elif not name.startswith("__"):
            parts.append(name)
    return parts

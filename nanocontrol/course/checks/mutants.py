"""Check of exercise 12: thirteen broken ControlNets, the mutants of the conformance suite."""

import ast
import re
from collections.abc import Callable
from dataclasses import is_dataclass
from functools import partial
from inspect import getsource, signature
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import numpy as np

from nanocontrol.conformance import check_controlnet
from nanocontrol.conformance.adapter import Adapter
from nanocontrol.conformance.mutants import MUTANTS
from nanocontrol.course.exercise import EXERCISES, Seeds, compare_choice, refuse, sentences
from nanocontrol.course.student import Student, Wrong

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
    order = order_of(draws)
    names = "\n".join(f'    "{broken}": "",' for broken in order)
    classes = [code_of_class(MUTANTS[name].adapter, broken) for broken, name in order.items()]
    text = (EXERCISES / FILE).read_text(encoding="utf-8") + f"NAMES = {{\n{names}\n}}\n"
    (folder / FILE).write_text("\n\n".join([text, *classes]), encoding="utf-8")


def code_of_class(made: type, name: str) -> str:
    """The source of a class under another name, without docstrings."""
    base, code = made.__base__, ""
    for part, value in own_parts(made):
        is_class = isinstance(value, type)
        code += code_of_class(value, part) if is_class else written_out(value, base)
    return f"class {name}({base.__name__}):\n" + indent(code, "    ")


def own_parts(made: type) -> list[tuple[str, Any]]:
    return [part for part in vars(made).items() if not part[0].startswith("__")]


def source_of(function: Callable) -> str:
    """A function's source without docstring and comments."""
    code: Any = ast.parse(dedent(getsource(function))).body[0]
    del code.body[: ast.get_docstring(code) is not None]
    return ast.unparse(code)


def written_out(method: Callable, base: type | None) -> str:
    """A method's source, with the base's code in the place of `super().NAME(...)`."""
    source = source_of(method)
    if found := re.search(r"^ *(.*)super\(\)\.(\w+\(.*\))$", source, re.MULTILINE):
        call: Any = ast.parse(found[2], mode="eval").body
        of_base = getattr(base, call.func.id)
        given = dict(zip([*signature(of_base).parameters][1:], map(ast.unparse, call.args)))
        head, body = source_of(of_base).split(":\n", 1)
        body = re.sub(r"\w+", lambda word: given.get(word[0], word[0]), dedent(body))
        before, _, result = body.rpartition("return ")
        body = indent(before + found[1] + result, "    ")
        source = head.partition("def ")[0] + source.replace(found[0], body)
    return source + "\n\n"


# ------------------------------------------------------------------------------------ the check


class FromChild:
    """The adapter of a student's class: each call goes to the student's process."""

    def __init__(self, student: Student, name: str):
        self.student, self.name = student, name

    def __getattr__(self, method: str) -> Callable:
        if not callable(getattr(Adapter, method, None)):
            raise AttributeError(method)
        return partial(self.ask, method)

    def ask(self, method: str, *given: Any) -> Any:
        args = [{type(x).__name__: vars(x)} if is_dataclass(x) else x for x in given]
        if method == "load":  # in the networks' precision: a message has a limit
            args = [{name: np.asarray(x, np.float32) for name, x in args[0].items()}]
        found = self.student.call(self.name, method, args, through="of_adapter")
        if found is None and method in ("residuals", "predict", "sample", "loss"):
            raise Wrong(f"{method} returns None")
        return found


def check(student: Student, draws: Seeds) -> str:
    said, order = student.value("NAMES"), order_of(draws)
    refuse({SAY.DICTIONARY: not isinstance(said, dict)})
    for broken, name in order.items():
        known = {x: SAY.OTHER.format(broken=broken, said=x, shows=SHOWS[x]) for x in SHOWS}
        unknown = SAY.UNKNOWN.format(broken=broken, said=str(said.get(broken))[:40])
        compare_choice(f'NAMES["{broken}"]', said.get(broken), name, known, unknown)
    for broken, name in order.items():
        check_mended(student, broken, name)
    seen = sorted({mutant.seen for mutant in MUTANTS.values() if "#" in mutant.seen})
    return SAY.RIGHT.format(seen=" and ".join(seen[:2]))


def check_mended(student: Student, broken: str, name: str) -> None:
    """Raise Wrong if the class lacks its own code, still has its error, or is no ControlNet any
    more."""
    mutant = MUTANTS[name]
    parts = written_parts(mutant.adapter)
    lacking = student.call(broken, parts, through="parts_lacking")
    refuse({SAY.DELETED: lacking}, broken=broken, part="".join(lacking[:1]))
    checks = [mutant.check, *(SOUND[part] for part in parts)]
    results = check_controlnet(FromChild(student, broken), only=checks)
    for result in sorted(results, key=lambda result: result.name != mutant.check):
        sentence = SAY.NOT_MENDED if result.name == mutant.check else SAY.NOT_SOUND
        message = result.message.removeprefix("it raised Wrong: ")
        refuse({sentence: not result.passed}, broken=broken, message=message)


def written_parts(made: type) -> list[str]:
    """The functions that a class defines, "scheduler.step" if they are a class's in the class."""
    parts = []
    for name, value in own_parts(made):
        inner = written_parts(value) if isinstance(value, type) else []
        parts += [f"{name}.{part}" for part in inner] or [name]
    return parts

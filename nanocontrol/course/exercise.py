"""The frame of the exercises: what a file in checks/ has and uses, and how answers are compared."""

import hashlib
import tomllib
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanocontrol.course.student import Student as Student
from nanocontrol.course.student import Wrong as Wrong

EXERCISES = Path(__file__).with_name("exercises")


class Seeds(NamedTuple):
    """Random numbers that depend on the student and on what they are for.

    student: the name. purpose: "start" for what the student is given; "check" and "grade" for the
    inputs of a check, so that answers for one of them do not fit the other.
    """

    student: str
    purpose: str

    def seed(self, what: str) -> int:
        text = "\0".join((self.student, self.purpose, what))
        return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "big")

    def numbers(self, what: str) -> Random:
        return Random(self.seed(what))

    def tensors(self, what: str) -> torch.Generator:
        return torch.Generator().manual_seed(self.seed(what))

    def given(self) -> "Seeds":
        """The draws for what this student was given."""
        return self._replace(purpose="start")


class Exercise(NamedTuple):
    """The student's file exNN_NAME.py, from exercises/, and what checks/NAME.py has for it."""

    number: int
    file: str  # the name of the student's file
    said: SimpleNamespace  # texts, and the modules that a submission may not import (closed)
    check: Callable[[Student, Seeds], str]  # what is right in one sentence; raises Wrong
    give: Callable[[Seeds, Path], None] | None  # writes the student's data into the folder
    show: Callable[[Student, Seeds], tuple[list, str]] | None  # rows of pictures, and their caption
    wanted: tuple[str, ...]  # more files that are handed in


@cache
def sentences(name: str) -> SimpleNamespace:
    """The texts of an exercise, by their names in sentences.toml."""
    text = (Path(__file__).parent / "checks" / "sentences.toml").read_text(encoding="utf-8")
    return SimpleNamespace(**tomllib.loads(text)[name])


@cache
def exercises() -> dict[int, Exercise]:
    """All exercises by number, the bonus last."""
    found = {}
    for file in sorted(EXERCISES.glob("ex*_*.py")):
        number, name = int(file.stem[2:4]), file.stem[5:]
        there = vars(import_module(f"nanocontrol.course.checks.{name}"))
        parts = there["check"], there.get("give"), there.get("show"), there.get("WANTED", ())
        found[number] = Exercise(number, file.name, sentences(name), *parts)
    return found


# -------------------------------------------------------------------------- comparing answers


def refuse(wrong: dict[str, Any], /, **facts: Any) -> None:
    """Raise Wrong with the first sentence whose condition holds. facts: for its placeholders."""
    for sentence, holds in wrong.items():
        if holds:
            raise Wrong(sentence.format(**facts))


def as_tensor_like(name: str, found: Any, right: Tensor) -> Tensor:
    """An answer as a tensor in float64. Raises Wrong if its shape is not the right one's."""
    if found is None:
        raise Wrong(f"{name} returns None; does it end with `return`?")
    try:
        values = torch.as_tensor(found).double()
    except (TypeError, ValueError, RuntimeError):
        raise Wrong(f"{name} returns a {type(found).__name__}; expected numbers") from None
    if values.shape != right.shape:
        raise Wrong(f"{name} returns the shape {[*values.shape]}; expected {[*right.shape]}")
    if not values.isfinite().all():
        raise Wrong(f"{name} returns values that are not finite; is something divided by zero?")
    return values


# Float32 rounds by 6e-8 of a value. An answer has at most some hundred roundings, one after the
# other, in any order; wrong answers differ by more than 1e-2.
def close(a: Tensor, b: Tensor, within: float = 1e-4, least: float = 1.0) -> bool:
    """Whether two tensors agree up to a share of the second one's largest value, which counts as
    `least` at least."""
    most = within * max(least, b.abs().max().item())
    return a.shape == b.shape and bool((a.double() - b.double()).abs().max() <= most)


def compare(name: str, found: Any, right: Any, known: dict, advice: str, **near: float) -> float:
    """Raise Wrong if an answer is wrong, with the sentence of the known wrong answer that it is.

    known: sentences, and the wrong answers that they explain: a tensor or number, or a list of
    them. advice: for all other answers. near: the tolerance of `close`. Returns the answer's mean.
    """
    right = torch.as_tensor(right)
    values = as_tensor_like(name, found, right)
    if close(values, right, **near):
        return values.mean().item()
    for sentence, answers in known.items():
        for wrong in map(torch.as_tensor, answers if isinstance(answers, list) else [answers]):
            if close(values, wrong, **near) and not close(wrong, right, **near):
                raise Wrong(sentence)
    if not values.shape:
        raise Wrong(f"{name} returns {values:.4g}. {advice}")
    right_ones = sum(close(a, b, **near) for a, b in zip(values.flatten(), right.flatten()))
    share = 100 * (1 - right_ones / values.numel())
    raise Wrong(f"{name}: {share:.0f} % of the values are wrong. {advice}")


def compare_choice(name: str, found: Any, right: Any, known: dict, advice: str) -> None:
    """Raise Wrong for a choice that is not the right one: with its own sentence, if it has one."""
    if found is None or found == "":
        raise Wrong(f"{name} is not answered yet")
    if found != right:
        plain = found if isinstance(found, str | int | float | bool) else None
        raise Wrong(known.get(plain, advice))

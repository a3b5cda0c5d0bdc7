"""A training's settings: a frozen dataclass with a line for each, from which its flags are made."""

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import field, fields
from pathlib import Path
from types import UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.flags import at_least, device, fraction, positive, seed
from nanocontrol.plumbing.machine import available

S = TypeVar("S")


def absolute(path: str) -> str:
    """A run may be resumed from another folder."""
    return str(Path(path).resolve())


class Argument(NamedTuple):
    """What argparse is told of a setting, beside its type."""

    type: Callable[[str], Any] | None = None
    metavar: str | None = None
    choices: tuple[str, ...] | None = None


File = Annotated[str, Argument(absolute, "FILE")]
Dir = Annotated[str, Argument(absolute, "DIR")]
Count = Annotated[int, Argument(at_least(1), "N")]
Seed = Annotated[int, Argument(seed, "N")]
Fraction = Annotated[float, Argument(fraction, "X")]
Positive = Annotated[float, Argument(positive, "X")]
Device = Annotated[str, Argument(device, "NAME")]


def knob(default: Any, help: str) -> Any:
    """A field of such a dataclass: its default and what it is. A default of None is decided later,
    from the machine or from other settings."""
    return field(default=default, metadata={"help": help})


def add_flags(parser: argparse.ArgumentParser, settings: type, small: Mapping[str, Any]) -> None:
    """A flag for each setting; those that are not given will not be in the parsed namespace.
    small: the defaults that differ for the small model, for --help."""
    kinds = get_type_hints(settings, include_extras=True)
    for setting in fields(settings):
        if not setting.metadata:  # no knob
            continue
        name, default, help = setting.name, setting.default, setting.metadata["help"]
        if default not in (None, False):
            help += f" (default: {default}{f'; nano: {small[name]}' if name in small else ''})"
        argument = argument_of(kinds[name])
        parser.add_argument(flag_of(name), default=argparse.SUPPRESS, help=help, **argument)


def argument_of(kind: Any) -> dict[str, Any]:
    """What argparse is told of a setting of this type."""
    if kind is bool:
        return {"action": "store_true"}
    if kind == bool | None:
        return {"action": argparse.BooleanOptionalAction}
    if get_origin(kind) in (Union, UnionType):  # ... | None
        kind = get_args(kind)[0]
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind)}
    return kind.__metadata__[0]._asdict()


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def settings_of_run(settings: type[S], run: Path, given: Mapping[str, Any], longer: str = "") -> S:
    """The settings of a run that is to go on; no flag may contradict them. If the run's `schedule`
    is the one named in `longer`, `steps` may grow: its first steps do not depend on their number.

    Raises InputError if the folder holds no run of these settings, or its device is not here.
    """
    try:
        old = settings(**json.loads((run / "settings.json").read_text()))
    except (OSError, ValueError, TypeError):
        raise InputError(
            f"--resume {run}: no settings.json, or one of another version; expected a run's folder"
        ) from None
    if not available(old.device):
        raise InputError(f"--resume {run}: it ran on {old.device}, which is not available here")
    new = vars(old) | {"out": str(run)}
    for name, value in given.items():
        grows = name == "steps" and new.get("schedule") == longer and value > old.steps
        if new[name] != value and not grows:
            raise InputError(f"{flag_of(name)} {value} contradicts {run}, which has {new[name]}")
    return settings(**new | given)


def new_folder(out: str | None, kind: str) -> str:
    """`out`, or the first free one of runs/kind-1, runs/kind-2, ..."""
    if out is None:
        number = 1
        while (path := Path("runs") / f"{kind}-{number}").exists():
            number += 1
        return absolute(str(path))
    if (Path(out) / "settings.json").exists():
        raise InputError(f"--out {out} already holds a run: expected a new folder, or --resume")
    return out

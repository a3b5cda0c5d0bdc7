"""A training's settings: a frozen dataclass with a line for each, from which its flags are made."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, field, fields
from functools import partial
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from nanocontrol.plumbing.errors import InputError, blame
from nanocontrol.plumbing.flags import absolute
from nanocontrol.plumbing.machine import available
from nanocontrol.training.run import read_json


def knob(
    default: Any,
    help: str,
    reader: Callable[[str], Any] = str,
    choices: Iterable[Any] | None = None,
    learnt: bool = True,
) -> Any:
    """A field of such a dataclass: its default and its help text; the function that reads it from a
    command line, or the values it can have (a Literal type says them too).

    A default of None is decided later, from the machine or from other settings.
    learnt: whether it decides what is learnt, and not only where, how fast or how closely watched.
    """
    metadata = {"help": help, "type": reader, "choices": choices, "learnt": learnt}
    return field(default=default, metadata=metadata)


def what_is_learnt(settings: Mapping[str, Any], of: type) -> dict[str, Any]:
    """The settings that decide what a training learns: two runs with the same ones can be compared.

    settings: as a run's settings.json has them, perhaps of an earlier version; of: their dataclass.
    A setting that is missing has its default. One that no longer exists (`former`) is ignored if it
    had its default. Of files only the names count.
    """
    learnt: dict[str, Any] = {}
    for setting in fields(of):
        value = settings.get(setting.name, setting.default)
        if setting.metadata.get("learnt", True):
            is_file = setting.metadata.get("type") is absolute
            learnt[setting.name] = names_of_files(value) if is_file else value
    return learnt | unknown_settings(settings, of)


def names_of_files(value: Any) -> Any:
    """A path, or a list of them -> without their folders."""
    if isinstance(value, list):
        return [names_of_files(path) for path in value]
    return value and Path(value).name


def unknown_settings(settings: Mapping[str, Any], of: type) -> dict[str, Any]:
    """The settings that do not exist, unless they once did and have the default they had."""
    known, former = {setting.name for setting in fields(of)}, getattr(of, "former", {})
    return {
        name: value
        for name, value in settings.items()
        if name not in known and not (name in former and former[name] == value)
    }


def parser_for(
    settings: type, description: str | None, presets: Mapping[str, Mapping[str, Any]], resuming: str
) -> argparse.ArgumentParser:
    """With a flag for each setting: `batch_size: int = knob(4, "pairs in a pass", at_least(1))`
    becomes --batch-size. Flags that are not given will not be in the parsed namespace.
    presets, by name: --help says where their defaults differ; resuming: what it says of --resume.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    for setting in fields(settings):
        if not setting.metadata:  # no knob
            continue
        argument = {name: x for name, x in setting.metadata.items() if name != "learnt"}
        if setting.default not in (None, False):
            defaults = [f"default: {setting.default}"]
            for name, preset in presets.items():
                if setting.name in preset:
                    defaults.append(f"{name}: {preset[setting.name]}")
            argument["help"] += f" ({'; '.join(defaults)})"
        kinds = [setting.type, *get_args(setting.type)]  # without and with `| None`
        if bool in kinds:
            del argument["type"], argument["choices"]
            argument["action"] = "store_true"
        for literal in kinds:
            if get_origin(literal) is Literal:
                argument["choices"] = get_args(literal)
            if get_origin(literal) is list:
                argument["action"] = "append"
                del argument["choices"]
        if argument.get("type") is absolute:
            argument["metavar"] = "PATH"
        add = partial(parser.add_argument, default=argparse.SUPPRESS)
        add(flag_of(setting.name), **argument)
        if setting.default and argument.get("metavar") == "PATH":  # a path that can be left out
            without: Any = {"dest": setting.name, "action": "store_const", "const": ""}
            add(flag_of(f"no_{setting.name}"), help=argparse.SUPPRESS, **without)
    parser.add_argument(
        "--resume", metavar="RUN", type=absolute, help=f"continue this run{resuming}"
    )
    return parser


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def has_default(setting: Field) -> bool:
    """Whether a setting has a value before it is decided by others: `str` with None has none."""
    optional = setting.default is None and NoneType in get_args(setting.type)
    return optional or setting.default not in (None, MISSING)


def settings_of_run(settings: type, run: Path, given: dict[str, Any], longer: str = "") -> Any:
    """The settings of a run that is to go on; no flag may contradict them. If the run's `schedule`
    is the one named in `longer`, `steps` may grow: its first steps do not depend on their number.

    Raises InputError if the folder holds no run of these settings, or its device is not here.
    """
    with blame("--resume"):
        kept = read_json(run / "settings.json")
    if unknown := unknown_settings(kept, settings):
        name, value = next(iter(unknown.items()))
        raise InputError(
            f"--resume {run}: its settings.json has {name} = {value}, which this version does not "
            "know; expected a run of this version"
        )
    missing = [s.name for s in fields(settings) if s.name not in kept and not has_default(s)]
    if missing:
        raise InputError(f"--resume {run}: its settings.json has no {missing[0]}; expected a run's")
    names = {setting.name for setting in fields(settings)}
    old = settings(**{name: value for name, value in kept.items() if name in names})
    if not available(old.device):
        raise InputError(f"--resume {run}: it ran on {old.device}, which is not available here")
    new = vars(old) | {"out": str(run)}
    for name, value in given.items():
        grows = name == "steps" and new.get("schedule") == longer and value > old.steps
        if new[name] != value and not grows:
            raise InputError(f"{flag_of(name)} {value} contradicts {run}, which has {new[name]}")
    return settings(**new | given)

"""A training's settings: a frozen dataclass with a line for each, from which its flags are made."""

import argparse
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import field, fields
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.flags import absolute
from nanocontrol.plumbing.machine import available


def knob(
    default: Any,
    help: str,
    reader: Callable[[str], Any] = str,
    choices: Iterable[Any] | None = None,
) -> Any:
    """A field of such a dataclass: its default and what it is; what reads it from a command line,
    or the values it can have (a Literal type says them too). A default of None is decided later,
    from the machine or from other settings."""
    return field(default=default, metadata={"help": help, "type": reader, "choices": choices})


def parser_for(
    settings: type, description: str | None, presets: Mapping[str, Mapping[str, Any]]
) -> argparse.ArgumentParser:
    """With a flag for each setting: `batch_size: int = knob(4, "pairs in a pass", at_least(1))`
    becomes --batch-size. Flags that are not given will not be in the parsed namespace.
    presets, by name: --help says where their defaults differ."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=description, formatter_class=formatter)
    for setting in fields(settings):
        if not setting.metadata:  # no knob
            continue
        argument = dict(setting.metadata)
        if setting.default not in (None, False):
            defaults = [f"default: {setting.default}"]
            for name, preset in presets.items():
                if setting.name in preset:
                    defaults.append(f"{name}: {preset[setting.name]}")
            argument["help"] += f" ({'; '.join(defaults)})"
        kinds = [setting.type, *get_args(setting.type)]  # without and with `| None`
        if bool in kinds:
            del argument["type"], argument["choices"]
            undecided = setting.default is None
            argument["action"] = argparse.BooleanOptionalAction if undecided else "store_true"
        for literal in kinds:
            if get_origin(literal) is Literal:
                argument["choices"] = get_args(literal)
            if get_origin(literal) is list:
                argument["action"] = "append"
                del argument["choices"]
        if argument.get("type") is absolute:
            argument["metavar"] = "PATH"
        parser.add_argument(flag_of(setting.name), default=argparse.SUPPRESS, **argument)
    return parser


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def settings_of_run(settings: type, run: Path, given: dict[str, Any], longer: str = "") -> Any:
    """The settings of a run that is to go on; no flag may contradict them. If the run's `schedule`
    is the one named in `longer`, `steps` may grow: its first steps do not depend on their number.

    Raises InputError if the folder holds no run of these settings, or its device is not here.
    """
    try:
        kept = json.loads((run / "settings.json").read_text())
        old = settings(**kept)
        if kept.keys() != vars(old).keys():
            raise LookupError
    except (OSError, ValueError, TypeError, LookupError, AttributeError):
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

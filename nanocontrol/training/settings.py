"""Settings of a training: a frozen dataclass with one line per setting, and flags made from it."""

import argparse
from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from nanocontrol.plumbing.errors import InputError, blame
from nanocontrol.plumbing.flags import Parser, absolute, canny_or_folder, device
from nanocontrol.plumbing.machine import available
from nanocontrol.training.run import read_json

SEVERAL = list[list[str]]  # the type of a flag that takes a file and a text, and may be repeated
DIVISION = "batch_size", "accumulate"  # may change together: Watch compares the pairs in a step
# Readers of what may exist elsewhere only: of their values from a file, only the type counts.
PLACES = (absolute, canny_or_folder, device)


class FileAndText(argparse.Action):
    """Collects the values of such a flag, the file as an absolute path."""

    def __call__(self, parser: Any, into: Any, values: Any, flag: str | None = None) -> None:
        setattr(into, self.dest, [*getattr(into, self.dest, []), [absolute(values[0]), values[1]]])


def knob(
    default: Any,
    help: str,
    reader: Callable[[str], Any] = str,
    choices: Iterable[Any] | None = None,
    learnt: bool = True,
) -> Any:
    """A field of the dataclass: one setting with its default and help text.

    A default of None is filled in later, from the machine or from other settings.
    reader: parses the flag's text. choices: the allowed values; a Literal type also lists them.
    learnt: whether the setting affects the result of the training. False if it affects only where
    or how fast a run computes, or how often it is evaluated and saved.
    """
    metadata = {"help": help, "type": reader, "choices": choices, "learnt": learnt}
    return field(default=default, metadata=metadata)


def what_is_learnt(settings: Mapping[str, Any], of: type) -> dict[str, Any]:
    """The settings that affect the result of a training. Runs that agree in them can be compared.

    settings: from a run's settings.json, perhaps of an earlier version; of: their dataclass. A
    missing setting has its default. A setting that no longer exists (`former`) is ignored if it has
    its old default. Only the names of files are compared, not their folders.
    """
    learnt: dict[str, Any] = {}
    for setting in fields(of):
        value = settings.get(setting.name, setting.default)
        if setting.metadata.get("learnt", True):
            is_file = setting.metadata.get("type") is absolute
            learnt[setting.name] = names_of_files(value) if is_file else value
    return learnt | unknown_settings(settings, of)


def names_of_files(value: Any) -> Any:
    """A path, or a list of paths, without the folders."""
    if isinstance(value, list):
        return [names_of_files(path) for path in value]
    return value and Path(value).name


def unknown_settings(settings: Mapping[str, Any], of: type) -> dict[str, Any]:
    """The settings that this version does not know, except former ones with their old default."""
    known, former = {setting.name for setting in fields(of)}, getattr(of, "former", {})
    return {
        name: value
        for name, value in settings.items()
        if name not in known and not (name in former and former[name] == value)
    }


def parser_for(
    settings: type, description: str | None, presets: Mapping[str, Mapping[str, Any]], resuming: str
) -> argparse.ArgumentParser:
    """A parser with a flag for each setting: `batch_size: int = knob(4, "pairs per forward pass")`
    becomes --batch-size. Flags that are not given are absent from the parsed namespace.

    presets: by name; --help shows where their defaults differ. resuming: the end of --resume's
    help text.
    """
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=description, formatter_class=formatter)
    for setting in fields(settings):
        if not setting.metadata:  # not made by `knob`
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
        if SEVERAL in kinds:
            argument |= {"action": FileAndText, "nargs": 2, "metavar": ("FILE", "PROMPT")}
        if argument.get("type") is absolute:
            argument["metavar"] = "PATH"
        add = partial(parser.add_argument, default=argparse.SUPPRESS)
        add(flag_of(setting.name), **argument)
        if setting.default and argument.get("metavar") == "PATH":  # add --no-NAME
            without: Any = {"dest": setting.name, "action": "store_const", "const": ""}
            add(flag_of(f"no_{setting.name}"), help=argparse.SUPPRESS, **without)
    parser.add_argument(
        "--resume", metavar="RUN", type=absolute, help=f"continue this run{resuming}"
    )
    return parser


def flag_of(name: str) -> str:
    return "--" + name.replace("_", "-")


def is_possible(setting: Field, value: Any) -> bool:
    """Whether a value from a file is one that the setting's flag can give. A default of None counts
    only if the type allows None; otherwise the value is filled in before it is written. A path or a
    device only has to be a text, because whether it exists here is checked later."""
    kinds = [setting.type, *get_args(setting.type)]
    if value is None or bool in kinds:
        return type(value) in kinds
    if SEVERAL in kinds:
        return type(value) is list and all(
            type(x) is list and [*map(type, x)] == [str, str] for x in value
        )
    literals = [x for kind in kinds if get_origin(kind) is Literal for x in get_args(kind)]
    allowed = literals or list(setting.metadata.get("choices") or [value])
    several, reader = list in map(get_origin, kinds), setting.metadata.get("type", str)
    if value not in allowed or value == [] or several != (type(value) is list):
        return False
    only_text, items = reader in PLACES, value if several else [value]
    try:
        return all(type(x) is str if only_text else reader(str(x)) == x for x in items)
    except (ValueError, argparse.ArgumentTypeError):
        return False


def check_together(settings: Mapping[str, Any]) -> None:
    """Raises InputError for settings of train.py that exclude each other: those given for a new
    run, or all settings of a run."""
    used = {name for name, value in settings.items() if value not in (None, False, "middle")}
    if {"low_memory", "unlock"} <= used:
        raise InputError("--low-memory is for a locked base: it cannot be used with --unlock")
    if "data" in used and settings.get("condition") not in (None, settings.get("hints")):
        raise InputError("--condition is for drawn scenes: with --data use --hints")
    if len(settings.get("data") or []) > 1 and settings.get("hints") not in (None, "canny"):
        raise InputError("--hints DIR is for one --data: join the folders, or train with one")
    drawn = used & {"condition", "hints", "size", "crop", "mirror"} == {"condition"}
    if "data" in settings.keys() - used and not drawn:
        raise InputError("drawn scenes have --condition, not --hints, --size, --crop, --mirror")


def may_have_moved(name: str, before: Any, now: Any) -> bool:
    """Whether data can be in another folder now. Their content is compared later."""
    return name in ("data", "hints") and before not in (None, "canny") and now != "canny"


def settings_of_run(settings: type, run: Path, given: dict[str, Any], longer: str = "") -> Any:
    """The settings of a run to resume, with the flags that are given now. These may not change what
    is learnt, with one exception: `steps` may grow if the run's `schedule` is `longer`, because
    such a schedule does not depend on the number of steps.

    Raises InputError for such a contradiction, if the folder holds no run with these settings, if
    they exclude each other, or if its device is not available.
    """
    with blame("--resume"):
        kept = read_json(run / "settings.json") | {"out": str(run)}
    for name, value in unknown_settings(kept, settings).items():
        raise InputError(f"--resume {run}: {name} = {value} is unknown; expected a known setting")
    for setting in fields(settings):
        if not is_possible(setting, value := kept.get(setting.name, setting.default)):
            found = f"{setting.name} = {value!r} in settings.json"
            raise InputError(f"--resume {run}: {found}; expected a value of that flag")
    names = {setting.name for setting in fields(settings)}
    old = vars(settings(**{k: x for k, x in kept.items() if k in names}))
    for name, value in given.items():
        grows = name == "steps" and old.get("schedule") == longer and value > old["steps"]
        before, after = (what_is_learnt(every, settings) for every in (old, old | {name: value}))
        same = before == after or name in DIVISION or may_have_moved(name, old[name], value)
        if not grows and not (same and (name != "out" or value == old["out"])):
            fixed = name == "steps" and old.get("schedule") != longer
            why = "; its learning rate depends on --steps" if fixed else ""
            raise InputError(
                f"{flag_of(name)} {value} contradicts {run}, which has {old[name]}{why}"
            )
    new = settings(**old | given)
    with blame(f"--resume {run}"):
        check_together(vars(new))
    if not available(new.device):
        raise InputError(f"--resume {run}: it ran on {new.device}, which is not available here")
    return new

"""Trainings in a student's folder, for exercise 10 and the bonus."""

import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

from nanocontrol import load_control, save_control
from nanocontrol.course.exercise import Seeds
from nanocontrol.course.pictures import bundled_nano
from nanocontrol.course.student import ROOT
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.model import halve_condition_encoder
from nanocontrol.nano.scores import SCORES, canny_score
from nanocontrol.plumbing.errors import InputError
from nanocontrol.training.run import read_run

RUNS = "scaled", "half"
HANDED_IN = "runs/own/control-half.safetensors"  # of the bonus
STEPS = {"scaled": 240, "half": 400}
# How often a run is evaluated and saved: for exercise 10, and for the bonus.
OFTEN = {"sample_every": 20, "save_every": 400}
SELDOM = {"sample_every": 100, "save_every": 500}


def seed_of(name: str) -> int:
    """The seed of a student's own runs."""
    return Seeds(name, "start").seed("training") % 10_000


def settings_for(run: str, seed: int) -> dict[str, Any]:
    """The settings that differ from nano's, and the seed."""
    return {
        "condition": "canny",
        "steps": STEPS[run],
        "batch_size": 8,
        "lr": 1e-3,
        "schedule": "constant",
        "hint_init": "variance" if run == "scaled" else "pytorch",
        "seed": seed,
    }


def models_for(run: str, made: Callable, settings: Any) -> tuple:
    """In the place of train.models: its networks, with the run's encoder."""
    sd, control, trained = made(settings)
    if run == "half":
        halve_condition_encoder(control)
    return sd, control, trained


def train_own_run(run: str, name: str, folder: Path) -> None:
    """Train a variant of exercise 10 by train.py, and print its scores."""
    train = script()
    flags = settings_for(run, seed_of(name)) | OFTEN
    train.main(words_of(flags, folder, run), models=partial(models_for, run, train.models))
    for step, score in read_run(folder / "runs" / run).measured("score"):
        print(f"step {step:3}: score {score:.3f}")


def train_own_condition(file: Path, name: str, folder: Path) -> None:
    """Train a ControlNet for the condition of the bonus, and write it in half precision."""
    train = script()
    names: dict[str, Any] = {"__name__": "own condition"}
    exec(compile(file.read_text(encoding="utf-8"), file, "exec"), names)
    CONDITIONS["own"], SCORES["own"] = names["condition"], canny_score
    flags = {"condition": "own", "seed": seed_of(name)} | SELDOM
    train.main(words_of(flags, folder, "own"))
    control = load_control(folder / "runs" / "own" / "control.safetensors", bundled_nano().unet)
    save_control(control.half(), folder / HANDED_IN, "own")
    print(f"{folder / HANDED_IN} is what you hand in, with {file.name}")


def words_of(flags: dict[str, Any], folder: Path, run: str) -> list[str]:
    """The words of a train.py command whose run and cache lie in a student's folder."""
    flags = flags | {"out": str(folder / "runs" / run), "cache": str(folder / "cache")}
    pairs = ((f"--{name.replace('_', '-')}", str(value)) for name, value in flags.items())
    return [word for pair in pairs for word in pair]


def script() -> Any:
    """The module train.py, which lies next to the package."""
    if not (ROOT / "train.py").exists():
        raise InputError(f"{ROOT} has no train.py: install with `pip install -e .` from a clone")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    return import_module("train")

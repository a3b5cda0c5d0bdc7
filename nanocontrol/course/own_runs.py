"""Trainings in a student's folder, for exercise 10 and the bonus."""

from pathlib import Path
from typing import Any

from nanocontrol import load_control, save_control
from nanocontrol.course.exercise import Seeds
from nanocontrol.course.inside import bundled_nano
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.model import halve_condition_encoder
from nanocontrol.nano.scores import SCORES, canny_score
from nanocontrol.training.run import read_run

# The runs of exercise 10: steps, and how the condition encoder is initialised.
RUNS = {"scaled": (240, "variance"), "half": (400, "pytorch")}
HANDED_IN = "runs/own/control-half.safetensors"  # of the bonus
# How often a run is evaluated and saved: for exercise 10, and for the bonus.
OFTEN = {"sample_every": 20, "save_every": 400}
SELDOM = {"sample_every": 100, "save_every": 500}


def seed_of(name: str) -> int:
    """The seed of a student's own runs."""
    return Seeds(name, "start").seed("training") % 10_000


def settings_for(run: str, seed: int) -> dict[str, Any]:
    """The settings that differ from nano's, and the seed."""
    steps, hint_init = RUNS[run]
    shared = {"condition": "canny", "batch_size": 8, "lr": 1e-3, "schedule": "constant"}
    return shared | {"steps": steps, "hint_init": hint_init, "seed": seed}


def models_with_half_encoder(settings: Any) -> tuple:
    """In the place of train.models: its networks, with a condition encoder half as deep."""
    from train import models

    sd, control, trained = models(settings)
    halve_condition_encoder(control)
    return sd, control, trained


def train_own_run(run: str, name: str, folder: Path) -> None:
    """Train a variant of exercise 10 by train.py, and print its scores."""
    changed = {"models": models_with_half_encoder} if run == "half" else {}
    train_in(folder, run, settings_for(run, seed_of(name)) | OFTEN, **changed)
    for step, score in read_run(folder / "runs" / run).measured("score"):
        print(f"step {step:3}: score {score:.3f}")


def train_own_condition(file: Path, name: str, folder: Path) -> None:
    """Train a ControlNet for the condition of the bonus, and write it in half precision."""
    names: dict[str, Any] = {"__name__": "own condition"}
    exec(compile(file.read_text(encoding="utf-8"), file, "exec"), names)
    CONDITIONS["own"], SCORES["own"] = names["condition"], canny_score
    train_in(folder, "own", {"condition": "own", "seed": seed_of(name)} | SELDOM)
    control = load_control(folder / "runs" / "own" / "control.safetensors", bundled_nano().unet)
    save_control(control.half(), folder / HANDED_IN, "own")
    print(f"{folder / HANDED_IN} is what you hand in, with {file.name}")


def train_in(folder: Path, run: str, flags: dict[str, Any], **functions: Any) -> None:
    """Call train.py with these flags, and with the run and the cache in a student's folder."""
    import train

    flags = flags | {"out": folder / "runs" / run, "cache": folder / "cache"}
    words = [f"--{name.replace('_', '-')}={value}" for name, value in flags.items()]
    train.main(words, **functions)

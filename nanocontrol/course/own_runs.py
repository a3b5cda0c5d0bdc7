"""Trainings in a student's folder, for exercise 10 and the bonus."""

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from nanocontrol import ControlNet, StableDiffusion
from nanocontrol.course.exercise import Draws
from nanocontrol.course.student import ROOT
from nanocontrol.plumbing.errors import InputError

RUNS = "scaled", "half"
STEPS = {"scaled": 240, "half": 400}


def seed_of(name: str) -> int:
    """The seed of a student's own runs."""
    return Draws(name, "start").seed("training") % 10_000


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


def halve_encoder(control: ControlNet) -> None:
    """Keep every second convolution of the condition encoder: three of seven, and the last."""
    layers: list[nn.Module] = []
    width = 3
    for old in control.input_hint_block:
        if isinstance(old, nn.Conv2d) and old.stride == (2, 2):
            layers += [nn.Conv2d(width, old.out_channels, 3, 2, padding=1), nn.SiLU()]
            width = old.out_channels
    control.input_hint_block = nn.Sequential(*layers, control.input_hint_block[-1])


def models_for(run: str, made: Callable, settings: Any) -> tuple:
    """In the place of train.models: its networks, with the run's encoder."""
    sd, control, trained = made(settings)
    if run == "half":
        halve_encoder(control)
    return sd, control, trained


def train_own_run(run: str, name: str, folder: Path) -> None:
    """Train a variant of exercise 10 by train.py, and print its scores."""
    train = script()
    out = folder / "runs" / run
    flags = {**settings_for(run, seed_of(name)), "sample_every": 20, "save_every": 400}
    flags |= {"out": str(out), "cache": str(folder / "cache")}
    argv = [word for key, value in flags.items() for word in (f"--{key.replace('_', '-')}", str(value))]
    train.main(argv, models=partial(models_for, run, train.models))
    from nanocontrol.training.run import read_run

    for step, score in read_run(out).measured("score"):
        print(f"step {step:3}: score {score:.3f}")


def script() -> Any:
    """The module train.py, which lies next to the package."""
    if not (ROOT / "train.py").exists():
        raise InputError(f"{ROOT} has no train.py: install with `pip install -e .` from a clone")
    if str(ROOT) not in sys.path:
        sys.path.insert(0, str(ROOT))
    import train

    return train

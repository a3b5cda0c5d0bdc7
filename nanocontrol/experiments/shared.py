"""Arms that several experiments have: they are trained once."""

from typing import Any

from nanocontrol.experiments.arm import PLAIN, PLAIN_SETTINGS, SOONER, Arm, Start, unchanged
from nanocontrol.experiments.beginnings import gaussian_convolutions

STEPS = {1e-3: 1000, 2e-3: 700, 4e-3: 500}  # by learning rate: a larger one jumps sooner
RATES, BATCHES = tuple(STEPS), (4, 8, 16)
VARIANCE = Arm("variance", SOONER | {"hint_init": "variance"})
GAUSSIAN = Arm("gaussian", start=gaussian_convolutions())


def like_variance(name: str, start: Start = unchanged, **settings: Any) -> Arm:
    """The arm that learns soon, but for these settings."""
    return Arm(name, dict(VARIANCE.settings) | settings, start)


def rate_and_batch(lr: float, batch: int) -> Arm:
    if lr == PLAIN_SETTINGS["lr"] and batch == PLAIN_SETTINGS["batch_size"]:
        return PLAIN
    settings = {"lr": lr, "batch_size": batch, "steps": STEPS[lr]}
    return Arm(f"lr {lr:g} batch {batch}", settings)


BY_RATE_AND_BATCH = {(lr, batch): rate_and_batch(lr, batch) for lr in RATES for batch in BATCHES}

# What afterwards.what_is_left measures.
LEFT = {
    "background": "without control: background",
    "colours": "colours",
    "kinds": "kinds",
    "base_loss": "its loss",
}

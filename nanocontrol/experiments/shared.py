"""Arms that several experiments have: they are trained once."""

from typing import Any

from nanocontrol.experiments.arm import SOONER, WAITING, Arm, Start, unchanged
from nanocontrol.experiments.beginnings import gaussian_convolutions

SOON = SOONER | {"hint_init": "variance"}
VARIANCE = Arm("variance", SOON | {"sample_every": 20})  # (its jump's width is measured)
GAUSSIAN = Arm("gaussian", WAITING, gaussian_convolutions())


def like_variance(name: str, start: Start = unchanged, **settings: Any) -> Arm:
    """The arm that learns soon, but for these settings."""
    return Arm(name, SOON | settings, start)


GAUSSIAN_SOON = like_variance("gaussian variance", gaussian_convolutions())

BY_RATE = {
    5e-4: like_variance("lr 0.0005", lr=5e-4, steps=600, sample_every=30),
    1e-3: VARIANCE,
    2e-3: like_variance("lr 0.002", lr=2e-3, sample_every=20),
}
BY_BATCH = {
    4: like_variance("batch 4", batch_size=4, sample_every=20),
    8: VARIANCE,
    16: like_variance("batch 16", batch_size=16, sample_every=20),
}

# What afterwards.what_is_left measures.
LEFT = {
    "background": "without control: background",
    "colours": "colours",
    "kinds": "kinds",
    "base_loss": "its loss",
}

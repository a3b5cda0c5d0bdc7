"""train.py with its networks in float64 and without looking at pictures, by the same command line:

    python tests/in_float64.py --base ... --data ...

Two ways to compute the same step differ by rounding, and how much that makes of a gradient is
another number on every processor. In float64 it is below 1e-12 of the gradient's norm on all of
them. What stays float32 (x_0, the time's embedding, the error of the predicted noise) is computed
element by element: at worst a few numbers are rounded the other way, by 6e-8 of each. So 1e-6 holds
on every processor, and what is computed wrongly is off by 1e-3 or more.
"""

import sys
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from unittest import mock

from torch import Tensor, nn

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parents[1]))

import train
from nanocontrol import sample
from nanocontrol.training import measure, watch

ROUNDING = 1e-6


@contextmanager
def hasty_pictures():
    """The pictures that a training looks at are made in one step instead of twenty; no curves."""
    with (
        mock.patch.object(watch, "draw_curves"),
        mock.patch.object(train, "measure", measure.measure),
        mock.patch.object(measure, "sample", partial(sample, steps=1)),
    ):
        yield


@contextmanager
def no_pictures():
    """A training looks at the true pictures instead of its own, and measures nothing."""

    def unmeasured(sd, control, held_out, *others):
        return [held_out.images], {}

    with mock.patch.object(watch, "draw_curves"), mock.patch.object(train, "measure", unmeasured):
        yield


def widened(x):
    if isinstance(x, list):
        return [widened(item) for item in x]
    return x.double() if isinstance(x, Tensor) and x.is_floating_point() else x


def models(settings: train.Settings) -> tuple:
    sd, control, trained = train.models(settings)
    networks: list[nn.Module] = [sd.unet, sd.vae, sd.text_encoder, control]
    for network in networks:
        network.double()
    for network in (sd.unet, control):
        network.register_forward_pre_hook(lambda _, given: tuple(map(widened, given)))
    return sd, control, trained


def main(argv: list[str] | None = None) -> None:
    with no_pictures():
        train.main(argv, models=models)


if __name__ == "__main__":
    main()

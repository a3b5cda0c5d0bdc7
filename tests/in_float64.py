"""train.py with networks in float64 and without evaluation. It takes train.py's flags:

    python tests/in_float64.py --base ... --data ...

Two ways to compute a step differ by rounding, and the effect on a gradient depends on the
processor. In float64 it is below 1e-12 of the gradient's norm on all of them. Three tensors stay in
float32: x_0, the time embedding and the error of the predicted noise. They are computed element by
element, so at worst a few values round the other way, by 6e-8 each. A tolerance of 1e-6 therefore
holds on every processor, while a wrong computation is off by 1e-3 or more.
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
    """Evaluations sample in one step instead of twenty, and draw no curves."""
    with (
        mock.patch.object(watch, "draw_curves"),
        mock.patch.object(train, "measure", measure.measure),
        mock.patch.object(measure, "sample", partial(sample, steps=1)),
    ):
        yield


@contextmanager
def no_pictures():
    """Evaluations show the true pictures instead of sampled ones, and measure nothing."""

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

"""At Stable Diffusion's size, without its weights: how much of a real hint the condition encoder
passes on before training.

A ControlNet's condition encoder starts at random, so what it does at step 0 can be measured now:
the encoder that train.py makes for Stable Diffusion 1.5, Canny edges of the photographs that
scikit-image and scikit-learn bring along (pip install -e ".[photos]"), and the spread across
photographs after each of its seven SiLUs (inside.py). The same with the variance-keeping start. No
training.

The claim holds if with PyTorch's start less than a hundredth of the first layer's spread is left
after the last, and with the other one more than a tenth.
"""

from importlib.util import find_spec

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from nanocontrol import ControlNet, UNetConfig
from nanocontrol.controlnet import initialise_condition_encoder
from nanocontrol.experiments.experiment import Claim, Experiment
from nanocontrol.experiments.inside import spread_by_layer
from nanocontrol.experiments.results import Results
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.errors import InputError

EXPECTED = """
as in nano: with PyTorch's start every layer keeps about a third of the spread, so that after seven
about a thousandth of the first layer's is left; with the variance-keeping one it stays the same
within a factor of three. Wider layers do not change that: both starts know their width.
"""

SIZE, SEEDS = 512, 3
THRESHOLDS = 100, 200
# The first block alone: its condition encoder is Stable Diffusion's, the rest is not used.
ENCODER_ONLY = UNetConfig(channel_mult=(1,), num_res_blocks=1, attention_levels=())


def photographs() -> dict[str, np.ndarray]:
    if not (find_spec("skimage") and find_spec("sklearn")):
        raise InputError('photographs are an extra: pip install -e ".[photos]"')
    from skimage import data
    from sklearn.datasets import load_sample_image

    names = ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket")
    found = {name: getattr(data, name)() for name in names}
    return found | {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}


def edges_of_photographs(size: int) -> Tensor:
    """[8, 3, size, size]"""
    found = []
    for photograph in photographs().values():
        picture = ImageOps.fit(Image.fromarray(photograph).convert("RGB"), (size, size))
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 255
        found.append(canny(image, *THRESHOLDS))
    return torch.stack(found)


def spreads() -> dict:
    """After each SiLU, the mean over seeds."""
    hints = edges_of_photographs(SIZE)
    rows = {}
    for start in ("pytorch", "variance"):
        found = []
        for seed in range(SEEDS):
            torch.manual_seed(seed)
            control = ControlNet(ENCODER_ONLY)
            if start == "variance":
                initialise_condition_encoder(control)
            found.append(spread_by_layer(control.input_hint_block, hints))
        rows[start] = np.mean(found, axis=0).tolist()
    head = ["--hint-init", *(f"layer {i + 1}" for i in range(len(rows["pytorch"])))]
    return {"head": head, "rows": rows}


def does_it_fade(results: Results) -> tuple[str, str]:
    rows = results.content["once"]["rows"]
    pytorch, variance = (rows[name][-1] / rows[name][0] for name in ("pytorch", "variance"))
    ours = f"left after seven layers: {pytorch:.2g}, variance-keeping {variance:.2g}"
    holds = pytorch < 0.01 and variance > 0.1
    return ours, "reproduced" if holds else "not reproduced"


EXPERIMENT = Experiment(
    name="encoder_at_size",
    expected=EXPECTED,
    arms=(),
    claims=(
        Claim(
            "Stable Diffusion's condition encoder, too, starts with next to nothing of the hint",
            "none in print",
            does_it_fade,
        ),
    ),
    once=spreads,
)

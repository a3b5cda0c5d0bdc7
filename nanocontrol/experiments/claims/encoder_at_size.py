"""The condition encoder at Stable Diffusion's size.

How much of a real hint does it pass on before training? It begins with random weights, so that can
be measured without Stable Diffusion's: for the encoder that train.py makes for Stable Diffusion
1.5, Canny edges of the photographs that scikit-image and scikit-learn bring along
(pip install -e ".[photos]"), and the standard deviation across photographs after each of its seven
SiLUs (measure.py). Then with scaled Kaiming initialisation. No training.

The claim holds if with PyTorch's initialisation less than 1 % of the first layer's signal is left
after the last one, and with the other more than 10 %.

Expected before the first run:
as in nano: with PyTorch's start every layer keeps about a third of the spread, so that after seven
about a thousandth of the first layer's is left; with the variance-keeping one it stays the same
within a factor of three. Wider layers do not change that: both starts know their width.

Found:
At Stable Diffusion's size as well, less than a thousandth of the first layer's signal is left after
seven layers with PyTorch's initialisation. With scaled Kaiming initialisation it grows by a factor
of four, a little more than expected. `--hint-init variance` gives a ControlNet for your own base
this initialisation. It is off by default, because nobody has tried it at this size. To find out,
train twice with the same `--seed` and data for some 10,000 steps, with `--hint-init pytorch` and
with `variance`, and open an issue with both runs' `settings.json`, `log.jsonl` and `curves.png`.
"""

import numpy as np
import torch

from nanocontrol import ControlNet, UNetConfig
from nanocontrol.controlnet import initialise_condition_encoder
from nanocontrol.experiments.claims.shared import edges_of_photographs
from nanocontrol.experiments.frame import Experiment, claim
from nanocontrol.experiments.measure import spread_by_layer
from nanocontrol.experiments.results import Results, verdict

SIZE, SEEDS = 512, 3
# With the first block alone: its condition encoder is Stable Diffusion's, the rest is not used.
ENCODER_ONLY = UNetConfig(channel_mult=(1,), num_res_blocks=1, attention_levels=())


def spreads_at_size() -> dict:
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


@claim("none in print")
def signal_fades(results: Results) -> tuple[str, str]:
    """Stable Diffusion's condition encoder, too, begins with almost nothing of the hint."""
    rows = results.content["once"]["rows"]
    pytorch, variance = (rows[name][-1] / rows[name][0] for name in ("pytorch", "variance"))
    ours = f"left after seven layers: {pytorch:.2g}, scaled initialisation {variance:.2g}"
    return ours, verdict(pytorch < 0.01 and variance > 0.1)


EXPERIMENT = Experiment(claims=(signal_fades,), once=spreads_at_size)

"""Concatenation.

The paper (section 4.3) compares a ControlNet with Stable Diffusion 2's depth model: users tell
their pictures apart with a precision of 0.52, that is hardly. That model appends the depth map to
the U-Net's input and trains all of it; it took a cluster and 12 million pairs, the ControlNet
200,000 pairs and one RTX 3090 Ti for five days.

Here both begin with nano, at equal compute: a step of concatenation has fewer multiplications, so
it is given more steps. With much data, 1,600 scenes, and little, 100. What it forgets is measured
as in `unlocked`. With the ControlNets' learning rate (nano was trained at nearly the same), and
with a fifth of it; half of it was added when both had been seen, as the one harmed the base and
with the other little was learnt.

A variant is below another where all of its seeds are. Both get the whole hint: no line is lost by
the latent's size.

Expected before the first run:
concatenation learns sooner and more gradually, as the hint goes through the whole network from the
first step on and nothing has to be found before something else moves; at equal compute it ends
level with the ControlNet with much data, and above it at equal pairs, too. With little data it is
worse, as the whole base can learn 100 scenes by heart. Without a hint it makes worse pictures than
nano: its loss is a tenth above the base's, with little data more.

Found:
At the ControlNets' learning rate concatenation follows the edges more exactly (score 0.82 against
0.66), but has no more objects right, and forgets most: without a hint its loss is nearly twice the
base's, and 25 % of the pictures lose their prompts' kinds. At half the rate the edges are followed
as exactly as by the ControlNet, and 14 % of the pictures without a hint lose their kinds. At a
fifth it forgets little and follows half as well. So no rate gives both: what the ControlNet gives,
and the base as it was. Little data does not harm it in `follows`, but its held-out loss rises by
15 %, the ControlNet's by 3 %.
"""

from typing import Any

import numpy as np
from torch import Tensor, nn

from nanocontrol import ControlNet, StableDiffusion
from nanocontrol.controlnet import zero_module
from nanocontrol.experiments.claims import shared
from nanocontrol.experiments.frame import Experiment, Panel, claim, comparison, names_of
from nanocontrol.experiments.results import Results, all_below, listed, verdict

# ------------------------------------------------------------------------------- the network


class AppendedHint(ControlNet):
    """In a ControlNet's place. It computes the new channels' part of the U-Net's first convolution:
    a convolution of two maps that are joined is the sum of a convolution of each. It gets the hint
    as 8 x 8 x 3 channels at the latent's size, where a smaller picture would lose lines. (Without a
    bias: a black hint is as none.)"""

    def __init__(self, control: ControlNet):
        super().__init__(control.config)
        first = nn.Conv2d(3 * 8 * 8, control.config.model_channels, 3, padding=1, bias=False)
        self.input_hint_block = nn.Sequential(nn.PixelUnshuffle(8), zero_module(first))
        self.time_embed = nn.Sequential()
        self.input_blocks, self.zero_convs = nn.ModuleList(), nn.ModuleList()
        self.middle_block: Any = nn.Sequential()
        self.middle_block_out = nn.Sequential()

    def residuals(self, x: Tensor, encoded: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
        return [encoded]


def concatenated(sd: StableDiffusion, control: ControlNet) -> ControlNet:
    """A U-Net that gets one residual, not one for each skip, adds it to the output of its first
    convolution, and takes none to its skips."""
    handed_over: list[Tensor] = []

    def before(unet: Any, inputs: tuple) -> tuple:
        x, t, context, *residuals = inputs
        handed_over.clear()
        if not residuals or residuals[0] is None or len(residuals[0]) > 1:
            return inputs
        handed_over.extend(residuals[0])
        return x, t, context

    def after_first(block: Any, inputs: tuple, output: Tensor) -> Tensor:
        return output + handed_over[0] if handed_over else output

    sd.unet.register_forward_pre_hook(before)
    sd.unet.input_blocks[0].register_forward_hook(after_first)
    return AppendedHint(control)


# ------------------------------------------------------------------------------ the variants

STEPS = 458  # as much arithmetic as 400 of the ControlNet's; a test holds it
SETTINGS: dict[str, Any] = {"unlock": "all", "steps": STEPS}
CONCATENATION = shared.like_variance("concatenation", concatenated, **SETTINGS)
HALF = shared.like_variance("concatenation, half", concatenated, **SETTINGS, lr=5e-4)
SLOW = shared.like_variance("concatenation, a fifth", concatenated, **SETTINGS, lr=2e-4)
FEW = shared.like_variance("variance, 100 scenes", scenes=100)
FEW_TOO = shared.like_variance("concatenation, 100 scenes", concatenated, **SETTINGS, scenes=100)
VARIANTS = (shared.VARIANCE, CONCATENATION, HALF, SLOW, FEW, FEW_TOO)
NAMES, RATES = names_of(*VARIANTS), names_of(CONCATENATION, HALF, SLOW)
MUCH_DATA, LITTLE_DATA = (shared.VARIANCE.name, *RATES), names_of(FEW, FEW_TOO)
FORGETS = (*MUCH_DATA, FEW_TOO.name)
TITLES = {shared.VARIANCE.name: "ControlNet", FEW.name: "ControlNet, 100 scenes"}


@claim("section 4.3 (users tell them apart with a precision of 0.52)")
def as_good_as_concatenation(results: Results) -> tuple[str, str]:
    """A ControlNet is as good as concatenation with all of the base trained.

    It is compared with the best of the rates, by the mean of `follows`.
    """
    best = max(RATES, key=lambda name: np.mean(results.values(name, "follows")))
    said, worse = [], {}
    for number in "follows", "score":
        said.append(f"`{number}`: {results.in_words(number, MUCH_DATA, TITLES)}")
        control, other = (results.values(name, number) for name in (shared.VARIANCE.name, best))
        worse[number] = all_below(control, other)
    if worse["score"] and not worse["follows"]:
        return "; ".join(said), "reproduced by `follows`, not by the score"
    return "; ".join(said), verdict(not worse["follows"])


@comparison(
    "section 4.3 (200,000 pairs against 12 million)",
    *listed("`follows`", "follows", LITTLE_DATA, TITLES),
)
def better_with_little(control: list[float], other: list[float]) -> bool:
    """With little data it is better."""
    return all_below(other, control)


@comparison(
    "section 3.1 (no experiment)", *listed("loss without hint", "base_loss", FORGETS, TITLES)
)
def concatenation_forgets(locked: list[float], *others: list[float]) -> bool:
    """Concatenation forgets what the base could do without a hint."""
    return all(all_below(locked, other) for other in others)


EXPERIMENT = Experiment(
    variants=VARIANTS,
    claims=(as_good_as_concatenation, better_with_little, concatenation_forgets),
    panels=(Panel("1,600 scenes", MUCH_DATA), Panel("100 scenes", LITTLE_DATA)),
    curves=("follows", "score"),
    titles=TITLES,
    **shared.parts_of_left(NAMES),
)

"""Zero convolutions and the copy.

The paper (section 4.2, figure 8) compares (a) the ControlNet, (b) one whose zero convolutions begin
with Gaussian weights, (c) ControlNet-lite, whose blocks are one convolution each. It finds (b)
about as weak as (c), and concludes that training destroys the copied weights; (c) is too weak to
follow hints without a prompt. Section 3.1: zero convolutions keep harmful noise from the base at
the beginning.

(c) differs from (a) in its number of weights as well as in being no copy, and it knows neither t
nor the prompt. So two more variants: a light network with the copy's number of weights (two
convolutions a block, "wide"), and the copy's architecture with random weights. All are trained with
PyTorch's initialisation of the condition encoder and with the scaled one. An initialisation with
which neither of two variants jumps says nothing of them. In a light network nothing leads around a
convolution, so with PyTorch's weights the signal fades as in the condition encoder (the table of
standard deviations). Light networks begin with scaled weights, so that the network is judged and
not its initialisation.

Damage: the loss on held-out pairs at step 0, minus that of the base alone. Repaired: the first
evaluation at which it is no larger. Variants differ where the ranges of their seeds do not meet.

Expected before the first run:
zero convolutions do no damage at step 0; Gaussian ones multiply the loss and repair it within 100
steps. Under PyTorch's start Gaussian convolutions jump sooner than zero ones; under the
variance-keeping start later, and they end lower. The light network jumps as soon as the copy and
ends lower; with the copy's number of weights between the two. A copy with random weights learns,
but ends lower than the copy: at this size by little.

Found:
With the released code's initialisation every variant waits, also the light networks and the copy
with random weights. The wait belongs to what they share, the condition encoder. Gaussian
convolutions shorten it, but damage the base: the repair takes 600 to 1,080 steps, not 100 as
expected. With scaled initialisation they never jump in 400 steps; the light networks jump later
than the copy and score lower, but not in `follows`. Their number of weights is not the reason, as
the wide one is no better. Copying the base's weights does not help: random weights score higher
with both initialisations, and have more objects right with the released one. This says little about
a base that saw billions of pictures: nano's saw one small world.

Note:
The last table has the standard deviation across 16 latents of pure noise at step 0, without hints.
"""

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from torch import nn

from nanocontrol import ControlNet, StableDiffusion
from nanocontrol.experiments import frame
from nanocontrol.experiments.claims import shared
from nanocontrol.experiments.frame import Claim, Experiment, Panel, Variant, claim, names_of
from nanocontrol.experiments.measure import spread
from nanocontrol.experiments.results import Results, all_below, spoken, verdict
from nanocontrol.schedulers import STEPS
from nanocontrol.unet import Block, Downsample

# ---------------------------------------------------------------- networks in the copy's place

# (block, channels that it takes, channels that it gives, stride) -> the block in its place
NewBlock = Callable[[Block, int, int, int], Block]


def one_convolution(old: Block, channels: int, out_channels: int, stride: int) -> Block:
    """ControlNet-lite (section 4.2, figure 8): each block is a single convolution. It knows neither
    t nor the prompt."""
    return Block(nn.SiLU(), nn.Conv2d(channels, out_channels, 3, stride, padding=1))


def as_many_weights(old: Block, channels: int, out_channels: int, stride: int) -> Block:
    """Two convolutions, so wide between them that they have the block's number of weights."""
    weights = sum(p.numel() for p in old.parameters())
    width = round(weights / (9 * (channels + out_channels)))
    first = nn.Conv2d(channels, width, 3, stride, padding=1)
    return Block(nn.SiLU(), first, nn.SiLU(), nn.Conv2d(width, out_channels, 3, padding=1))


@torch.no_grad()
def scaled(old: Block, *shape: int, make: NewBlock) -> Block:
    """The new block with weights as `--hint-init variance` has the condition encoder's."""
    block = make(old, *shape)
    for module in block:
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight).mul_(1.4)
            module.bias.zero_()
    return block


def other_blocks(sd: StableDiffusion, control: ControlNet, make: NewBlock) -> None:
    """Replace the copy's blocks. The first one is a single convolution already."""
    channels = control.skip_channels
    for i in range(1, len(control.input_blocks)):
        old = control.input_blocks[i]
        assert isinstance(old, Block)
        stride = 2 if isinstance(old[0], Downsample) else 1
        control.input_blocks[i] = make(old, channels[i - 1], channels[i], stride)
    control.middle_block = make(control.middle_block, channels[-1], channels[-1], 1)


def random_copy(sd: StableDiffusion, control: ControlNet) -> None:
    """The copy begins with PyTorch's random weights, not with the base's."""
    fresh = ControlNet(control.config)
    for name in ("time_embed", "input_blocks", "middle_block"):
        getattr(control, name).load_state_dict(getattr(fresh, name).state_dict())


CHANGES: dict[str, frame.Change] = {
    "lite": partial(other_blocks, make=partial(scaled, make=one_convolution)),
    "lite wide": partial(other_blocks, make=partial(scaled, make=as_many_weights)),
    "random copy": random_copy,
}
UNDER_PYTORCH = {"zero": shared.PLAIN, "gaussian": shared.GAUSSIAN}
UNDER_PYTORCH |= {name: Variant(name, shared.WAITING, change) for name, change in CHANGES.items()}
UNDER_VARIANCE = {"zero": shared.VARIANCE, "gaussian": shared.GAUSSIAN_SOON}
UNDER_VARIANCE |= {
    name: shared.like_variance(f"{name} variance", to) for name, to in CHANGES.items()
}
BOTH = {"released initialisation": UNDER_PYTORCH, "scaled initialisation": UNDER_VARIANCE}


@torch.no_grad()
def spread_by_block(sd: StableDiffusion, control: ControlNet, n: int = 16) -> list[float]:
    """The standard deviation after each of the copy's blocks, across n latents of pure noise at
    t 999, without a hint."""
    size = sd.size // 8
    x = torch.randn(n, 4, size, size, generator=torch.Generator().manual_seed(0))
    emb = control.embed_time(torch.full((n,), STEPS - 1))
    return [spread(output) for output in control.encode(x, emb, sd.encode_prompts([""] * n))]


def spreads_by_network() -> dict:
    """At step 0, PyTorch's weights next to those of the variants."""
    networks: dict[str, frame.Change | None] = {"copy": None, **CHANGES}
    pytorch = {"lite": one_convolution, "lite wide": as_many_weights}
    for name, make in pytorch.items():
        networks[f"{name}, PyTorch's weights"] = partial(other_blocks, make=make)
    rows = {}
    for name, change in networks.items():
        settings = frame.settings_of(shared.PLAIN, 0)
        sd, control, _ = frame.models_of(Variant(name, change=change), settings)
        rows[name] = spread_by_block(sd, control)
    blocks = [*(str(i) for i in range(len(rows["copy"]) - 1)), "middle"]
    return {"head": ["spread after block", *blocks], "rows": rows}


# ----------------------------------------------------------------------------------- verdicts


@claim("section 3.1", names_of(shared.PLAIN, shared.GAUSSIAN))
def zero_is_harmless(results: Results) -> tuple[str, str]:
    """Zero convolutions do the base no harm at first, Gaussian ones do."""
    base = float(np.mean(results.first(shared.PLAIN.name, "held_out_loss")))
    zero, gaussian = (
        [loss - base for loss in results.first(name, "held_out_loss")]
        for name in names_of(shared.PLAIN, shared.GAUSSIAN)
    )
    curves = results.curves(shared.GAUSSIAN.name, "held_out_loss")
    repaired = [next((step for step, loss in curve if loss <= base), None) for curve in curves]
    ours = f"damage {spoken(zero, 3)}; Gaussian {spoken(gaussian, 3)}, "
    return ours + f"repaired at step {spoken(repaired, 0)}", verdict(all_below(zero, gaussian))


def by_start(results: Results, a: str, b: str) -> tuple[str, dict[str, tuple[list, list]]]:
    """`follows` at the end of two variants with both initialisations: in words, and the values for
    each initialisation with which one of them jumps."""
    texts, found = [], {}
    for start, variants in BOTH.items():
        names = variants[a].name, variants[b].name
        ours, other = (results.values(name, "follows") for name in names)
        texts.append(f"{start}: {a} {spoken(ours)}, {b} {spoken(other)}")
        if any(np.isfinite(results.jumps(name)).any() for name in names):
            found[start] = ours, other
    return "; ".join(texts), found


def zero_above(text: str, evidence: str, other: str) -> Claim:
    """Whether the plain ControlNet ends better than this one."""

    def judge(results: Results) -> tuple[str, str]:
        ours, found = by_start(results, "zero", other)
        where = [start for start, (zero, others) in found.items() if all_below(others, zero)]
        if where and len(where) < len(found):
            (elsewhere,) = found.keys() - {*where}
            return ours, f"reproduced with {where[0]}, not with {elsewhere}"
        return ours, verdict(bool(where))

    return Claim(text, evidence, judge, with_both("zero", other))


def with_both(*names: str) -> tuple[str, ...]:
    return tuple(variants[name].name for variants in BOTH.values() for name in names)


@claim("section 4.2, figure 8", with_both("gaussian", "lite"))
def gaussian_is_like_lite(results: Results) -> tuple[str, str]:
    """A ControlNet with Gaussian convolutions performs like ControlNet-lite."""
    ours, found = by_start(results, "gaussian", "lite")
    return ours, verdict(not any(all_below(a, b) or all_below(b, a) for a, b in found.values()))


EXPERIMENT = Experiment(
    variants=(*UNDER_PYTORCH.values(), *UNDER_VARIANCE.values()),
    titles={shared.PLAIN.name: "zero", shared.VARIANCE.name: "zero variance"},
    claims=(
        zero_is_harmless,
        zero_above(
            "Zero convolutions end better than Gaussian ones", "section 4.2, figure 8", "gaussian"
        ),
        gaussian_is_like_lite,
        zero_above("ControlNet-lite is weaker", "section 4.2, figure 8, tables 1 to 3", "lite"),
        zero_above(
            "It would be with as many weights, too",
            "none (its light network is smaller)",
            "lite wide",
        ),
        zero_above("The copied weights matter", "section 3.1 (no experiment)", "random copy"),
    ),
    once=spreads_by_network,
    panels=(
        Panel("PyTorch's initialisation", names_of(*UNDER_PYTORCH.values())),
        Panel("scaled Kaiming initialisation", names_of(*UNDER_VARIANCE.values())),
    ),
)

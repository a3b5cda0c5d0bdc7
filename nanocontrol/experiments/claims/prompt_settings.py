"""Prompts, ways of control, guidance.

The paper (arXiv v1, experimental settings): pictures are made with no prompt, with a default one
("a professional, detailed, high-quality image"), with an automatic one (a caption of what the
default one gave) and with the user's. Its guidance is 9. (The printed one, section 4.2, has none,
an insufficient one, which is the default, a conflicting one, which limits.py tries, and a perfect
one, and says that a ControlNet succeeds with all four.) Section 3.4, figure 5: without a prompt
the control is in both halves of the guidance, which then strengthens nothing, so it is given to the
prompted half alone, weighted by resolution (CFG-RW); the original's guess mode is another way.

Here, with the Canny ControlNet that was bundled with each base, and no training:

- default: "on a background", words of the world that name neither object nor colour
- automatic: what the detector and the nearest colours say of the picture made with the default one
- user's: the scene's own prompt

Guidance is 2.5, nano's own; with no prompt and with the user's also 1, 5 and 9. (Without a prompt
and with the control in both halves, guidance changes nothing: both halves are equal.)

Settings differ where the ranges of their seeds of noise do not meet. Trainings of these
ControlNets ended with few dropped prompts (weights/README.md), so that they read hints alone less
well than they might.

Expected before the first run:
every word helps: the share of right kinds and places rises from none over default and automatic to
the user's; the default is little better than none. Without a prompt guess mode and resolution
weighting are better than plain, weighting more; with the user's prompt plain is best, since then
nothing is missing, and the two ways overdraw. Guidance of 5 costs a little, 9 a lot: nano draws
worse with it, by its own base's fault, not by the control's.

Found:
Without a prompt this ControlNet draws almost 90 % of the objects as the hint has them.
[Resolution weighting](../tools/README.md) beats plain control and guess mode, as the paper says,
but only at nano's guidance of 2.5: at 5 guess mode is level, at 9 it is better. More words do not
always help: the default and the automatic prompt are worse than none. nano never saw a prompt like
the default one, which names no object; the automatic one describes a faulty picture. Resolution
weighting makes up for most of it. With the user's prompt guidance 9 costs some exactness of the
edges and nothing in `follows`. Each seed of noise alone gives the same verdicts.
"""

from functools import partial

import numpy as np
from torch import Tensor

from nanocontrol.experiments.frame import Chart, Experiment, Row, comparison
from nanocontrol.experiments.measure import bundled, kinds_seen, nano, pictures, shown
from nanocontrol.experiments.results import all_below, listed
from nanocontrol.nano.follows import nearest_colours
from nanocontrol.nano.scenes import held_out_scenes
from nanocontrol.nano.world import COLOURS, KINDS, Scene, article
from nanocontrol.training.measure import border

DEFAULT = "on a background"
PROMPTS = ("none", "default", "automatic", "user's")
WAYS = {"plain": {}, "guess": {"guess": True}, "weighted": {"resolution_weighting": True}}
OWN, OTHERS = 2.5, (1, 5, 9)
SMALLEST = 0.01  # of a picture: a kind that is seen on less is not named
NUMBERS = {
    "placed": "kind and place",
    "score": "score",
    "follows": "`follows`",
    "colours": "prompted colours",
}


def caption(picture: Tensor, kinds: np.ndarray) -> str:
    """picture [3, H, W] in [-1, 1], kinds [H, W] as the detector sees them -> each kind that it
    sees, the largest first, in the colour that most of its pixels are nearest to."""
    pixels = ((picture + 1) / 2).permute(1, 2, 0).numpy()
    names, nearest = list(COLOURS), nearest_colours(pixels)
    edge = ((border(picture).T + 1) / 2).numpy()
    wall = names[np.bincount(nearest_colours(edge)).argmax()]
    sizes = np.bincount(kinds.ravel(), minlength=len(KINDS) + 1)
    seen = sorted(range(1, len(KINDS) + 1), key=lambda kind: -sizes[kind])
    things = []
    for kind in seen[:2]:  # prompts of this world name one object or two
        if sizes[kind] > SMALLEST * kinds.size:
            colour = names[np.bincount(nearest[kinds == kind]).argmax()]
            things.append(f"{article(colour)} {colour} {KINDS[kind - 1]}")
    return f"{' and '.join(things)} on {article(wall)} {wall} background".strip()


def prompts_for(setting: str, scenes: list[Scene], hints: Tensor, seed: int) -> list[str]:
    if setting == "automatic":
        control = [(bundled("canny"), hints, 1.0)]
        made = pictures([DEFAULT] * len(scenes), control, seed)
        return [caption(picture, kinds) for picture, kinds in zip(made, kinds_seen(made))]
    same = {"none": "", "default": DEFAULT}
    return [same.get(setting, scene.prompt) for scene in scenes]


def with_setting(setting: str, way: str, scale: float, n: int, seed: int) -> dict:
    _, hints, _, scenes = held_out_scenes("canny", n, size=nano().size)
    prompts = prompts_for(setting, scenes, hints, seed)
    control = [(bundled("canny"), hints, 1.0)]
    return shown("canny", pictures(prompts, control, seed, scale=scale, **WAYS[way]), scenes)


def row_name(setting: str, way: str, scale: float = OWN) -> str:
    return f"{setting}, {way}" + (f", guidance {scale}" if scale != OWN else "")


def rows() -> list[Row]:
    settings = [(setting, way, OWN) for setting in PROMPTS for way in WAYS]
    settings += [
        (setting, way, g) for g in OTHERS for setting in ("none", "user's") for way in WAYS
    ]
    return [
        Row(row_name(*which), partial(with_setting, *which))
        for which in settings
        if which[:2] != ("none", "plain") or which[2] == OWN
    ]


AT_OWN = tuple(row_name(setting, way) for setting in PROMPTS for way in WAYS)
PLAINLY = tuple(row_name(setting, "plain") for setting in PROMPTS)
WITHOUT, WITH = (tuple(row_name(s, way) for way in WAYS) for s in ("none", "user's"))


def at_scales(setting: str, way: str) -> tuple[str, ...]:
    return tuple(row_name(setting, way, scale) for scale in (1, OWN, 5, 9))


SCALES = at_scales("user's", "plain")


@comparison(
    "arXiv v1, experimental settings (pictures)", *listed("right kind and place", "placed", PLAINLY)
)
def prompts_help(*found: list[float]) -> bool:
    """The more a prompt says, the better it is drawn.

    Holds if the mean rises from each setting to the next, and every seed from first to last.
    """
    means = [np.mean(values) for values in found]
    return means == sorted(means) and all_below(found[0], found[-1])


@comparison(
    "section 3.4, figure 5 (one picture)", *listed("right kind and place", "placed", WITHOUT)
)
def weighting_is_better(*found: list[float]) -> bool:
    """Without a prompt, resolution weighting is better than plain and guess mode."""
    return all(all_below(other, found[2]) for other in found[:2])


@comparison("none", *listed("`follows`", "follows", WITH))
def plain_is_best_with_prompt(plain: list[float], *others: list[float]) -> bool:
    """With a prompt, plain is better than both."""
    return all(all_below(other, plain) for other in others)


@comparison(
    "arXiv v1, experimental settings (its guidance)", *listed("`follows`", "follows", SCALES)
)
def nine_is_as_good(*by_scale: list[float]) -> bool:
    """Guidance 9 is as good as less."""
    return not all_below(by_scale[3], by_scale[1])


def by_guidance(setting: str, way: str) -> Chart:
    numbers = ("placed", "score", "follows")
    return Chart(f"{setting}, {way}", at_scales(setting, way), numbers, joined=True)


EXPERIMENT = Experiment(
    claims=(prompts_help, weighting_is_better, plain_is_best_with_prompt, nine_is_as_good),
    rows=tuple(rows()),
    numbers=NUMBERS,
    titles={name: f"{name}, guidance {OWN}" for name in AT_OWN},
    charts=(
        Chart(f"guidance {OWN}", AT_OWN, tuple(NUMBERS)),
        by_guidance("user's", "plain"),
        by_guidance("none", "weighted"),
        by_guidance("none", "guess"),
    ),
)

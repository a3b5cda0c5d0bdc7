"""The four prompt settings, three ways to apply the control, and guidance.

The paper (arXiv v1, experimental settings): pictures are made with no prompt, with a default one
("a professional, detailed, high-quality image"), with an automatic one (a caption of what the
default one gave) and with the user's. Its guidance is 9. (The printed one, section 4.2, has none,
an insufficient one, which is the default, a conflicting one, which limits.py tries, and a perfect
one, and says that a ControlNet succeeds with all four.) Section 3.4, figure 5: without a prompt
the control is in both halves of the guidance, which then strengthens nothing, so it is given to the
prompted half alone, weighted by resolution (CFG-RW); the original's guess mode is another way.

Here, with the bundled ControlNet for Canny edges and no training:

default     "on a background": words of the world that name neither thing nor colour
automatic   what the detector and the nearest colours say of the picture made with the default one
user's      the scene's own prompt

guidance 2.5, nano's own; and 1, 5 and 9 with the first and the last. (Without a prompt and with the
control in both halves, guidance changes nothing: both halves are equal.)

Settings differ where the ranges of their seeds of noise do not meet. The ControlNet's training
ended with few empty prompts (weights/README.md), so that it reads hints alone less well than it
might.
"""

from functools import partial

import numpy as np
from torch import Tensor

from nanocontrol.experiments.experiment import Chart, Claim, Experiment, Row
from nanocontrol.experiments.numbers import apart
from nanocontrol.experiments.pictures import bundled, kinds_seen, nano, pictures, shown
from nanocontrol.experiments.results import Results
from nanocontrol.nano.follows import nearest_colours
from nanocontrol.nano.scenes import held_out_scenes
from nanocontrol.nano.world import COLOURS, KINDS, Scene, article
from nanocontrol.training.measure import border

EXPECTED = """
every word helps: the share of right kinds and places rises from none over default and automatic to
the user's; the default is little better than none. Without a prompt guess mode and resolution
weighting are better than plain, weighting more; with the user's prompt plain is best, since then
nothing is missing, and the two ways overdraw. Guidance of 5 costs a little, 9 a lot: nano draws
worse with it, by its own base's fault, not by the control's.
"""

DEFAULT = "on a background"
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
    """picture [3, H, W] in [-1, 1], kinds [H, W]: what the detector sees where -> each kind that it
    sees, the largest first, in the colour that most of its pixels are nearest to."""
    pixels = ((picture + 1) / 2).permute(1, 2, 0).numpy()
    names, nearest = list(COLOURS), nearest_colours(pixels)
    edge = ((border(picture).T + 1) / 2).numpy()
    wall = names[np.bincount(nearest_colours(edge)).argmax()]
    sizes = np.bincount(kinds.ravel(), minlength=len(KINDS) + 1)
    seen = sorted(range(1, len(KINDS) + 1), key=lambda kind: -sizes[kind])
    things = []
    for kind in seen[:2]:  # (prompts of this world name one thing or two)
        if sizes[kind] > SMALLEST * kinds.size:
            colour = names[np.bincount(nearest[kinds == kind]).argmax()]
            things.append(f"{article(colour)} {colour} {KINDS[kind - 1]}")
    return f"{' and '.join(things)} on {article(wall)} {wall} background".strip()


def prompts_for(setting: str, scenes: list[Scene], hints: Tensor, seed: int) -> list[str]:
    if setting == "automatic":
        control = [(bundled("canny"), hints, 1.0)]
        made = pictures(nano(), [DEFAULT] * len(scenes), control, seed)
        return [caption(picture, kinds) for picture, kinds in zip(made, kinds_seen(made))]
    same = {"none": "", "default": DEFAULT}
    return [same.get(setting, scene.prompt) for scene in scenes]


def measure(setting: str, way: str, scale: float, n: int, seed: int) -> dict:
    _, hints, _, scenes = held_out_scenes("canny", n, size=nano().size)
    prompts = prompts_for(setting, scenes, hints, seed)
    control = [(bundled("canny"), hints, 1.0)]
    return shown("canny", pictures(nano(), prompts, control, seed, scale, **WAYS[way]), scenes)


def name_of(setting: str, way: str, scale: float = OWN) -> str:
    return f"{setting}, {way}" + (f", guidance {scale}" if scale != OWN else "")


def rows() -> list[Row]:
    settings = ("none", "default", "automatic", "user's")
    own = [(setting, way, OWN) for setting in settings for way in WAYS]
    others = [(setting, way, g) for g in OTHERS for setting in ("none", "user's") for way in WAYS]
    return [
        Row(name_of(*which), partial(measure, *which), 2 if which[0] == "automatic" else 1)
        for which in own + [which for which in others if which[:2] != ("none", "plain")]
    ]


ROWS = rows()
AT_OWN = tuple(row.name for row in ROWS if "guidance" not in row.name)


def do_prompts_help(results: Results) -> tuple[str, str]:
    """Whether each setting is above the one before, plainly applied, in the mean, and the user's
    above none with every seed."""
    names = [name_of(s, "plain") for s in ("none", "default", "automatic", "user's")]
    found = [results.values(name, "placed") for name in names]
    means = [np.mean(values) for values in found]
    rises = means == sorted(means) and max(found[0]) < min(found[-1])
    ours = f"right kind and place: {results.in_words('placed', names)}"
    return ours, "reproduced" if rises else "not reproduced"


def is_weighting_better(results: Results) -> tuple[str, str]:
    names = [name_of("none", way) for way in WAYS]
    plain, guess, weighted = (results.values(name, "placed") for name in names)
    ours = f"right kind and place: {results.in_words('placed', names)}"
    better = min(weighted) > max(plain) and min(weighted) > max(guess)
    return ours, "reproduced" if better else "not reproduced"


def is_plain_best_with_prompt(results: Results) -> tuple[str, str]:
    names = [name_of("user's", way) for way in WAYS]
    plain, *others = (results.values(name, "follows") for name in names)
    ours = f"`follows`: {results.in_words('follows', names)}"
    best = all(min(plain) > max(other) for other in others)
    return ours, "reproduced" if best else "not reproduced"


def is_nine_as_good(results: Results) -> tuple[str, str]:
    names = [name_of("user's", "plain", scale) for scale in (1, OWN, 5, 9)]
    found = [results.values(name, "follows") for name in names]
    ours = f"`follows`: {results.in_words('follows', names)}"
    worse = apart(found[-1], found[1]) and np.mean(found[-1]) < np.mean(found[1])
    return ours, "not reproduced" if worse else "reproduced"


def by_guidance(setting: str, way: str) -> Chart:
    names = tuple(name_of(setting, way, scale) for scale in (1, OWN, 5, 9))
    return Chart(f"{setting}, {way}", names, ("placed", "score", "follows"), joined=True)


EXPERIMENT = Experiment(
    name="prompt_settings",
    expected=EXPECTED,
    arms=(),
    claims=(
        Claim(
            "the more a prompt says, the better it is drawn",
            "arXiv v1, experimental settings (pictures)",
            do_prompts_help,
        ),
        Claim(
            "without a prompt, resolution weighting is better than plain and guess mode",
            "section 3.4, figure 5 (one picture)",
            is_weighting_better,
        ),
        Claim("with a prompt, plain is better than both", "none", is_plain_best_with_prompt),
        Claim(
            "guidance 9 is as good as less",
            "arXiv v1, experimental settings (its guidance)",
            is_nine_as_good,
        ),
    ),
    sampled=tuple(ROWS),
    numbers=NUMBERS,
    titles={name: f"{name}, guidance {OWN}" for name in AT_OWN},
    charts=(
        Chart(f"guidance {OWN}", AT_OWN, tuple(NUMBERS)),
        by_guidance("user's", "plain"),
        by_guidance("none", "weighted"),
        by_guidance("none", "guess"),
    ),
)

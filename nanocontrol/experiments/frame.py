"""The frame of the experiments: what a file in claims/ says, and how a variant is trained."""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import train
from nanocontrol import DDPM, ControlNet, StableDiffusion
from nanocontrol.experiments.results import Results, verdict, with_infinity
from nanocontrol.nano.scenes import Scenes
from nanocontrol.plumbing import machine
from nanocontrol.training.cache import batches_from
from nanocontrol.training.processes import Processes

ORDER = (
    "sudden_convergence zero_convolutions cause rule encoder_at_size middle unlocked data_size "
    "prompt_dropout prompt_settings concatenation limits nine_conditions"
).split()
FOUND = {file.stem for file in Path(__file__).with_name("claims").glob("*.py")}
NAMES = (*ORDER, *sorted(FOUND - {*ORDER, "__init__", "shared"}))  # new ones come last
# The plain training: the released code's initialisation, 8 pairs of Canny edges in a step.
DEFAULTS: dict[str, Any] = {
    "hint_init": "pytorch",
    "steps": 1000,
    "batch_size": 8,
    "lr": 1e-3,
    "schedule": "constant",
    "scenes": train.SCENES,
    "sample_every": 50,
    "save_every": 50,
    "dtype": "fp32",  # on a GPU as well
}
Numbers = dict[str, float | None]
Judge = Callable[[Results], tuple[str, str]]

# -------------------------------------------------------------------------------- a variant

# Changes the networks in place; a ControlNet that it returns is trained in the other's place.
Change = Callable[[StableDiffusion, ControlNet], ControlNet | None]
OfT = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Variant:
    """A training that differs from the plain one in what its name says. Experiments that share a
    variant train it once."""

    name: str  # of its folders as well
    settings: Mapping[str, Any] = field(default_factory=dict)  # where they differ from DEFAULTS
    change: Change | None = None  # before the first step
    weight: OfT | None = None  # t [B] -> the factor of each pair's loss [B]
    draw: OfT | None = None  # t [B], uniform in 0..999 -> the t to train at [B]
    continues: "Variant | None" = None  # it begins with this one's ControlNet of the same seed
    version: int = 1  # raise it when what is computed changes: older runs no longer count


def names_of(*variants: Variant) -> tuple[str, ...]:
    return tuple(variant.name for variant in variants)


def folder_of(variant: Variant, seed: int, root: Path) -> Path:
    return root / f"{variant.name.replace(' ', '-')}-{seed}"


def settings_of(variant: Variant, seed: int, out: Path = Path("unused")) -> train.Settings:
    """out: the run's folder, next to those of all other variants."""
    given = DEFAULTS | dict(variant.settings) | {"seed": seed}
    if variant.continues:
        before = folder_of(variant.continues, seed, out.parent.absolute())
        given["init_control"] = str(before / "control.safetensors")
    return replace(train.resolve(given), out=str(out.absolute()))


def models_of(variant: Variant, settings: train.Settings) -> tuple:
    """In the place of train.models: its networks with the variant's change."""
    sd, control, trained = train.models(settings)
    machine.exact_float32()  # TF32 rounds off the little that the encoder passes on at first
    like = next(control.parameters())
    if variant.change:
        control = variant.change(sd, control) or control
    control.to(like)  # new layers too
    return sd, control, trained | {"control": control}


def loss_of(variant: Variant, *given: Any) -> Tensor:
    """In the place of train.training_loss, with its arguments: one loss per pair [B], at the
    variant's t and with its weights."""
    unet, control, diffusion, scale_factor, batch, draws, empty = given
    if variant.draw:
        draws = draws._replace(t=variant.draw(draws.t))
    each = train.training_loss(unet, control, diffusion, scale_factor, batch, draws, empty)
    return variant.weight(draws.t).to(each) * each if variant.weight else each


def first_steps(variant: Variant, n: int) -> Iterator[ControlNet]:
    """A training's steps, without end, on n batches of encoded scenes, again and again. Each is
    interrupted after its backward pass, when gradients can be read."""
    settings = settings_of(variant, 0)
    sd, control, trained = models_of(variant, settings)
    optimizer, pairs = train.optimizer_for(settings, trained), settings.batch_size
    scenes = Scenes("canny", n=pairs, size=sd.size)
    with torch.no_grad():
        empty = sd.encode_prompts("")
    order = settings.seed, n, pairs, 1, ""
    batches = batches_from(0, sd, scenes, Processes(settings.device), settings.device, *order)
    given = variant, sd.unet, control, DDPM(sd.prediction, settings.device), sd.scale_factor
    for step, batch in enumerate(cycle([*islice(batches, n)])):
        draws = train.random_draws(0, step, pairs, (sd.size, sd.size), settings.drop_prompt)
        loss = loss_of(*given, batch, draws.of(slice(None), settings.device), empty).mean()
        optimizer.backward(loss)
        yield control
        optimizer.step(loss.detach()).item()  # which waits for a GPU


# --------------------------------------------------------------------------- an experiment


class Claim(NamedTuple):
    """A row of the table of claims. judge: our numbers in words, and the verdict."""

    claim: str
    evidence: str  # whose, and where it stands; or "none ..."
    judge: Judge
    compares: tuple[str, ...] | None = None  # variants and rows that must have run; None: all

    def judged(self, results: Results) -> tuple[str, str]:
        """A claim that nobody made cannot be reproduced: it is seen here, or not."""
        ours, verdict = self.judge(results)
        claimed = not self.evidence.startswith("none")
        return ours, verdict if claimed else verdict.replace("reproduced", "seen")


def claim(evidence: str, compares: tuple[str, ...] | None = None) -> Callable[[Judge], Claim]:
    """Decorate a judge: the first paragraph of its docstring is the claim. compares: as Claim's."""
    return lambda judge: Claim(claim_of(judge), evidence, judge, compares)


def comparison(
    evidence: str, text: str, samples: Sequence[tuple[str, str]]
) -> Callable[[Callable[..., bool | str]], Claim]:
    """Decorate a rule: a function of the samples' values, which says whether the claim holds, or
    else the verdict itself.

    samples: (variant or row, number), each with a value for every seed; text: our numbers in words,
    with a place {} for each sample.
    """

    def claim_by(rule: Callable[..., bool | str]) -> Claim:
        def judge(results: Results) -> tuple[str, str]:
            found = rule(*(with_infinity(results.values(*sample)) for sample in samples))
            ours = text.format(*(results.spoken(*sample) for sample in samples))
            return ours, found if isinstance(found, str) else verdict(found)

        names = tuple(dict.fromkeys(name for name, _ in samples))
        return Claim(claim_of(rule), evidence, judge, names)

    return claim_by


def claim_of(function: Callable) -> str:
    return " ".join((function.__doc__ or "").split("\n\n")[0].split()).removesuffix(".")


class Panel(NamedTuple):
    """A column of the plot: the curves of these variants over the steps."""

    title: str
    variants: tuple[str, ...]


class Chart(NamedTuple):
    """A part of the plot: the last value of some numbers, for these variants or rows."""

    title: str
    names: tuple[str, ...]
    numbers: tuple[str, ...]
    joined: bool = False  # by a line, where the names are a quantity that grows


class Row(NamedTuple):
    """A row of numbers that takes no training: pictures are made and measured."""

    name: str
    measure: Callable[[int, int], Numbers]  # of that many scenes, with the noise of that seed
    version: int = 1  # as a variant's


@dataclass(frozen=True)
class Experiment:
    """Its name and its page are its file's name and docstring."""

    claims: tuple[Claim, ...]
    variants: tuple[Variant, ...] = ()
    rows: tuple[Row, ...] = ()
    afterwards: Callable[[StableDiffusion, ControlNet], Numbers] | None = None  # of a trained run
    once: Callable[[], dict] | None = None  # a table that takes no training: `head` and `rows`
    numbers: Mapping[str, str] = field(default_factory=dict)  # of afterwards or rows: titles
    titles: Mapping[str, str] = field(default_factory=dict)  # of variants with another name here
    panels: tuple[Panel, ...] = ()
    curves: tuple[str, ...] = ("follows", "score", "control_gain", "loss")  # rows of the panels
    charts: tuple[Chart, ...] = ()
    settled: bool = False  # by its first base: it need not be run on others
    front: tuple[str, ...] = ()  # these curves of the first panel are a small plot of their own
    name: str = ""
    page: str = ""  # the title, what is asked, expected, and found

    @property
    def names(self) -> list[str]:
        """All variants and rows."""
        return [variant.name for variant in self.variants] + [row.name for row in self.rows]

    @property
    def parts(self) -> list[str]:
        """The page's title, what it asks, what was expected, what was found, and maybe a note."""
        title, rest = self.page.strip().split("\n\n", 1)
        heading = r"\n\n(?:Expected before the first run|Found|Note):\n"
        return [title.removesuffix("."), *re.split(heading, rest)]

    def title_of(self, name: str) -> str:
        return self.titles.get(name, name)


def experiment_of(name: str) -> Experiment:
    module = import_module(f"nanocontrol.experiments.claims.{name}")
    return replace(module.EXPERIMENT, name=name, page=module.__doc__)

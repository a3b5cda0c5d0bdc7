"""Why does a ControlNet not follow? What a run's folder and its data tell.

    python -m nanocontrol.tools.doctor RUN
        the most likely cause, with its evidence, or that the run looks healthy, and where it is
    python -m nanocontrol.tools.doctor RUN --hint FILE
        a picture that is to be followed, beside the hints of the training

Faults are looked for in this order: hints (constant, shifted or scaled against their pictures,
mostly white, of another condition than the run says, of other pictures), captions, what the base
predicts, the learning rate, the number of steps. It reads settings.json, log.jsonl and metrics.json
of the run and at most 32 of its pairs. Only the losses of the base, without a ControlNet, are
computed. Exit status 0 whenever a report was printed.
"""

import argparse
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from nanocontrol import DDPM, InputError, StableDiffusion
from nanocontrol.checkpoint import load_sd
from nanocontrol.nano.model import UNET
from nanocontrol.nano.scenes import Scenes
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.errors import blame, one_sentence
from nanocontrol.plumbing.flags import device
from nanocontrol.plumbing.pictures import picture_size, read_picture, size_to_sample
from nanocontrol.plumbing.tensors import open_tensors
from nanocontrol.schedulers import STEPS
from nanocontrol.tools.hints import (
    KINDS,
    Looks,
    Place,
    Training,
    could_be,
    differences,
    looks_of,
    place_of,
    usual,
)
from nanocontrol.training.check import FLAT, OTHERS, WHITE, agreement, edges_of, spread
from nanocontrol.training.measure import mean_latents, step_of_jump
from nanocontrol.training.pairs import Folder, Pairs, View, held_out_of
from nanocontrol.training.run import measured
from nanocontrol.training.watch import TOO_MANY

PAIRS, PAIRS_OF_LARGE = 32, 16  # that are looked at; with a base of Stable Diffusion's size
NEEDED = {
    "base",
    "data",
    "hints",
    "size",
    "condition",
    "init_control",
    "steps",
    "lr",
    "prediction",
    "seed",
}
PREDICTIONS = "eps", "v"
OWN, OTHER, EMPTY = range(3)  # prompts

ENOUGH = 8  # pairs, to tell whether hints or captions belong to others
SURE = 3.0  # standard errors
WRONG = 0.5  # loss of a base that predicts something else: about 1, that of a guess
# Control gain, in shares of the loss, of a ControlNet that follows, measured on 8 pairs; on fewer
# there is more by chance.
FOLLOWS, MEASURED = 0.05, 8
FEW = 20  # losses of steps, whose mean tells nothing yet if they are fewer
DIVERGED = 2.0  # times the base's own loss
LATE = 1.5  # times the steps until the jump, when it is overdue
FAR = 10.0  # times the usual learning rate, or a tenth of it
# AdamW moves a weight by about the learning rate at a step. The usual rate, and rate times steps
# until the jump: of nano's runs with the defaults of train.py (150 to 250 steps), and what the
# original's guide expects (3,000 to 7,000 steps of 1e-5).
NANO_COURSE = 1e-3, 0.15, 0.25
COURSE = 1e-5, 0.03, 0.07


class Finding(NamedTuple):
    verdict: str  # a sentence
    evidence: list[str]
    advice: str


class Run(NamedTuple):
    """What a training left."""

    folder: Path
    settings: dict[str, Any]
    log: list[dict[str, Any]]
    metrics: dict[str, Any]  # empty: it did not come to its end
    held_out: int = MEASURED  # pairs that the log's numbers are of

    def measured(self, name: str) -> list[tuple[int, float]]:
        return measured(self.log, name)

    @property
    def steps(self) -> int:
        """How many were done."""
        return max((entry["step"] for entry in self.log), default=0)

    @property
    def gain(self) -> tuple[float, float] | None:
        """The last control gain and held-out loss; None if they were not measured."""
        for entry in (self.metrics, *reversed(self.log)):
            gain, loss = entry.get("control_gain"), entry.get("held_out_loss")
            if gain is not None and loss is not None:
                return gain, loss
        return None

    @property
    def enough(self) -> float:
        """Of control gain, in shares of the loss, to be sure that it follows."""
        return FOLLOWS * MEASURED / self.held_out

    @property
    def follows(self) -> bool:
        if self.gain is None:  # of one held-out pair alone; a score may tell
            return bool(self.measured("score")) and step_of_jump(self.measured) is not None
        return self.gain[0] > self.enough * self.gain[1]

    @property
    def way(self) -> float:
        """About how far AdamW can have moved a weight: by the learning rate at every step."""
        return self.settings["lr"] * self.steps


class Seen(NamedTuple):
    """Some of a run's pairs, as training sees them."""

    images: list[Tensor]  # [3, H, W] in [-1, 1] each
    hints: list[Tensor]  # [3, H, W] in [0, 1] each
    prompts: list[str]


# ---------------------------------------------------------------------------------- reading


def read_run(folder: Path) -> Run:
    settings = read_json(folder / "settings.json")
    if not NEEDED <= settings.keys():
        raise InputError(
            f"{folder} is not a ControlNet's run: its settings.json has no "
            f"{min(NEEDED - settings.keys())}; expected a folder that train.py left"
        )
    log = []
    try:
        lines = (folder / "log.jsonl").read_text().splitlines()
        log = [
            json.loads(line) for line in lines if line.endswith("}")
        ]  # (the last may be cut off)
        if not all("step" in entry for entry in log):
            raise ValueError("entries without a step")
    except (OSError, ValueError) as error:
        raise InputError(f"{folder / 'log.jsonl'} cannot be read ({error})") from None
    ended = (folder / "metrics.json").exists()
    return Run(folder, settings, log, read_json(folder / "metrics.json") if ended else {})


def read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict):
        raise InputError(f"{file} is missing or damaged; expected a folder that train.py left")
    return content


def size_of(run: Run) -> tuple[int, int]:
    """Width and height of the training's pictures."""
    if run.settings["size"]:
        width, height = run.settings["size"].split("x")
        return int(width), int(height)
    return (base_size(run),) * 2


def base_size(run: Run) -> int:
    with blame("--base"):
        return open_tensors(run.settings["base"]).metadata.get("size", 512)


def pairs_of(run: Run) -> Pairs:
    """All of its pairs, the held-out ones too."""
    if not run.settings["data"]:
        return Scenes(run.settings["condition"], size=size_of(run)[0])
    with blame("--data"):
        view = View(size_of(run), hints=run.settings["hints"], seed=run.settings["seed"])
        folder = Folder(map(Path, run.settings["data"]), view)
        if folder.wrong:
            raise InputError(folder.wrong[0])
    return folder


def look(pairs: Pairs, most: int) -> Seen:
    """At so many of them, from everywhere; of drawn scenes the first."""
    numbers = spread(len(pairs), most) if isinstance(pairs, Folder) else range(most)
    with blame("--data"):
        some = [pairs[i] for i in numbers]
    images, hints, prompts = zip(*some)
    return Seen([*images], [*hints], [*prompts])


def condition_of(run: Run) -> str | None:
    """What the run says that its hints are; None: nothing."""
    if run.settings["condition"] or not run.settings["init_control"]:
        return run.settings["condition"]
    with blame("--init-control"):
        return open_tensors(run.settings["init_control"]).metadata.get("condition")


# ------------------------------------------------------------------------------------ hints


def about_hints(seen: Seen, condition: str | None, made: bool, learnt: bool) -> Iterator[Finding]:
    """condition: the one that the run says; made: the hints are made from the pictures, and so of
    no others; learnt: whether the ControlNet has learnt to follow them: whatever they look like,
    they are right."""
    n, looks = len(seen.hints), [looks_of(hint) for hint in seen.hints]
    flat = sum(one.deviation < FLAT for one in looks)
    ((_, same),) = Counter(hint.numpy().tobytes() for hint in seen.hints).most_common(1)
    if max(flat, same if n > 1 else 0) > n / 2:
        how = f"{flat} of {n} hints are one colour all over"
        if n > 1 and same > n / 2:
            how = f"{same} of {n} hints are the same picture"
        yield Finding(
            "The hints are constant: nothing can be learnt from them.",
            [how],
            "make the hints anew, and look at them (check_data leaves a sheet)",
        )
        return
    edges = [
        (edges_of((image + 1) / 2), edges_of(hint)) for image, hint in zip(seen.images, seen.hints)
    ]
    place = place_of(*zip(*edges))
    margins = np.array([margin(edges, i) for i in range(n)])
    if place.moved:
        yield about_place(place, n)
    yield from about_looks(usual(looks), n, condition, learnt)
    foreign = n >= ENOUGH and not is_above_zero(margins)
    if foreign and not place.moved and not made and not learnt:
        yield Finding(
            "The hints belong to other pictures: they are shuffled.",
            [
                f"the edges of {n} hints agree with those of their own pictures (correlation "
                f"{place.unmoved:.2f}) no better than with those of others "
                f"({place.unmoved - margins.mean():.2f})",
                "no shift and no scale makes them agree better",
            ],
            "look at the pairs (check_data leaves a sheet): which hint is beside which picture?",
        )


def margin(edges: list[tuple[Tensor, Tensor]], i: int) -> float:
    """How much better hint i agrees with its own picture than with others."""
    n, (picture, hint) = len(edges), edges[i]
    others = [agreement(hint, edges[(i + k) % n][0]) for k in range(1, min(OTHERS, n - 1) + 1)]
    return agreement(hint, picture) - float(np.mean(others or [0.0]))


def is_above_zero(values: np.ndarray) -> bool:
    """Whether their mean is, surely."""
    return bool(values.mean() > SURE * values.std() / len(values) ** 0.5)


def about_looks(common: Looks, n: int, condition: str | None, learnt: bool) -> Iterator[Finding]:
    """common: the medians of n hints."""
    if condition in KINDS and could_be(condition, common):
        return
    evidence = [f"the {n} hints look like {described(common)}"]
    if condition in KINDS:
        kind, (thin, thick) = KINDS[condition]
        width = f", {thin:g} or more pixels wide" * (thin > 0) or ", thin" * (thick < 100)
        evidence.append(f"the run says {condition}: {kind}{width}")
    inverted = common._replace(mean=1 - common.mean, white=common.black, black=common.white)
    if common.white > WHITE and not learnt:
        fits = condition in KINDS and could_be(condition, inverted)
        evidence += ["inverted they would fit"] if fits else []
        yield Finding(
            "The hints are mostly white: inverted, most likely.",
            [f"{common.white:.0%} of a hint is white (median)", *evidence],
            "invert the hints, as lines are white on black (unless dark lines on white are meant: "
            "then hints must be so in sample.py too)",
        )
    elif condition in KINDS:
        yield Finding(
            "The hints are of another condition than the run says.",
            evidence,
            "give the hints of this condition with --data, or begin with a ControlNet for these "
            "hints, or with none (--init-control)",
        )


def described(looks: Looks) -> str:
    """In words and numbers."""
    names = [name for name in KINDS if could_be(name, looks)]
    of = f" (as those of {' or '.join(names)})" if names else ""
    lines = f", {looks.width:.1f} pixels wide" if looks.has_lines else ""
    return f"{looks.kind}{lines}{of}; mean {looks.mean:.2f}"


def about_place(place: Place, n: int) -> Finding:
    """n: of how many pairs it is the place."""
    shift = [
        f"{abs(share):.0%} of the picture to the {way[share < 0]}"
        for share, way in ((place.right, ("right", "left")), (place.down, ("bottom", "top")))
        if share
    ]
    how = [f"shifted by {' and '.join(shift)}"] if shift else []
    how += [f"scaled by {place.scale:g}"] if place.scale != 1 else []
    return Finding(
        f"The hints do not lie on their pictures: they are {' and '.join(reversed(how))}.",
        [
            f"the edges of {n} hints agree best with those of their pictures when this is undone: "
            f"correlation {place.agreement:.2f}, and {place.unmoved:.2f} as they are; each half of "
            "the pairs alone says so, too"
        ],
        "cut and resize hints and pictures in the same way, or make the hints of the pictures as "
        "they are",
    )


# ------------------------------------------------------------- the base: captions, prediction


@torch.no_grad()
def losses_of_base(sd: StableDiffusion, seen: Seen) -> np.ndarray:
    """[2, 3, n]: of what it is taken to predict (eps, v), with each pair's own prompt, another's,
    and none. The noise of a pair is always the same; t is spread evenly over 0..999."""
    device, n, found = next(sd.unet.parameters()).device, len(seen.images), []
    generator = torch.Generator().manual_seed(0)
    for i in tqdm(range(n), "measuring the base", leave=False):
        x0 = mean_latents(sd, seen.images[i][None])
        noise, t = (
            torch.randn(x0.shape, generator=generator),
            torch.tensor([STEPS * (2 * i + 1) // (2 * n)]),
        )
        x_t = DDPM("eps").add_noise(x0, noise, t).to(device)
        context = sd.encode_prompts([seen.prompts[i], other_prompt(seen.prompts, i), ""])
        output = sd.unet(x_t.expand(3, -1, -1, -1), t.expand(3).to(device), context).float().cpu()
        targets = [DDPM(name).target(x0, noise, t) for name in PREDICTIONS]
        found.append(
            [(output - target).square().mean(dim=(1, 2, 3)).tolist() for target in targets]
        )
    return np.moveaxis(np.array(found), 0, -1)


def other_prompt(prompts: list[str], i: int) -> str:
    """The next one that differs from the i-th."""
    following = [*prompts[i + 1 :], *prompts[:i]]
    return next((prompt for prompt in following if prompt != prompts[i]), prompts[i])


def about_captions(losses: np.ndarray) -> Iterator[Finding]:
    """losses [3, n]: with own prompts, others', and none."""
    own, other, empty = losses[:, losses[OWN] != losses[OTHER]]  # (some have one caption)
    if len(own) < ENOUGH or not is_above_zero(own - empty) or is_above_zero(other - own):
        return
    yield Finding(
        "The captions belong to other pictures (shuffled), or the base does not know their words.",
        [
            f"the base's loss on {len(own)} pairs is {own.mean():.4f} with their own captions, "
            f"{empty.mean():.4f} with none and {other.mean():.4f} with those of other pairs; "
            "captions that belong to their pictures help"
        ],
        "look at the list of the pairs: which caption is beside which picture?",
    )


def about_prediction(losses: np.ndarray, prediction: str) -> Iterator[Finding]:
    """losses [2]: of what the base is taken to predict; prediction: what the run takes it for."""
    ours = PREDICTIONS.index(prediction)
    if losses[ours] < WRONG or losses[1 - ours] > losses[ours] / 2:
        return
    right = PREDICTIONS[1 - ours]
    yield Finding(
        f"The base predicts {right}, and the run takes it for {prediction}.",
        [
            f"the base's loss is {losses[ours]:.2f} as it is taken, and {losses[1 - ours]:.3f} if "
            f"it predicts {right}"
        ],
        f"begin a new run with --prediction {right}",
    )


# ------------------------------------------------------------------------- rate, steps, course


def about_rate(run: Run, base_loss: float, course: tuple[float, float, float]) -> Iterator[Finding]:
    """base_loss: of the base without a ControlNet, as the run takes it."""
    rate, skipped = run.settings["lr"], len(run.measured("skipped"))
    losses = [loss for _, loss in run.measured("loss")]
    last = losses[-max(FEW, len(losses) // 5) :]
    held_out = [loss for _, loss in run.measured("held_out_loss")]
    evidence = [f"--lr {rate:g}; usual with this base: {course[0]:g}"]
    late = np.mean(last) if len(last) >= FEW else 0.0
    if late > DIVERGED * base_loss:
        evidence.append(
            f"the mean of the last {len(last)} losses is {late:.3f}, the base's own {base_loss:.3f}"
        )
    if len(held_out) > 1 and held_out[-1] > DIVERGED * held_out[0]:
        evidence.append(
            f"the held-out loss was {held_out[0]:.3f}, and in the end {held_out[-1]:.3f}"
        )
    if any(entry.get("held_out_loss", 0) is None for entry in run.log):
        evidence.append("the held-out loss is not finite")
    if skipped >= max(TOO_MANY, run.steps // 100):  # (fp16 skips a few while it finds its scale)
        evidence.append(f"{skipped} steps were skipped: losses or gradients were not finite")
    if len(evidence) > 1 or not run.follows and rate > FAR * course[0]:
        yield Finding(
            "The learning rate is too high.",
            [*evidence, *gain_of(run)],
            f"begin a new run with --lr {course[0]:g}",
        )


def about_steps(run: Run, course: tuple[float, float, float]) -> Iterator[Finding]:
    """Whether it cannot follow yet."""
    if run.follows:
        return
    rate, steps = run.settings["lr"], run.settings["steps"]
    usual_rate, early, late = course
    way = [
        f"--lr {rate:g} (usual with this base: {usual_rate:g}), {run.steps} steps done: a weight "
        f"moves by about the rate at a step, so none has come further than about "
        f"{run.way:.2g}; runs jump at about {early:g} to {late:g}"
    ]
    if rate < usual_rate / FAR:
        yield Finding(
            "The learning rate is too low.",
            [*way, *gain_of(run)],
            f"begin a new run with --lr {usual_rate:g}",
        )
    elif rate <= FAR * usual_rate and rate * steps < early / 2:
        yield Finding(
            "There are too few steps.",
            [*way, f"--steps {steps}", *gain_of(run)],
            f"train for {early / rate:,.0f} to {late / rate:,.0f} steps or more",
        )


def course_of(run: Run, course: tuple[float, float, float]) -> Finding:
    """Where a run is in which nothing wrong was found."""
    rate, (_, early, late) = run.settings["lr"], course
    first, last = early / rate, late / rate
    evidence = gain_of(run)
    if scores := run.measured("score"):
        (_, at_first), (step, now) = scores[0], scores[-1]
        evidence.append(f"score {at_first:.2f} at first, {now:.2f} at step {step}")
    if run.follows:
        jump = step_of_jump(run.measured) if run.metrics else None  # (halfway to the last value)
        when = f", since the jump at about step {jump}" if jump else ""
        return Finding(
            f"The run looks healthy: it follows its hints{when}.",
            evidence,
            "nothing; with more steps it follows more closely. If a picture of yours is not "
            "followed, see --hint",
        )
    evidence.append(f"{run.steps} of {run.settings['steps']} steps are done")
    expected = f"the jump comes after about {first:,.0f} to {last:,.0f} steps at this rate"
    if run.steps < LATE * last:
        return Finding(
            "The run looks healthy so far: it is before the jump.",
            evidence,
            f"{'begin a longer run' if run.metrics else 'wait'}; {expected}",
        )
    return Finding(
        "The run does not follow its hints, and no cause was found.",
        [*evidence, "hints, captions, prediction and learning rate look right", expected],
        "try larger batches (--accumulate) and more pairs",
    )


def gain_of(run: Run) -> list[str]:
    if run.gain is None:
        return ["the control gain was not measured"]
    gain, loss = run.gain
    return [
        f"control gain {gain:.4f}: other pairs' hints raise the held-out loss of {loss:.4f} by "
        f"{gain / loss:.0%} (a ControlNet that follows: by {run.enough:.0%} or more)"
    ]


# ----------------------------------------------------------------------------------- reports


def diagnose(run: Run, device: str) -> list[Finding]:
    """What is wrong, the most likely first, or else where the run is."""
    with blame("--base"):
        sd = load_sd(run.settings["base"], device, prediction=run.settings["prediction"])
    is_nano = sd.unet.config == UNET
    course = NANO_COURSE if is_nano else COURSE
    pairs = pairs_of(run)
    if isinstance(pairs, Folder):
        run = run._replace(held_out=held_out_of(len(pairs)))
    seen = look(pairs, PAIRS if is_nano else PAIRS_OF_LARGE)
    # (One that could follow before has some gain with wrong hints, too.)
    learnt = run.follows and not run.settings["init_control"] and run.way > course[1] / 2
    losses = losses_of_base(sd, seen)
    means = losses[:, OWN].mean(axis=-1)
    found = [
        *about_hints(seen, condition_of(run), bool(run.settings["hints"]), learnt),
        *about_captions(losses[means.argmin()]),
        *about_prediction(means, sd.prediction),
        *about_rate(run, means[PREDICTIONS.index(sd.prediction)], course),
        *about_steps(run, course),
    ]
    return found or [course_of(run, course)]


def about_hint(run: Run, file: Path) -> Finding:
    """Whether a picture that sample.py is given looks like the hints of the training."""
    with blame("--hint"):
        own = picture_size(file)
        size = size_to_sample(own, base_size(run), None, None)
        hint, as_it_is = read_picture(file, size), read_picture(file)
    seen = look(pairs_of(run), PAIRS)
    training = Training.of(seen.hints)
    found = differences(hint, training)
    height, width = seen.hints[0].shape[1:]
    beside = [f"compared with {len(seen.hints)} hints of the training, {width}x{height}"]
    if not found:
        return Finding("The picture looks like the hints of the training.", beside, "nothing")
    resized = f"it is {own[0]}x{own[1]} and is resized to {size[0]}x{size[1]}"
    if own != size and not differences(as_it_is, training):
        return Finding(
            "The picture is of another size than the hints of the training.",
            [*found, f"{resized}; before that it looks like the training's hints", *beside],
            f"make the hint of a picture of {size[0]}x{size[1]}",
        )
    return Finding(
        f"The picture does not look like the hints of the training: {found[0].split(':')[0]}.",
        [*found, *([resized] if own != size else []), *beside],
        "make the hint as those of the training were made",
    )


def report(findings: list[Finding]) -> str:
    first, *others = findings
    lines = [first.verdict, "Evidence:", *(f"- {one}" for one in first.evidence)]
    lines.append(f"What to do: {first.advice}{'' if first.advice.endswith('?') else '.'}")
    for other in others:
        lines.append(f"Also: {other.verdict} {'; '.join(other.evidence)}.")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("doctor", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="the folder that train.py left")
    add("--hint", type=Path, metavar="FILE", help="a picture that is to be followed")
    on = "where the base is measured; beside a training cpu leaves the GPU to it"
    add("--device", type=device, default=machine.default_device(), help=on)
    args = parser.parse_args(argv)
    with one_sentence("doctor"):
        run = read_run(args.run)
        findings = [about_hint(run, args.hint)] if args.hint else diagnose(run, args.device)
        print(report(findings))


if __name__ == "__main__":
    main()

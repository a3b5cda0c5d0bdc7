"""What can be wrong with a run that does not follow its hints, each with its evidence.

A finding is looked for in what a run left (past_run.py): its hints, its captions, what the base
predicts, the learning rate, the number of steps.
"""

from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from torch import Tensor

from nanocontrol.doctor.hints import KINDS, Looks, Place, could_be, looks_of, place_of, usual
from nanocontrol.doctor.past_run import PastRun, SomePairs
from nanocontrol.training.check import FLAT, OTHERS, WHITE, agreement, edge_map
from nanocontrol.training.measure import step_of_jump
from nanocontrol.training.watch import TOO_MANY

PREDICTIONS = "eps", "v"
OWN, OTHER, EMPTY = range(3)  # prompts

ENOUGH = 8  # pairs, to tell whether hints or captions belong to others
SURE = 3.0  # standard errors
WRONG = 0.5  # loss of a base that predicts something else: about 1, that of a guess
FEW = 20  # losses of steps, whose mean tells nothing yet if they are fewer
DIVERGED = 2.0  # times the base's own loss
LATE = 1.5  # times the steps until the jump, when it is overdue
FAR = 10.0  # times the usual learning rate, or a tenth of it
# AdamW moves a weight by about the learning rate at a step. The usual rate, and rate times steps
# until the jump: of nano's runs with the defaults of train.py (ten for edges jumped after 100 to
# 200 steps), and what the original's guide expects (3,000 to 7,000 steps of 1e-5).
NANO_COURSE = 1e-3, 0.15, 0.25
COURSE = 1e-5, 0.03, 0.07


class Finding(NamedTuple):
    verdict: str  # a sentence
    evidence: list[str]
    advice: str


# ------------------------------------------------------------------------------------ hints


def about_hints(
    seen: SomePairs, condition: str | None, made: bool, learnt: bool
) -> Iterator[Finding]:
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
        (edge_map((image + 1) / 2), edge_map(hint)) for image, hint in zip(seen.images, seen.hints)
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


def about_rate(
    run: PastRun, base_loss: float, course: tuple[float, float, float]
) -> Iterator[Finding]:
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


def about_steps(run: PastRun, course: tuple[float, float, float]) -> Iterator[Finding]:
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


def course_of(run: PastRun, course: tuple[float, float, float]) -> Finding:
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


def gain_of(run: PastRun) -> list[str]:
    if run.gain is None:
        return ["the control gain was not measured"]
    gain, loss = run.gain
    return [
        f"control gain {gain:.4f}: other pairs' hints raise the held-out loss of {loss:.4f} by "
        f"{gain / loss:.0%} (a ControlNet that follows: by {run.enough:.0%} or more)"
    ]

"""Checks of what a ControlNet should do to work with the released weights and others' programs."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
from numpy import ndarray as Array

from nanocontrol.conformance.adapter import SamplingRun
from nanocontrol.conformance.bench import ABAR, RULES, SAMPLED_STEPS, Bench, Found, Rule, checks_of
from nanocontrol.conformance.cases import CONTROL, RESIDUALS, error, normal, shapes, weights

FIRST = CONTROL + "input_hint_block.0."

# How a program can read a hint's colour [3], RGB in [0, 1], before its first convolution.
READINGS: dict[str, Callable[[Array], Array]] = {
    "": lambda c: c,
    "BGR": lambda c: c[::-1],
    "[-1, 1]": lambda c: 2 * c - 1,
    "BGR in [-1, 1]": lambda c: 2 * c[::-1] - 1,
    "inverted": lambda c: 1 - c,
    "BGR, inverted": lambda c: 1 - c[::-1],
    "0 to 255": lambda c: 255 * c,
}


@cache
def readings(bench: Bench) -> dict[str, float]:
    """The error of each way to read the hint.

    The first convolution sees single pixels only, and the hint has one colour. So its output is
    the same number everywhere, which a bias gives as well, with weights of zero.
    """
    adapter, colour = bench.named(), np.array([0.9, 0.4, 0.2])
    hint = np.broadcast_to(colour[:, None, None], bench.given.hint.shape)
    # The stored weights have a faint last convolution.
    last = CONTROL + "input_hint_block.14.weight"
    adapter.load({last: 100 * weights()[last]})
    pixel, bias = np.zeros(shapes()[FIRST + "weight"]), normal("probe.bias", 16)
    pixel[:, :, 1, 1] = normal("probe", *pixel.shape[:2])
    adapter.load({FIRST + "weight": pixel, FIRST + "bias": bias})
    made, found = bench.residuals(hint.copy()), {}
    for name, read in READINGS.items():
        equal = bias + pixel[:, :, 1, 1] @ read(colour)
        adapter.load({FIRST + "weight": np.zeros(pixel.shape), FIRST + "bias": equal})
        found[name] = max(error(a, b) for a, b in zip(made, bench.residuals(hint.copy())))
    return found


def hint_is_rgb(bench: Bench) -> Found:
    found = readings(bench)
    right = min(value for name, value in found.items() if "BGR" not in name)
    read_as = min(found, key=found.__getitem__)
    message = "red and blue of the hint are exchanged: it is read as BGR"
    if "BGR" not in read_as:
        message = "the hint is changed before the first convolution, in an unknown way"
    return right, bench.rounding, message


def hint_in_0_1(bench: Bench) -> Found:
    found = readings(bench)
    right = min(found[name] for name in ("", "BGR"))
    read_as = min(found, key=found.__getitem__).removeprefix("BGR").strip(", ").removeprefix("in ")
    message = "the hint is changed before the first convolution, in an unknown way"
    if read_as and min(found.values()) <= bench.rounding:
        message = f"the hint should be read in [0, 1], and it is read as {read_as}"
    return right, bench.rounding, message


def hint_encoded_once(bench: Bench) -> Found:
    bench.loaded()
    bench.sampled(5, 1.0)
    times = bench.optional("hints_encoded")
    return times, 1, f"the hint is encoded {times} times in 5 steps; it is the same at every step"


def rows_do_not_mix(bench: Bench) -> Found:
    """Guidance in one batch or in two gives equal results if each row of a batch is computed as if
    it were alone."""
    adapter, given = bench.loaded(), bench.given
    made, worst = [bench.base(), *bench.residuals(), bench.predict(bench.residuals())], 0.0
    for i in range(len(given.x)):
        row = slice(i, i + 1)
        x, hint, t, context = given.x[row], given.hint[row], given.t[row], given.context[row]
        residuals = adapter.residuals(x, hint, t, context)
        plain, controlled = adapter.base(x, t, context), adapter.predict(x, t, context, residuals)
        alone = [plain, *residuals, controlled]
        worst = max(worst, *(error(b, a[row]) for a, b in zip(made, alone)))
    return worst, 2 * bench.rounding, "a picture depends on the others in its batch"


# ----------------------------------------------------------------------------------- sampling


def ddim_steps(bench: Bench) -> Found:
    return ddim(bench, lambda rule: rule.steps)


def ddim_last_alpha(bench: Bench) -> Found:
    one = f"its last alpha is 1, not abar_0 = {ABAR[0]:.5f}"
    return ddim(bench, lambda rule: one if rule.last_alpha == 1 else "")


def ddim(bench: Bench, fault: Callable[[Rule], str]) -> Found:
    """Whether sampling follows a rule that has no such fault."""
    rule, errors = bench.rule
    allowed = bench.allowed_after(max(SAMPLED_STEPS))
    known = errors[rule] <= allowed
    wrong = fault(rule) if known else "it follows no rule that is known here"
    found = errors[rule] if known and not wrong else errors[RULES[0]]
    return found, allowed, f"sampling is not the original's DDIM: {wrong}"


# Guidance multiplies the outputs' errors, with a scale of 3, by 2 and 3. Two steps are sampled.
SCALE, GUIDED_STEPS, GUIDED = 3.0, 2, 2 + 3


def nearest(bench: Bench, guess: bool, outputs: dict[str, Callable]) -> Found:
    """Compare guided sampling with latents from each output(x, t). The first is the right one; a
    name says what is wrong with the others. If another explains the latents more than ten times
    better, it is the one in use, even if the difference is small."""
    rule, _ = bench.rule
    bench.loaded()
    made = bench.sampled(GUIDED_STEPS, SCALE, guess)
    found = {
        name: error(made, bench.reference(rule, output, GUIDED_STEPS))
        for name, output in outputs.items()
    }
    right, best = next(iter(outputs)), min(found, key=found.__getitem__)
    allowed = GUIDED * bench.allowed_after(GUIDED_STEPS)
    message = best if found[best] <= allowed else right
    return found[right], min(allowed, 10 * found[best]), message


def guidance(bench: Bench) -> Found:
    """The output is e_uncond + s (e_cond - e_uncond)."""

    def output(of_uncond: float, of_cond: float) -> Callable[[Array, Array], Array]:
        return lambda x, t: (
            of_uncond * bench.controlled(x, t, bench.uncond) + of_cond * bench.plain(x, t)
        )

    s = SCALE
    return nearest(
        bench,
        False,
        {
            "guidance is not e_uncond + s (e_cond - e_uncond)": output(1 - s, s),
            "guidance exchanges the halves with and without the prompt": output(s, 1 - s),
            "guidance has a scale one too large: 1 should be the prompt alone": output(-s, 1 + s),
            "guidance is not applied: the output with the prompt is used alone": output(0, 1),
        },
    )


def guess_mode(bench: Bench) -> Found:
    """The weight of residual i is 0.825^(12 - i), and there is no control without the prompt."""

    def output(with_prompt: Any, without: Any = None) -> Callable[[Array, Array], Array]:
        context = bench.given.context
        return lambda x, t: (
            SCALE * bench.controlled(x, t, context, with_prompt)
            - (SCALE - 1) * bench.controlled(x, t, bench.uncond, without)
        )

    powers = 0.825 ** np.arange(RESIDUALS - 1, -1, -1.0)
    logarithmic = np.logspace(-1, 0, RESIDUALS)
    return nearest(
        bench,
        True,
        {
            "guess mode's weights are not 0.825^(12 - i)": output(powers),
            "guess mode's weights are reversed: the middle block's is 1": output(powers[::-1]),
            "guess mode's weights run from 0.1 to 1 on a logarithmic scale": output(logarithmic),
            "guess mode's weights are all 1": output(1.0),
            "guess mode controls the half without the prompt too": output(powers, powers),
        },
    )


def sampling_leaves_its_inputs(bench: Bench) -> Found:
    """Arrays have the adapter's own precision here, so that it can use their memory."""
    adapter, given = bench.loaded(), bench.given
    sample, kind = bench.optional("sample"), getattr(adapter, "dtype", "float32")
    arrays = [np.array(a, kind) for a in (given.x, given.context, bench.uncond, given.hint)]
    before, (x, context, uncond, hint) = [array.copy() for array in arrays], arrays
    sample(SamplingRun(x, context, uncond, hint, GUIDED_STEPS, SCALE))
    residuals = [r.copy() for r in bench.residuals()]
    kept = [r.copy() for r in residuals]
    bench.predict(residuals)
    pairs = [*zip(before, arrays), *zip(kept, residuals)]
    written = sum(not np.array_equal(a, b) for a, b in pairs) + (len(kept) != len(residuals))
    return written, 0, f"{written} arrays of the caller were overwritten"


# ----------------------------------------------------------------------------------- training


def dropped_prompt_is_the_empty_one(bench: Bench) -> Found:
    adapter, allowed = bench.loaded(), 4 * bench.rounding
    batch = replace(bench.batch(), dropped=np.array([True, False]))
    loss, own = adapter.loss(batch), batch.context
    empty, zero = (np.where(batch.dropped[:, None, None], x, own) for x in (batch.empty, 0.0))
    known = {
        "a dropped prompt is not replaced by the encoded empty prompt": (empty, empty),
        "a dropped prompt is replaced by zeros, not by the encoded empty prompt": (zero, zero),
        "prompts are not dropped": (own, own),
        "a prompt is dropped for the ControlNet alone, not for the base": (empty, own),
        "a prompt is dropped for the base alone, not for the ControlNet": (own, empty),
    }
    off = {}
    for name, contexts in known.items():
        expected = bench.loss_of(batch, *contexts)
        off[name] = abs(loss - expected) / expected
    right, closest = next(iter(off)), min(off, key=off.__getitem__)
    return off[right], allowed, closest if off[closest] <= allowed else right


CHECKS = checks_of("should", __name__)

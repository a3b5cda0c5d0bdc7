"""The bench on which checks run: an adapter with its inputs, and what several checks need.

A check that cannot run raises NotImplementedError, with what the adapter lacks.
"""

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from typing import Any, Self

import numpy as np
from numpy import ndarray as Array

from nanocontrol.conformance import cases
from nanocontrol.conformance.adapter import Adapter, Arrays, SamplingRun, TrainingBatch
from nanocontrol.conformance.ddim import ABAR, RULES, Rule

Found = tuple[float, float, str]  # measured, allowed, and the idea that is missed
Outputs = Sequence[Any] | Array  # several, or one with a row for each picture
Known = Mapping[str, Outputs]
FEW, MORE = 2, 5  # steps of sampling
UNEXPLAINED = "; no known mistake explains it"


def copies(arrays: Arrays) -> Arrays:
    return {name: np.array(array) for name, array in arrays.items()}


def different(some: Arrays, others: Arrays) -> list[str]:
    """The names under which the arrays are not equal to the bit."""
    return [name for name in some if not np.array_equal(some[name], others[name])]


def noised(batch: TrainingBatch) -> tuple[Array, dict[str, Array]]:
    """x_t, and the targets that networks learn to predict from it."""
    abar = ABAR[batch.t].reshape(-1, 1, 1, 1)
    signal, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    targets = {"eps": batch.noise, "v": signal * batch.noise - sigma * batch.x0}
    targets |= {"x_0": batch.x0, "x_0 - noise": batch.x0 - batch.noise}
    return signal * batch.x0 + sigma * batch.noise, targets


def largest_error(made: Outputs, expected: Outputs) -> float:
    """The largest relative error of an output or of a row."""
    return max(map(cases.error, made, expected))


class Bench:
    """An adapter, and the stored inputs."""

    def __init__(self, adapter: Any):
        self.adapter: Adapter = adapter
        self.own = hasattr(adapter, "given")  # networks of another structure
        self.given: cases.ModelInputs = adapter.given if self.own else cases.inputs()
        self.uncond = cases.normal("uncond", *self.given.context.shape)  # encoded negative prompts
        self.dtype = getattr(adapter, "dtype", "float32")
        self.rounding, self.tolerance = cases.rounding(self.dtype), cases.tolerance(self.dtype)
        # The difference that is allowed where the bits should be equal.
        self.bits = self.rounding if getattr(adapter, "compiles", False) else 0.0

    # ------------------------------------------------------------------------- networks

    def fresh(self, config: cases.Config = cases.CONFIG) -> Self:
        """The bench with a fresh base and ControlNet."""
        self.adapter.make(config)
        return self

    def named(self, config: cases.Config = cases.CONFIG) -> Self:
        """The bench with the trained networks of the stored cases. The check does not run if
        tensors' names do not match."""
        if self.fresh(config).unmatched[0]:
            raise NotImplementedError("tensors of the expected names: see tensors_match")
        self.adapter.load(cases.weights())
        return self

    def loaded(self, config: cases.Config = cases.CONFIG) -> Self:
        """The bench with the trained networks of the stored cases, or with the adapter's own."""
        if not self.own:
            return self.named(config)
        self.fresh(config)
        for _ in range(3):
            self.adapter.train_step(self.batch())
        return self

    @cached_property
    def unmatched(self) -> tuple[list, list]:
        """The stored tensors that the adapter, once made, lacks, and those that it has instead:
        pairs of name and shape."""
        if self.own:
            raise NotImplementedError("networks of Stable Diffusion's structure")
        parts, expected = self.adapter.parameters(), cases.shapes().items()
        made = {name: array.shape for part in parts for name, array in part.items()}.items()
        return sorted(expected - made), sorted(made - expected)

    # ------------------------------------------------------------------------- outputs

    def base(self) -> Array:
        return self.adapter.base(self.given.x, self.given.t, self.given.context)

    def residuals(self, hint: Array | None = None) -> list[Array]:
        hint = self.given.hint if hint is None else hint
        return [*self.adapter.residuals(self.given.x, hint, self.given.t, self.given.context)]

    def predict(self, residuals: list[Array]) -> Array:
        return self.adapter.predict(self.given.x, self.given.t, self.given.context, residuals)

    def controlled(self, x: Array, t: Array, context: Array, scales: Any = 1.0) -> Array:
        """The adapter's output with its residuals times scales."""
        residuals = self.adapter.residuals(x, self.given.hint, t, context)
        scaled = [s * r for s, r in zip(np.broadcast_to(scales, len(residuals)), residuals)]
        return self.adapter.predict(x, t, context, scaled)

    def batch(self) -> TrainingBatch:
        given = self.given
        x0, noise = (cases.normal(name, *given.x.shape) for name in ("x0", "noise"))
        empty, t = cases.normal("empty", *given.context[:1].shape), np.array([120, 700])
        return TrainingBatch(x0, noise, t, given.hint, given.context, empty, np.zeros(2, bool))

    # ------------------------------------------------------------------------- sampling

    def sampling(self, steps: int, scale: float, guess: bool = False) -> SamplingRun:
        """A run with arrays of its own, in the networks' precision."""
        arrays = self.given.x, self.given.context, self.uncond, self.given.hint
        x, context, uncond, hint = (np.array(array, self.dtype) for array in arrays)
        return SamplingRun(x, context, uncond, hint, steps, scale, guess)

    def guided(self, scale: float, without: Any, scales: Any, x: Array, t: Array) -> Array:
        """e_uncond + scale (e_cond - e_uncond), where the ControlNet's residuals are multiplied by
        `without` for e_uncond and by scales for e_cond."""
        e_uncond = self.controlled(x, t, self.uncond, without)
        return e_uncond + scale * (self.controlled(x, t, self.given.context, scales) - e_uncond)

    @cached_property
    def sampled(self) -> tuple[Rule | None, Found]:
        """The rule of DDIM that sampling without guidance follows in 2 and in 5 steps, if it is
        known, and the error against the original's rule."""
        adapter, limit, known = self.loaded().adapter, MORE * self.rounding, {}
        made = [adapter.sample(self.sampling(steps, 1.0)) for steps in (FEW, MORE)]
        output = partial(self.controlled, context=self.given.context)
        for name, rule in RULES.items():
            known[name] = [rule.latents(output, self.given.x, FEW)]
            if largest_error(made, known[name]) <= limit:
                break
        known[name].append(rule.latents(output, self.given.x, MORE))
        found = self.explained("sampling is not the original's DDIM", made, known, MORE)
        return None if found[2].endswith(UNEXPLAINED) else rule, found

    # ------------------------------------------------------------------------- explanations

    def explained(self, idea: str, made: Outputs, known: Known, roundings: float = 1) -> Found:
        """The error against the first of the known outputs, and the roundings that are allowed. If
        a known mistake explains what was made, the message adds its name to the idea.

        known: what is right, and then what is expected under each mistake, by its name.
        A mistake that explains ten times better is taken even if the difference is small.
        """
        errors = {name: largest_error(made, expected) for name, expected in known.items()}
        allowed, best = roundings * self.rounding, min(errors, key=errors.__getitem__)
        reason = f": {best}" if errors[best] <= allowed else UNEXPLAINED
        measured = next(iter(errors.values()))
        if errors[best] < measured:
            allowed = min(allowed, 10 * errors[best])
        return measured, allowed, idea + reason

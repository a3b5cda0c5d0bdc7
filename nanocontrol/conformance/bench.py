"""The bench on which checks run: an adapter with its inputs, and what several checks need."""

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from functools import cached_property, partial
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from nanocontrol.conformance import cases
from nanocontrol.conformance.adapter import Arrays, SamplingRun, TrainingBatch
from nanocontrol.conformance.cases import CONFIG, Config, ModelInputs, error, normal
from nanocontrol.schedulers import DDPM, STEPS

ABAR = DDPM().alphas_cumprod.numpy()  # [1000], float64
Found = tuple[float, float, str]  # measured, allowed, and the idea that is missed


class NotRun(Exception):
    """A check cannot run. The message is the reason."""


def copies(arrays: Arrays) -> Arrays:
    return {name: np.array(array) for name, array in arrays.items()}


def different(some: Arrays, others: Arrays) -> list[str]:
    """The names under which the arrays are not equal to the bit."""
    return [name for name in some if not np.array_equal(some[name], others[name])]


def noised(batch: TrainingBatch) -> tuple[Array, dict[str, Array]]:
    """x_t, and the targets that networks learn to predict from it."""
    abar = ABAR[batch.t].reshape(-1, 1, 1, 1)
    signal, sigma = np.sqrt(abar), np.sqrt(1 - abar)
    targets = {
        "eps": batch.noise,
        "v": signal * batch.noise - sigma * batch.x0,
        "x_0": batch.x0,
        "x_0 - noise": batch.x0 - batch.noise,
    }
    return signal * batch.x0 + sigma * batch.noise, targets


def explained(
    idea: str, errors: dict[str, float], allowed: float, right: Collection[str] = ("",)
) -> Found:
    """The error of the right explanation. If a known mistake explains the outputs, the message
    adds its name to the idea.

    errors: of what is expected under each explanation, by its name; right: the right ones.
    An explanation that is more than ten times better is taken even if the difference is small.
    """
    best = min(errors, key=errors.__getitem__)
    reason = f": {best}" if errors[best] <= allowed else "; no known mistake explains it"
    measured = min(errors[name] for name in right if name in errors)
    if best not in right:
        allowed = min(allowed, 10 * errors[best])
    return measured, allowed, idea + reason


class Bench:
    """An adapter, and the stored inputs."""

    def __init__(self, adapter: Any):
        self.adapter = adapter
        self.given: ModelInputs = getattr(adapter, "given", None) or cases.inputs()
        self.own = getattr(adapter, "own_structure", False)
        # Encoded negative prompts.
        self.uncond = normal("uncond", *self.given.context.shape)
        unit = cases.unit_of(getattr(adapter, "dtype", "float32"))
        self.rounding, self.tolerance = cases.rounding(unit), cases.tolerance(unit)
        # The difference that is allowed where the bits should be equal.
        self.bits = self.rounding if getattr(adapter, "compiles", False) else 0.0

    def fresh(self, config: Config = CONFIG) -> Any:
        """The adapter with a fresh base and ControlNet."""
        self.adapter.make(config)
        return self.adapter

    def loaded(self, config: Config = CONFIG) -> Any:
        """The adapter with the trained networks of the stored cases, or with its own."""
        adapter = self.fresh(config)
        if not self.own:
            adapter.load(cases.weights())
            return adapter
        for _ in range(3):
            adapter.train_step(self.batch())
        return adapter

    def named(self) -> Any:
        """The adapter with the trained networks of the stored cases."""
        if self.own:
            raise NotRun("the networks have a structure of their own")
        return self.loaded()

    @contextmanager
    def changed(self, tensors: Arrays) -> Iterator[None]:
        """The trained networks with other values for these tensors."""
        self.adapter.load(tensors)
        yield
        self.adapter.load({name: cases.weights()[name] for name in tensors})

    def base(self) -> Array:
        return self.adapter.base(self.given.x, self.given.t, self.given.context)

    def residuals(self, hint: Array | None = None) -> list[Array]:
        given = self.given
        hint = given.hint if hint is None else hint
        return [*self.adapter.residuals(given.x, hint, given.t, given.context)]

    def predict(self, residuals: list[Array]) -> Array:
        return self.adapter.predict(self.given.x, self.given.t, self.given.context, residuals)

    def controlled(self, x: Array, t: Array, context: Array, scales: Any = 1.0) -> Array:
        """The adapter's output with its residuals times scales; None for no control at all."""
        if scales is None:
            return self.adapter.base(x, t, context)
        residuals = self.adapter.residuals(x, self.given.hint, t, context)
        scaled = [s * r for s, r in zip(np.broadcast_to(scales, len(residuals)), residuals)]
        return self.adapter.predict(x, t, context, scaled)

    def batch(self) -> TrainingBatch:
        given = self.given
        x0, noise = (normal(name, *given.x.shape) for name in ("x0", "noise"))
        empty, t = normal("empty", *given.context[:1].shape), np.array([120, 700])
        return TrainingBatch(x0, noise, t, given.hint, given.context, empty, np.zeros(2, bool))

    # ------------------------------------------------------------------------- sampling

    def sampled(self, steps: int, scale: float, guess: bool = False) -> Array:
        x, context, hint = self.given.x, self.given.context, self.given.hint
        run = SamplingRun(x, context, self.uncond, hint, steps, scale, guess)
        return self.adapter.sample(run)

    def guided(self, scale: float, without: Any, scales: Any, x: Array, t: Array) -> Array:
        """e_uncond + scale (e_cond - e_uncond), where the ControlNet's residuals are multiplied by
        `without` for e_uncond and by scales for e_cond."""
        e_uncond = self.controlled(x, t, self.uncond, without)
        return e_uncond + scale * (self.controlled(x, t, self.given.context, scales) - e_uncond)

    def reference(self, rule: "Rule", output: Callable[[Array, Array], Array], steps: int) -> Array:
        """DDIM's latents in float64, from output(x, t [B])."""
        x, visited = self.given.x.astype(np.float64), rule.timesteps(steps)
        alphas = [*ABAR[visited], rule.last_alpha]
        for i, t in enumerate(visited):
            seen = steps - 1 - i if rule.by_index else t
            e = output(x, np.full(len(x), seen))
            x0 = (x - np.sqrt(1 - alphas[i]) * e) / np.sqrt(alphas[i])
            x = np.sqrt(alphas[i + 1]) * x0 + np.sqrt(1 - alphas[i + 1]) * e
        return x

    @cached_property
    def rule(self) -> tuple["Rule", dict[str, float]]:
        """The rule that sampling without guidance follows in 2 and in 5 steps, the original's if
        it follows none, and the errors of those tried."""
        self.loaded()
        found, errors = {s: self.sampled(s, 1.0) for s in SAMPLED_STEPS}, {}
        output = partial(self.controlled, context=self.given.context)
        for name, rule in RULES.items():
            each = [error(found[s], self.reference(rule, output, s)) for s in SAMPLED_STEPS]
            errors[name] = max(each)
            if errors[name] <= self.allowed_after(max(SAMPLED_STEPS)):
                return rule, errors
        return RULES[""], errors

    def allowed_after(self, steps: int) -> float:
        """Each step adds a network's rounding to the latent."""
        return steps * self.rounding


class Rule(NamedTuple):
    """Which steps DDIM visits, and where it ends."""

    timesteps: Callable[[int], list[int]]
    last_alpha: float = ABAR[0]
    by_index: bool = False  # whether the network is given the step's number for t


def original_steps(s: int) -> list[int]:
    return [*range(1, STEPS + 1, STEPS // s)][::-1]


def even_steps(s: int) -> list[int]:
    return [round(t) for t in np.linspace(STEPS - 1, 0, s)]


SAMPLED_STEPS = 2, 5
RULES = {  # by how they differ from the original's
    "": Rule(original_steps),
    "its steps begin at 0, not at 1": Rule(lambda s: [*range(0, STEPS, STEPS // s)][::-1]),
    "its steps begin at 999": Rule(lambda s: [*range(STEPS - 1, -1, -STEPS // s)]),
    "its steps are spread evenly from 999 to 0": Rule(even_steps),
}
TO_ONE = f"its last alpha is 1, not abar_0 = {ABAR[0]:.5f}"
for mistake, rule in [*RULES.items()]:
    name = f"{mistake}, and {TO_ONE}" if mistake else TO_ONE
    RULES[name] = Rule(rule.timesteps, last_alpha=1.0)
RULES["its network is given a step's number instead of t"] = Rule(original_steps, by_index=True)

"""The bench on which checks run: an adapter with its inputs, and what several checks need."""

import sys
from collections.abc import Callable
from functools import cached_property
from inspect import isfunction
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray as Array

from nanocontrol.conformance.adapter import SamplingRun, TrainingBatch
from nanocontrol.conformance.cases import (
    CONFIG,
    CONTROL,
    RESIDUALS,
    Config,
    error,
    inputs,
    normal,
    rounding,
    tolerance,
    unit_of,
    weights,
)
from nanocontrol.schedulers import DDPM, STEPS

ABAR = DDPM().alphas_cumprod.numpy()  # [1000], float64
ZERO_CONVOLUTIONS = [f"{CONTROL}zero_convs.{i}.0" for i in range(RESIDUALS - 1)]
ZERO_CONVOLUTIONS.append(CONTROL + "middle_block_out.0")


Found = tuple[float, float, str]  # measured, allowed, and the idea that is missed


class NotRun(Exception):
    """A check cannot run. The message is the reason."""


class Check(NamedTuple):
    """A check: measured <= allowed passes. The message says which idea was missed."""

    name: str
    level: str
    function: Callable[["Bench"], tuple[float, float, str]]


def checks_of(level: str, module: str) -> list[Check]:
    """The checks in a module: its functions of a bench, and of nothing else, that return Found."""
    expected = {"bench": Bench, "return": Found}
    functions = (f for f in vars(sys.modules[module]).values() if isfunction(f))
    return [Check(f.__name__, level, f) for f in functions if f.__annotations__ == expected]


class Bench:
    """An adapter, and the stored inputs."""

    def __init__(self, adapter: Any):
        self.adapter, self.given = adapter, getattr(adapter, "given", None) or inputs()
        self.own = getattr(adapter, "own_structure", False)
        # Encoded negative prompts.
        self.uncond = normal("uncond", *self.given.context.shape)
        unit = unit_of(getattr(adapter, "dtype", "float32"))
        self.rounding, self.tolerance = rounding(unit), tolerance(unit)
        # The difference that is allowed where the bits should be equal.
        self.bits = self.rounding if getattr(adapter, "compiles", False) else 0.0

    def optional(self, name: str) -> Any:
        """An optional attribute of the adapter, which need not be an `Adapter`."""
        found = getattr(self.adapter, name, None)
        if found is None:
            raise NotRun(f"the adapter has no {name}")
        return found

    def fresh(self) -> Any:
        """The adapter with a fresh base and ControlNet."""
        self.adapter.make(CONFIG)
        return self.adapter

    def loaded(self, config: Config = CONFIG) -> Any:
        """The adapter with the trained networks of the stored cases, or with its own."""
        if not self.own:
            return self.named(config)
        self.adapter.make(config)
        for _ in range(3):
            self.adapter.train_step(self.batch())
        return self.adapter

    def named(self, config: Config = CONFIG) -> Any:
        """The adapter with the trained networks of the stored cases."""
        if self.own:
            raise NotRun("the networks have a structure of their own")
        self.adapter.make(config)
        self.adapter.load(weights())
        return self.adapter

    def base(self) -> Array:
        return self.adapter.base(self.given.x, self.given.t, self.given.context)

    def residuals(self, hint: Array | None = None) -> list[Array]:
        given = self.given
        hint = given.hint if hint is None else hint
        return [*self.adapter.residuals(given.x, hint, given.t, given.context)]

    def predict(self, residuals: list[Array]) -> Array:
        given = self.given
        return self.adapter.predict(given.x, given.t, given.context, residuals)

    def only(self, residuals: list[Array], k: int) -> list[Array]:
        """The residuals with all but number k set to zero."""
        return [r if i == k else np.zeros_like(r) for i, r in enumerate(residuals)]

    # ------------------------------------------------------------------------- training

    def batch(self) -> TrainingBatch:
        given = self.given
        x0, noise = (normal(name, *given.x.shape) for name in ("x0", "noise"))
        empty, t = normal("empty", *given.context[:1].shape), np.array([120, 700])
        return TrainingBatch(x0, noise, t, given.hint, given.context, empty, np.zeros(2, bool))

    def losses(self, prediction: str, batch: TrainingBatch) -> dict[str, float]:
        """The loss, and what it is with some mistakes, computed from the adapter's own output."""
        adapter, abar = self.adapter, ABAR[batch.t].reshape(-1, 1, 1, 1)
        signal, sigma = np.sqrt(abar), np.sqrt(1 - abar)
        x = signal * batch.x0 + sigma * batch.noise
        residuals = adapter.residuals(x, batch.hint, batch.t, batch.context)
        output = adapter.predict(x, batch.t, batch.context, residuals)
        targets = {
            "eps": batch.noise,
            "v": signal * batch.noise - sigma * batch.x0,
            "x_0": batch.x0,
            "x_0 - noise": batch.x0 - batch.noise,
        }
        squares = {name: (output - target) ** 2 for name, target in targets.items()}
        found = {f"the target is {name}": float(s.mean()) for name, s in squares.items()}
        found["it is a sum, not a mean"] = float(squares[prediction].sum())
        absolute = np.abs(output - targets[prediction]).mean()
        found["it is the absolute error, not the square"] = float(absolute)
        plain = adapter.base(x, batch.t, batch.context)
        found["the residuals are not added"] = float(((plain - targets[prediction]) ** 2).mean())
        return found

    def loss_of(self, batch: TrainingBatch, control: Array, base: Array) -> float:
        """The loss for eps with these encoded prompts [B, 77, D] for the ControlNet and the
        base."""
        abar = ABAR[batch.t].reshape(-1, 1, 1, 1)
        x = np.sqrt(abar) * batch.x0 + np.sqrt(1 - abar) * batch.noise
        residuals = self.adapter.residuals(x, batch.hint, batch.t, control)
        output = self.adapter.predict(x, batch.t, base, residuals)
        return float(((output - batch.noise) ** 2).mean())

    # ------------------------------------------------------------------------- sampling

    def sampled(self, steps: int, scale: float, guess: bool = False) -> Array:
        x, context, hint = self.given.x, self.given.context, self.given.hint
        run = SamplingRun(x, context, self.uncond, hint, steps, scale, guess)
        return self.optional("sample")(run)

    def reference(self, rule: "Rule", output: Callable[[Array, Array], Array], steps: int) -> Array:
        """DDIM's latents in float64, from output(x, t [B])."""
        x, visited = self.given.x.astype(np.float64), rule.timesteps(steps)
        for i, t in enumerate(visited):
            abar = ABAR[t]
            previous = rule.last_alpha if i + 1 == len(visited) else ABAR[visited[i + 1]]
            seen = len(visited) - 1 - i if rule.by_index else t
            e = output(x, np.full(len(x), seen))
            x0 = (x - np.sqrt(1 - abar) * e) / np.sqrt(abar)
            x = np.sqrt(previous) * x0 + np.sqrt(1 - previous) * e
        return x

    def controlled(self, x: Array, t: Array, context: Array, scales: Any = 1.0) -> Array:
        """The adapter's output with its residuals times scales; None for no control at all."""
        if scales is None:
            return self.adapter.base(x, t, context)
        residuals = self.adapter.residuals(x, self.given.hint, t, context)
        scaled = [s * r for s, r in zip(np.broadcast_to(scales, len(residuals)), residuals)]
        return self.adapter.predict(x, t, context, scaled)

    @cached_property
    def rule(self) -> tuple["Rule", dict["Rule", float]]:
        """The rule that sampling without guidance follows in 2 and in 5 steps, the original's if
        it follows none, and the errors of those tried."""
        self.loaded()
        found, errors = {s: self.sampled(s, 1.0) for s in SAMPLED_STEPS}, {}
        for rule in RULES:
            made = {s: self.reference(rule, self.plain, s) for s in SAMPLED_STEPS}
            errors[rule] = max(error(found[s], made[s]) for s in SAMPLED_STEPS)
            if errors[rule] <= self.allowed_after(max(SAMPLED_STEPS)):
                return rule, errors
        return RULES[0], errors

    def plain(self, x: Array, t: Array) -> Array:
        return self.controlled(x, t, self.given.context)

    def allowed_after(self, steps: int) -> float:
        """Each step adds a network's rounding to the latent."""
        return steps * self.rounding


class Rule(NamedTuple):
    """Which steps DDIM visits, and where it ends."""

    steps: str  # how its steps differ from the original's
    timesteps: Callable[[int], list[int]]
    last_alpha: float = float(ABAR[0])
    by_index: bool = False  # whether the network is given the step's number for t


def original_steps(s: int) -> list[int]:
    return [*range(1, STEPS + 1, STEPS // s)][::-1]


SAMPLED_STEPS = 2, 5
STEP_RULES: dict[str, Callable[[int], list[int]]] = {
    "": original_steps,
    "its steps begin at 0, not at 1": lambda s: [*range(0, STEPS, STEPS // s)][::-1],
    "its steps begin at 999": lambda s: [*range(STEPS - 1, -1, -STEPS // s)],
    "its steps are spread evenly from 999 to 0": lambda s: [
        int(t) for t in np.linspace(STEPS - 1, 0, s).round()
    ],
}
RULES = [Rule(*pair, last) for last in (float(ABAR[0]), 1.0) for pair in STEP_RULES.items()]
NUMBERED = "the network is given the number of the step instead of t"
RULES.append(Rule(NUMBERED, original_steps, by_index=True))

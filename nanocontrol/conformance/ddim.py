"""The rules of DDIM that programs follow: the original's, and known mistakes."""

from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import numpy as np
from numpy import ndarray as Array

from nanocontrol.schedulers import DDPM, STEPS

ABAR = DDPM().alphas_cumprod.numpy()  # [1000], float64
Times = Callable[[int], list[int]]  # for s steps: a t for each, the noisiest first


class Rule(NamedTuple):
    """The t that the network is given, and those at which steps begin. A step ends where the next
    one begins or, if all are equally long, STEPS / steps lower. Below 0 is the last alpha."""

    seen: Times
    begins: Times
    equally_long: bool = False
    last_alpha: float = ABAR[0]

    def latents(self, output: Callable[[Array, Array], Array], x: Array, steps: int) -> Array:
        """DDIM's latents in float64, from output(x, t [B]) and the noise x [B, 4, h, w]."""
        x, begins = x.astype(np.float64), self.begins(steps)
        ends = [t - STEPS // steps for t in begins] if self.equally_long else [*begins[1:], -1]
        for seen, t, end in zip(self.seen(steps), begins, ends):
            abar, abar_end = ABAR[t], ABAR[end] if end >= 0 else self.last_alpha
            e = output(x, np.full(len(x), seen))
            x0 = (x - np.sqrt(1 - abar) * e) / np.sqrt(abar)
            x = np.sqrt(abar_end) * x0 + np.sqrt(1 - abar_end) * e
        return x


VISITS: dict[str, Times] = {  # the t that programs visit
    "are the original's": lambda s: [*range(1, STEPS + 1, STEPS // s)][::-1],
    "begin at 0, not at 1": lambda s: [*range(0, STEPS, STEPS // s)][::-1],
    "begin at 999": lambda s: [*range(STEPS - 1, -1, -STEPS // s)],
    "are spread evenly from 999 to 0": lambda s: [round(t) for t in np.linspace(STEPS - 1, 0, s)],
}
FIRST, *_, EVEN = VISITS.values()
ORIGINAL = Rule(FIRST, FIRST)

# By what a message says of them; the original's is the first.
RULES = {f"its steps {name}": Rule(t, t) for name, t in VISITS.items()}
NUMBERED = Rule(lambda s: [*range(s)][::-1], FIRST)
RULES["its network is given a step's number instead of t"] = NUMBERED
DISAGREE = "visits and steps disagree: the network is given t that"
for (name, seen), (other, t) in permutations(VISITS.items(), 2):
    RULES[f"{DISAGREE} {name}, its steps' alphas are of t that {other}"] = Rule(seen, t)
EQUALLY_LONG = Rule(EVEN, EVEN, equally_long=True)
RULES[f"{DISAGREE} are spread evenly, and all its steps are equally long"] = EQUALLY_LONG
TO_ONE = f"its last alpha is 1, not abar_0 = {ABAR[0]:.5f}"
RULES |= {f"{name}, and {TO_ONE}": rule._replace(last_alpha=1.0) for name, rule in RULES.items()}

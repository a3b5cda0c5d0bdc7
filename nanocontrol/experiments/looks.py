"""How an arm is followed: on 16 scenes while it learns and on 64 at its end, the same for all."""

from typing import Any

import numpy as np
from torch import Tensor

import train
from nanocontrol import ControlNet, StableDiffusion
from nanocontrol.experiments.inside import gradient_by_part, spread_by_layer
from nanocontrol.nano.detector import load_detector
from nanocontrol.nano.follows import follows
from nanocontrol.nano.model import DETECTOR
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.nano.scores import score
from nanocontrol.training.measure import HeldOut

DURING, AT_END = 16, 64


class Looks:
    """In the place of train.measured. During the run it also measures the score of each picture
    (score_0, ...), the spread of the condition encoder's activations (spread_0, ..., spread_last)
    and the gradient of each part (gradient_encoder, ...)."""

    def __init__(self) -> None:
        self.scenes: Scenes | None = None
        self.detector = load_detector(DETECTOR)

    def __call__(
        self,
        settings: train.Settings,
        sd: StableDiffusion,
        control: ControlNet,
        held_out: HeldOut,
        score_of: Any,
        home: str,
        n: int,
    ) -> tuple[list[Tensor], dict]:
        if self.scenes is None:
            self.scenes = Scenes(settings.condition, HELD_OUT, n=AT_END, size=sd.size)
            self.pairs = HeldOut.of(sd, self.scenes)
        ended = n != train.SHEET
        scores = self.mean_scores if ended else self.all_scores
        pairs = self.pairs.first(AT_END if ended else DURING)
        at = settings, sd, control, pairs, scores, home
        rows, numbers = train.measured(*at, len(pairs.images))
        if not ended:
            spreads = spread_by_layer(control.input_hint_block, pairs.hints)
            numbers |= {f"spread_{i}": spread for i, spread in enumerate(spreads)}
            if spreads:  # (one zero convolution has no SiLU)
                numbers["spread_last"] = spreads[-1]
            numbers |= gradient_by_part(sd, control, pairs.first(settings.batch_size))
        return rows, numbers

    def mean_scores(self, images: Tensor) -> dict[str, float | None]:
        each = self.all_scores(images)
        return {name: each[name] for name in ("score", "follows")}

    def all_scores(self, images: Tensor) -> dict[str, float | None]:
        assert self.scenes is not None
        condition, detector = str(self.scenes.condition), self.detector
        scenes = [self.scenes.scene(i) for i in range(len(images))]
        each = [score(condition, images[i : i + 1], [s], detector) for i, s in enumerate(scenes)]
        numbers = {"score": float(np.mean(each))}
        share = follows(condition, images, scenes, detector)
        return numbers | {"follows": share} | {f"score_{i}": x for i, x in enumerate(each)}

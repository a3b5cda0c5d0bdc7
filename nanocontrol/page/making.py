"""A request's pictures, step by step, as the events that the browser shows."""

from collections.abc import Iterator
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanocontrol.commands.inputs import refuse_nan
from nanocontrol.nano.scores import WITHIN, score
from nanocontrol.page import insides
from nanocontrol.page.asked import NONE, RULES
from nanocontrol.page.models import Models
from nanocontrol.page.preview import preview
from nanocontrol.page.sketch import colour_of, drawn_hint, look_of, png
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.compare import f1, near
from nanocontrol.plumbing.machine import forget_recorded
from nanocontrol.plumbing.pictures import to_pixels
from nanocontrol.sampling import Control, controlled_steps, initial_noise, sampling_steps, weigh
from nanocontrol.schedulers import DDIM

THRESHOLDS = 100, 200  # of Canny, for the score of a drawing; a scene's come from its seed
Event = dict[str, Any]


class Making:
    """The pictures of a request, one for each column, sampled on their own from the same noise."""

    def __init__(self, models: Models, wanted: SimpleNamespace):
        self.models, self.wanted = models, wanted
        self.hints, self.controls = dict[str, Tensor](), dict[str, list[Control]]({NONE: []})
        for name in {*wanted.columns} - {NONE}:
            self.hints[name] = hint = drawn_hint(wanted.drawing, name, models.size)
            net, _ = models.control(name, wanted.run_step)
            self.controls[name] = [(net, hint[None], wanted.strength)]
        latent, rules = models.size // 8, [getattr(wanted, rule) for rule in RULES]
        self.applied = {n: weigh(self.controls[n][0], latent, *rules) for n in self.hints}
        self.spans, self.ts = insides.spans_of(wanted.prompt), DDIM().timesteps(wanted.steps)
        self.controlled = controlled_steps(wanted.steps, wanted.control_from, wanted.control_to)

    def events(self) -> Iterator[Event]:
        """All events. Each `next` takes about as long as a step: columns are interleaved."""
        began, running = perf_counter(), [self.column(name) for name in self.wanted.columns]
        yield self.start()
        while running:
            for one in [*running]:
                if (event := next(one, None)) is not None:
                    yield event
                else:
                    running.remove(one)
        yield {"event": "done", "seconds": round(perf_counter() - began, 2)}

    def start(self) -> Event:
        words = [word for word, *_ in self.spans]
        known = [{"text": word, "known": insides.is_known(self.models.sd, word)} for word in words]
        event: Event = {"event": "start", "hints": {n: png(hint) for n, hint in self.hints.items()}}
        event |= {"columns": self.wanted.columns, "ts": self.ts, "controlled": self.controlled}
        event |= {"weights": {n: applied.weights for n, applied in self.applied.items()}}
        empty = [name for name, hint in self.hints.items() if hint.std() == 0]
        return event | {"words": known, "empty": empty}

    def column(self, name: str) -> Iterator[Event]:
        unet, applied = self.models.sd.unet, self.applied.get(name)
        control, taken = applied and applied.net, insides.Taken()
        watch = insides.parts_to_watch(unet, control, self.wanted.attention)
        steps = self.sampling(self.controls[name])
        forget_recorded()  # each column records graphs of its own, whose tensors `taken` keeps
        with insides.watched(watch, taken):
            next(steps)
        if applied:
            background = torch.from_numpy(colour_of(look_of(name)[0]))[:, None, None]
            hint, empty = self.hints[name], background.expand_as(self.hints[name])
            layers = insides.signals(taken, applied.net, hint[None], empty[None])
            yield {"event": "encoder", "column": name, "layers": layers}
        for i, t in enumerate(self.ts):
            with insides.watched(watch, taken):
                x, x0 = next(steps)
            norms = None
            if applied and self.controlled[i]:
                norms = insides.connections(taken, unet, applied)
            maps = self.attention(taken) if self.wanted.attention else None
            event = {"event": "step", "column": name, "step": i, "of": self.wanted.steps, "t": t}
            event |= {"preview": png(preview(x0[0], self.models.map))}
            yield event | {"connections": norms, "attention": maps}
        pixels = to_pixels(refuse_nan(self.models.sd.decode(refuse_nan(x)))[0])
        followed = follows_drawing(self.models, self.wanted.drawing, name, pixels)
        yield {"event": "picture", "column": name, "png": png(pixels), "score": followed}

    def sampling(self, controls: list[Control]) -> Iterator[tuple[Tensor, Tensor]]:
        """The steps of one picture, as `generate` in sample.py takes them."""
        sd, wanted, size = self.models.sd, self.wanted, self.models.size
        noise = initial_noise(1, size, size, torch.Generator("cpu").manual_seed(wanted.seed))
        context, uncond = sd.encode_prompts(wanted.prompt), sd.encode_prompts(wanted.negative)
        given = sd, noise, context, uncond, controls, wanted.steps, wanted.scale
        options = {name: getattr(wanted, name) for name in (*RULES, "control_from", "control_to")}
        return sampling_steps(*given, **options)

    def attention(self, taken: insides.Taken) -> list[str]:
        """A grey picture for each word; white is the largest attention that any word gets."""
        unet, n = self.models.sd.unet, self.models.size // 8
        maps = insides.attention_maps(taken, unet, self.spans, n)
        most = maps.max().clamp(min=1e-9) if self.spans else 1
        return [png(one.numpy()) for one in (255 * maps / most).to(torch.uint8)]


def follows_drawing(
    models: Models, drawing: SimpleNamespace, column: str, pixels: np.ndarray
) -> float | None:
    """How well a picture [H, W, 3] follows its hint, or without control the drawing's; None where
    that cannot be measured. See scores.py; a drawing's score is as Canny's there."""
    scene, condition = drawing.scene, drawing.condition if column == NONE else column
    image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
    if models.detector is None:
        return None
    if scene and not drawing.strokes:
        shown = scene.things if condition != "pose" else scene.of("figure")
        return score(condition, image[None] * 2 - 1, [scene], models.detector) if shown else None
    if condition != "canny":
        return None
    found, true = canny(image, *THRESHOLDS), drawn_hint(drawing, condition, models.size)
    within = near(WITHIN["canny"], (models.size, models.size))
    return f1(found[0].numpy() > 0.5, true[0].numpy() > 0.5, within)

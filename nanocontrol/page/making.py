"""A request's pictures, step by step, as the events that the browser shows. README.md lists them."""

from collections.abc import Iterator
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanocontrol.commands.inputs import refuse_nan
from nanocontrol.controlnet import ControlNet
from nanocontrol.nano.scores import WITHIN, score
from nanocontrol.page.asked import NONE, Wanted
from nanocontrol.page.insides import (
    Taken,
    attention_maps,
    connections,
    is_known,
    parts_to_watch,
    signals,
    spans_of,
    watched,
)
from nanocontrol.page.models import Models
from nanocontrol.page.preview import preview
from nanocontrol.page.sketch import colour_of, hint_of, look_of, png
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.compare import f1, near
from nanocontrol.plumbing.machine import forget_recorded
from nanocontrol.plumbing.pictures import to_pixels
from nanocontrol.sampling import Control, controlled_steps, initial_noise, sampling_steps, weigh
from nanocontrol.schedulers import DDIM

THRESHOLDS = 100, 200  # of Canny, for the score of a drawing; a scene's come from its seed
Event = dict[str, Any]


class Column:
    """One picture in the making: a sampling of its own from the same noise, with or without control.
    hint: [1, 3, H, W]; None without control."""

    def __init__(self, models: Models, wanted: Wanted, name: str, hint: Tensor | None):
        self.models, self.wanted, self.name, self.hint = models, wanted, name, hint
        self.control: ControlNet | None = None
        controls: list[Control] = []
        if hint is not None:
            self.control, _ = models.control(name, wanted.run_step)
            controls = [(self.control, hint, wanted.strength)]
            rules = wanted.guess, wanted.resolution_weighting
            self.applied = weigh(controls[0], models.size // 8, *rules)
        self.controls = controls
        self.taken: Taken = {}
        self.modules = parts_to_watch(models.sd.unet, self.control, wanted.attention)
        self.began = 0.0

    def steps(self) -> Iterator[tuple[Tensor, Tensor]]:
        sd, wanted, size = self.models.sd, self.wanted, self.models.size
        generator = torch.Generator("cpu").manual_seed(wanted.seed)
        return sampling_steps(
            sd,
            initial_noise(1, size, size, generator),
            sd.encode_prompts(wanted.prompt),
            sd.encode_prompts(wanted.negative),
            self.controls,
            wanted.steps,
            wanted.scale,
            generator=generator,
            guess=wanted.guess,
            resolution_weighting=wanted.resolution_weighting,
            control_from=wanted.control_from,
            control_to=wanted.control_to,
        )

    @torch.no_grad()
    def run(self, spans: list[tuple[str, int, int]]) -> Iterator[Event]:
        """An event for every step, then one with the picture. spans: the prompt's words."""
        wanted, self.began = self.wanted, perf_counter()
        forget_recorded()  # each column keeps recordings of its own; see `watched`
        ts = DDIM().timesteps(wanted.steps)
        controlled = controlled_steps(wanted.steps, wanted.control_from, wanted.control_to)
        steps = self.steps()
        for i in range(-1, wanted.steps):
            step_began = perf_counter()
            with watched(self.modules, self.taken):
                x, x0 = next(steps)
            if i < 0:
                yield from self.encoded()
                continue
            seen = self.control is not None and controlled[i]
            yield {
                "event": "step",
                "column": self.name,
                "step": i,
                "of": wanted.steps,
                "t": ts[i],
                "preview": png(preview(x0[0], self.models.map)),
                "connections": connections(self.taken, self.models.sd.unet, self.applied)
                if seen
                else None,
                "attention": self.attention(spans) if wanted.attention else None,
                "ms": round(1000 * (perf_counter() - step_began), 1),
            }
        yield self.finished(x)

    def encoded(self) -> Iterator[Event]:
        """How much of the drawing's signal each layer of the condition encoder passes on."""
        if self.control is not None and self.hint is not None:
            background = torch.from_numpy(colour_of(look_of(self.name)[0]))
            empty = background[None, :, None, None].expand_as(self.hint)
            layers = signals(self.taken, self.control, self.hint, empty)
            yield {"event": "encoder", "column": self.name, "layers": layers}

    def attention(self, spans: list[tuple[str, int, int]]) -> list[str]:
        n = self.models.size // 8
        unet, places = self.models.sd.unet, [(a, b) for _, a, b in spans]
        maps = attention_maps(self.taken, unet, places, (n, n))
        grey = (maps / maps.max().clamp(min=1e-9) * 255).to(torch.uint8) if len(maps) else maps
        return [png(one.numpy()) for one in grey]

    def finished(self, latent: Tensor) -> Event:
        sd = self.models.sd
        pixels = to_pixels(refuse_nan(sd.decode(refuse_nan(latent)))[0])
        return {
            "event": "picture",
            "column": self.name,
            "png": png(pixels),
            "score": self.score(pixels),
            "score_name": "score",
            "seconds": round(perf_counter() - self.began, 2),
        }

    def score(self, pixels: np.ndarray) -> float | None:
        """How well a picture [H, W, 3] follows its hint, or without control the drawing's. None
        where that cannot be measured."""
        sketch, models = self.wanted.sketch, self.models
        condition = sketch.condition if self.name == NONE else self.name
        image = torch.from_numpy(pixels.copy()).permute(2, 0, 1).float() / 255
        if models.detector is None:
            return None
        if sketch.scene and not sketch.strokes:
            if not sketch.scene.things or condition == "pose" and not sketch.scene.of("figure"):
                return None
            return score(condition, image[None] * 2 - 1, [sketch.scene], models.detector)
        if condition != "canny":
            return None
        truth, found = hint_of(sketch, condition, models.size), canny(image, *THRESHOLDS)
        seen, true = (x[0].numpy() > 0.5 for x in (found, truth))
        return f1(seen, true, near(WITHIN["canny"], (models.size, models.size)))


def made(models: Models, wanted: Wanted) -> Iterator[Event]:
    """All events of a request, with the columns' steps interleaved. Each `next` takes about as long
    as a step."""
    began, names = perf_counter(), [name for name in wanted.columns if name != NONE]
    hints = {name: hint_of(wanted.sketch, name, models.size) for name in names}
    columns = [
        Column(models, wanted, n, hints[n][None] if n in hints else None) for n in wanted.columns
    ]
    spans = spans_of(wanted.prompt)
    yield {
        "event": "start",
        "hints": {name: png(hint) for name, hint in hints.items()},
        "columns": wanted.columns,
        "ts": DDIM().timesteps(wanted.steps),
        "controlled": controlled_steps(wanted.steps, wanted.control_from, wanted.control_to),
        "weights": {c.name: c.applied.weights for c in columns if c.control is not None},
        "words": [{"text": word, "known": is_known(models.sd, word)} for word, *_ in spans],
        "empty": any(hint.std() == 0 for hint in hints.values()),
    }
    running = [column.run(spans) for column in columns]
    while running:
        for column in [*running]:
            event = next(column, None)
            if event is None:
                running.remove(column)
            else:
                yield event
    yield {"event": "done", "seconds": round(perf_counter() - began, 2)}

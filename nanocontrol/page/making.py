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
from nanocontrol.page.sketch import colour_of, hint_of, look_of, png
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.compare import f1, near
from nanocontrol.plumbing.machine import forget_recorded
from nanocontrol.plumbing.pictures import to_pixels
from nanocontrol.sampling import Control, controlled_steps, initial_noise, sampling_steps, weigh
from nanocontrol.schedulers import DDIM

THRESHOLDS = 100, 200  # of Canny, for the score of a drawing; a scene's come from its seed
WINDOW = ("control_from", "control_to")
Event = dict[str, Any]


def made(models: Models, wanted: SimpleNamespace) -> Iterator[Event]:
    """All events of a request. Each `next` takes about as long as a step: the columns' steps are
    interleaved. A column is one picture, a sampling of its own from the same noise."""
    began, names = perf_counter(), [name for name in wanted.columns if name != NONE]
    hints = {name: hint_of(wanted.drawing, name, models.size) for name in names}
    controls: dict[str, list[Control]] = {name: [] for name in wanted.columns}
    for name in names:
        control, _ = models.control(name, wanted.run_step)
        controls[name].append((control, hints[name][None], wanted.strength))
    spans, rules = insides.spans_of(wanted.prompt), [getattr(wanted, rule) for rule in RULES]
    applied = {name: weigh(controls[name][0], models.size // 8, *rules) for name in names}
    window = [getattr(wanted, edge) for edge in WINDOW]
    ts, controlled = DDIM().timesteps(wanted.steps), controlled_steps(wanted.steps, *window)
    words = [{"text": word, "known": insides.is_known(models.sd, word)} for word, *_ in spans]
    start = {"event": "start", "hints": {name: png(hint) for name, hint in hints.items()}}
    start |= {"columns": wanted.columns, "ts": ts, "controlled": controlled, "words": words}
    start |= {"weights": {name: applied[name].weights for name in names}}
    yield start | {"empty": any(bool(hint.std() == 0) for hint in hints.values())}

    def column(name: str) -> Iterator[Event]:
        taken: insides.Taken = {}
        control = applied[name].net if name in applied else None
        watch = insides.parts_to_watch(models.sd.unet, control, wanted.attention)
        steps = sampling(models, wanted, controls[name])
        forget_recorded()  # each column records graphs of its own, whose tensors `taken` keeps
        with insides.watched(watch, taken):
            next(steps)
        if control is not None:
            background = torch.from_numpy(colour_of(look_of(name)[0]))[None, :, None, None]
            _, hint, _ = controls[name][0]
            layers = insides.signals(taken, control, hint, background.expand_as(hint))
            yield {"event": "encoder", "column": name, "layers": layers}
        for i, t in enumerate(ts):
            with insides.watched(watch, taken):
                x, x0 = next(steps)
            step = {"event": "step", "column": name, "step": i, "of": wanted.steps, "t": t}
            step |= {"preview": png(preview(x0[0], models.map)), "connections": None}
            if control is not None and controlled[i]:
                shown = insides.connections(taken, models.sd.unet, applied[name])
                step |= {"connections": shown}
            maps = attention_pngs(taken, models, spans) if wanted.attention else None
            yield step | {"attention": maps}
        pixels = to_pixels(refuse_nan(models.sd.decode(refuse_nan(x)))[0])
        followed = follows_drawing(models, wanted.drawing, name, pixels)
        yield {"event": "picture", "column": name, "png": png(pixels), "score": followed}

    running = [column(name) for name in wanted.columns]
    while running:
        for one in [*running]:
            if (event := next(one, None)) is not None:
                yield event
            else:
                running.remove(one)
    yield {"event": "done", "seconds": round(perf_counter() - began, 2)}


def sampling(
    models: Models, wanted: SimpleNamespace, controls: list[Control]
) -> Iterator[tuple[Tensor, Tensor]]:
    """The steps of one picture, as `generate` in sample.py takes them."""
    sd, generator = models.sd, torch.Generator("cpu").manual_seed(wanted.seed)
    noise = initial_noise(1, models.size, models.size, generator)
    context, uncond = sd.encode_prompts(wanted.prompt), sd.encode_prompts(wanted.negative)
    given = sd, noise, context, uncond, controls, wanted.steps, wanted.scale
    return sampling_steps(*given, **{name: getattr(wanted, name) for name in (*RULES, *WINDOW)})


def attention_pngs(taken: insides.Taken, models: Models, spans: list[insides.Span]) -> list[str]:
    """A grey picture for each word; white is the largest attention that any word gets."""
    maps = insides.attention_maps(taken, models.sd.unet, spans, models.size // 8)
    grey = (255 * maps / max(float(maps.sum() and maps.max()), 1e-9)).to(torch.uint8)
    return [png(one.numpy()) for one in grey]


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
    found, true = canny(image, *THRESHOLDS), hint_of(drawing, condition, models.size)
    within = near(WITHIN["canny"], (models.size, models.size))
    return f1(found[0].numpy() > 0.5, true[0].numpy() > 0.5, within)

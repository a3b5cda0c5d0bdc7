"""A request's pictures: step by step, as the events that the browser shows, or as a command."""

import os
import shlex
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanocontrol.commands.inputs import joined, refuse_nan
from nanocontrol.nano.scores import WITHIN, score
from nanocontrol.page import insides
from nanocontrol.page.asked import NONE, RULES, Refused
from nanocontrol.page.models import Models
from nanocontrol.page.sketch import as_picture, blank, drawn_hint, is_empty, png
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.compare import f1, near
from nanocontrol.plumbing.files import make_folder
from nanocontrol.plumbing.machine import forget_recorded
from nanocontrol.plumbing.pictures import as_tensor, save_picture, to_bytes, to_pixels
from nanocontrol.sampling import Control, controlled_steps, initial_noise, sampling_steps, weigh
from nanocontrol.schedulers import DDIM

THRESHOLDS = 100, 200  # of Canny, for the score of a drawing; a scene's come from its seed
MOST = 1000  # hints in the folder
Event = dict[str, Any]


class Making:
    """The pictures of a request, one for each column, sampled on their own from the same noise."""

    def __init__(self, models: Models, wanted: SimpleNamespace):
        self.models, self.wanted, drawing = models, wanted, wanted.drawing
        names = dict.fromkeys([drawing.condition, *wanted.columns])
        self.hints = {n: drawn_hint(drawing, n, models.size) for n in names if n != NONE}
        nets = {n: models.control(n, wanted.run_step)[0] for n in wanted.columns if n != NONE}
        self.controls = {n: (net, self.hints[n][None], wanted.strength) for n, net in nets.items()}
        latent, rules = models.size // 8, [getattr(wanted, rule) for rule in RULES]
        self.applied = {n: weigh(control, latent, *rules) for n, control in self.controls.items()}
        self.spans, self.ts = insides.spans_of(wanted.prompt), DDIM().timesteps(wanted.steps)
        self.controlled = controlled_steps(wanted.steps, wanted.control_from, wanted.control_to)

    def events(self) -> Iterator[Event]:
        """All events. Each `next` takes about as long as a step: columns are interleaved."""
        began, running = perf_counter(), [self.column(name) for name in self.wanted.columns]
        yield self.start()
        while running:
            one = running.pop(0)
            if event := next(one, None):
                yield event
                running.append(one)
        yield {"event": "done", "seconds": round(perf_counter() - began, 2)}

    def start(self) -> Event:
        sd, hints = self.models.sd, self.hints.items()
        words = [{"text": word, "known": insides.is_known(sd, word)} for word, *_ in self.spans]
        event: Event = {"event": "start", "hints": {n: png(hint) for n, hint in hints}}
        event |= {"columns": self.wanted.columns, "ts": self.ts, "controlled": self.controlled}
        event |= {"weights": {n: applied.weights for n, applied in self.applied.items()}}
        return event | {"words": words, "empty": [n for n, hint in hints if is_empty(hint)]}

    def column(self, name: str) -> Iterator[Event]:
        unet, applied, own = self.models.sd.unet, self.applied.get(name), {"column": name}
        watch, taken = insides.parts_to_watch(unet, applied and applied.net), insides.Taken()
        steps = self.sampling([self.controls[name]] if applied else [])
        forget_recorded()  # each column records graphs of its own, whose tensors `taken` keeps
        next(steps)
        if applied:
            hint, empty = self.hints[name], as_picture(blank(name, self.models.size))
            yield own | {"event": "encoder", "layers": insides.signals(applied.net, hint, empty)}
        for i, controlled in enumerate(self.controlled):
            with insides.watched(watch, taken):
                x, x0 = next(steps)
            event = own | {"event": "step", "step": i, "of": self.wanted.steps}
            event |= {"preview": png(insides.preview(x0[0], self.models.map))}
            if applied and controlled:
                event |= {"connections": insides.loudness(taken, unet, applied)}
            if self.wanted.attention:
                event |= {"attention": self.attention(taken)}
            yield event
        pixels = to_pixels(refuse_nan(self.models.sd.decode(refuse_nan(x)))[0])
        yield own | {"event": "picture", "png": png(pixels), "score": self.score_of(name, pixels)}

    def sampling(self, controls: list[Control]) -> Iterator[tuple[Tensor, Tensor]]:
        """The steps of one picture, as `generate` in sample.py takes them."""
        sd, wanted, size = self.models.sd, self.wanted, self.models.size
        noise = initial_noise(1, size, size, torch.Generator("cpu").manual_seed(wanted.seed))
        context, uncond = sd.encode_prompts(wanted.prompt), sd.encode_prompts(wanted.negative)
        names = *RULES, "steps", "scale", "control_from", "control_to"
        options = {name: getattr(wanted, name) for name in names}
        return sampling_steps(sd, noise, context, uncond, controls, **options)

    def attention(self, taken: insides.Taken) -> list[str]:
        """A grey picture for each word; white is the largest attention that any word gets."""
        unet, n = self.models.sd.unet, self.models.size // 8
        maps = insides.attention_maps(taken, unet, self.spans, n)
        most = maps.max().clamp(min=1e-9) if self.spans else 1
        return [png(one.numpy()) for one in (255 * maps / most).to(torch.uint8)]

    def score_of(self, column: str, pixels: np.ndarray) -> float | None:
        """How well a picture [H, W, 3] follows its hint, or without control the drawing's; None
        where that cannot be measured. See scores.py; a drawing's score is as Canny's there."""
        drawing, detector = self.wanted.drawing, self.models.detector
        condition = drawing.condition if column == NONE else column
        hint, image = self.hints[condition], as_tensor(Image.fromarray(pixels))
        if detector is None or is_empty(hint):
            return None
        if drawing.scene and not drawing.strokes:
            return score(condition, image[None] * 2 - 1, [drawing.scene], detector)
        if condition != "canny":
            return None
        edges, lines = (x[0].numpy() > 0.5 for x in (canny(image, *THRESHOLDS), hint))
        return f1(edges, lines, near(WITHIN["canny"], edges.shape))


# --------------------------------------------------------------------------------- the command


def command_for(models: Models, wanted: SimpleNamespace, out: Path) -> dict[str, Any]:
    """The line of sample.py that makes the first column's picture again, with the same pixels. The
    hint that it names is saved in the folder `out`.

    It uses one thread and makes one picture: otherwise the last bits of the sums differ.
    """
    prompt = wanted.prompt + " " * (wanted.prompt == "default")  # alone it means the paper's
    flags = ["sample.py", "--n=1", f"--base={near_here(models.base)}", f"--prompt={prompt}"]
    flags += [f"--negative={wanted.negative}"] * bool(wanted.negative)
    flags += [f"--seed={wanted.seed}", f"--steps={wanted.steps}", f"--scale={wanted.scale}"]
    if (column := wanted.columns[0]) != NONE:
        file = saved_hint(drawn_hint(wanted.drawing, column, models.size), out)
        control = near_here(models.control(column, wanted.run_step)[1])
        each = wanted.strength if isinstance(wanted.strength, tuple) else [wanted.strength]
        flags += [f"--control={control}", f"--hint={file}", f"--strength={joined([*each])}"]
        flags += [f"--control-from={wanted.control_from}", f"--control-to={wanted.control_to}"]
        flags += [f"--{rule.replace('_', '-')}" for rule in RULES if getattr(wanted, rule)]
    line = shlex.join(["python", *flags, f"--device={models.device}"])
    return {"command": f"OMP_NUM_THREADS=1 {line}"}


def near_here(path: Path) -> Path:
    """The path as one would type it in the current folder."""
    return Path(os.path.relpath(path)) if path.resolve().is_relative_to(Path.cwd()) else path


def saved_hint(hint: Tensor, folder: Path) -> Path:
    """Write a hint [3, H, W] under a name that its pixels determine. Raises Refused with status 507
    if the folder holds too many."""
    pixels = to_bytes(hint)
    file = make_folder("--out", folder) / f"hint-{sha256(pixels.tobytes()).hexdigest()[:8]}.png"
    if not file.exists():
        if len([*folder.glob("hint-*.png")]) >= MOST:
            raise Refused(f"{folder} holds {MOST} hints: delete those that you do not need", 507)
        save_picture(Image.fromarray(pixels), file)
    return file

"""Measurements: of a variant while it learns and at its end, of the parts of a ControlNet, and of
pictures that are made without training."""

from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import train
from nanocontrol import DDPM, ControlNet, StableDiffusion
from nanocontrol.checkpoint import load_control, load_sd
from nanocontrol.nano.detector import KIND, Detector, load_detector
from nanocontrol.nano.evaluate import shows_colours
from nanocontrol.nano.follows import counted, follows, kind_and_place
from nanocontrol.nano.model import DETECTOR, NANO, WEIGHTS
from nanocontrol.nano.scenes import HELD_OUT, Scenes
from nanocontrol.nano.scores import score
from nanocontrol.nano.world import Scene, draw
from nanocontrol.plumbing import machine
from nanocontrol.sampling import Control
from nanocontrol.schedulers import STEPS
from nanocontrol.training.measure import HeldOut, make_pictures

DURING, AT_END = 16, 64  # held-out scenes
AT_ONCE = 32  # pictures

# --------------------------------------------------------------------- while a variant learns


def held_out_scenes_of(sd: StableDiffusion) -> tuple[HeldOut, list[Scene]]:
    """The scenes that every variant is measured on."""
    scenes = Scenes("canny", HELD_OUT, n=AT_END, size=sd.size)
    return HeldOut.of(sd, scenes), [scenes.scene(i) for i in range(len(scenes))]


class Evaluation:
    """In the place of train.evaluate: on 16 scenes during the run and on 64 at its end. During the
    run it also measures the score of each picture (score_0, ...), how much of the hints the
    condition encoder passes on (spread_0, ..., spread_last) and the gradient of each part
    (gradient_encoder, ...)."""

    def __init__(self) -> None:
        self.pairs: HeldOut | None = None

    def __call__(
        self, sd: StableDiffusion, control: ControlNet, held_out: HeldOut, _: Any, batch_size: int
    ) -> tuple[list[Tensor], dict]:
        if self.pairs is None:
            self.pairs, self.scenes = held_out_scenes_of(sd)
        if len(held_out.images) != train.SHEET:  # the run has ended
            return train.evaluate(sd, control, self.pairs, self.mean_scores, batch_size)
        pairs = self.pairs.first(DURING)
        rows, numbers = train.evaluate(sd, control, pairs, self.all_scores, batch_size)
        spreads = spread_by_layer(control.input_hint_block, pairs.hints)
        numbers |= {f"spread_{i}": spread for i, spread in enumerate(spreads)}
        if spreads:  # a single zero convolution has no SiLU
            numbers["spread_last"] = spreads[-1]
        return rows, numbers | gradient_by_part(sd, control, pairs.first(batch_size))

    def mean_scores(self, images: Tensor) -> dict[str, float | None]:
        numbers = self.all_scores(images)
        return {name: numbers[name] for name in ("score", "follows")}

    def all_scores(self, images: Tensor) -> dict[str, float | None]:
        scenes = self.scenes[: len(images)]
        each = [score("canny", images[i : i + 1], [s], detector()) for i, s in enumerate(scenes)]
        numbers = {"score": float(np.mean(each))}
        share = follows("canny", images, scenes, detector())
        return numbers | {"follows": share} | {f"score_{i}": x for i, x in enumerate(each)}


# ------------------------------------------------------------------------ inside a ControlNet


def spread(x: Tensor) -> float:
    """The standard deviation of activations [B, C, H, W] across pictures: the root mean square
    over channels and places."""
    return x.float().var(dim=0).mean().sqrt().item()


@torch.no_grad()
def spread_by_layer(encoder: nn.Sequential, hints: Tensor) -> list[float]:
    """The standard deviation across hints [n, 3, H, W] after each SiLU of a condition encoder."""
    spreads = []
    x = hints.to(next(encoder.parameters()))
    for module in encoder:
        x = module(x)
        if isinstance(module, nn.SiLU):
            spreads.append(spread(x))
    return spreads


def weights_of(control: ControlNet) -> dict[str, list[nn.Parameter]]:
    """The weights that are trained: of the condition encoder, of the zero convolution that ends it,
    of the copy, and of the zero convolutions of its outputs."""
    parts = {
        "encoder": [*control.input_hint_block[:-1]],
        "hint_zero": [control.input_hint_block[-1]],
        "copy": [control.time_embed, control.input_blocks, control.middle_block],
        "zeros": [control.zero_convs, control.middle_block_out],
    }
    return {
        name: [p for module in modules for p in module.parameters() if p.requires_grad]
        for name, modules in parts.items()
    }


def norm(gradients: Sequence[Tensor | None]) -> float:
    known = [gradient for gradient in gradients if gradient is not None]
    return nn.utils.get_total_norm(known).item() if known else 0.0


def gradient_by_part(sd: StableDiffusion, control: ControlNet, pairs: HeldOut) -> dict[str, float]:
    """The norm of the gradient of each part's weights: the gradient of these pairs' mean loss, with
    fixed noise and t spaced evenly over 0..999."""
    device, n = next(control.parameters()).device, len(pairs.images)
    noise = torch.randn(pairs.x0.shape, generator=torch.Generator().manual_seed(0))
    t = ((torch.arange(n) + 0.5) / n * STEPS).long()
    x0, hints, noise, t = (x.to(device) for x in (pairs.x0, pairs.hints, noise, t))
    with torch.no_grad():
        context = sd.encode_prompts(pairs.prompts).to(device)
    given = sd.unet, control, DDPM(sd.prediction, device), x0, hints, context, noise, t
    loss = train.diffusion_loss(*given).mean()
    parts = weights_of(control)
    found = iter(torch.autograd.grad(loss, sum(parts.values(), []), allow_unused=True))
    return {f"gradient_{name}": norm([next(found) for _ in own]) for name, own in parts.items()}


# ------------------------------------------------------------------ pictures without training


@cache
def nano() -> StableDiffusion:
    machine.for_sampling()
    return load_sd(NANO, machine.default_device())


@cache
def detector() -> Detector:
    return load_detector(DETECTOR)


@cache
def bundled(condition: str) -> ControlNet:
    """condition: "canny", "depth" or "pose"."""
    return load_control(WEIGHTS / f"nano-control-{condition}.safetensors", nano().unet)


def pictures(
    prompts: Sequence[str], controls: Sequence[Control], seed: int, **options: Any
) -> Tensor:
    """nano's pictures, made by `make_pictures`."""
    return make_pictures(nano(), prompts, controls, AT_ONCE, seed, **options)


def kinds_seen(images: Tensor) -> np.ndarray:
    """[n, size, size], the detector's size: 0 where it sees the wall, 1 the first of KINDS, ..."""
    return detector()(detector().fitted(images))[0][:, KIND].argmax(dim=1).numpy()


def placed(condition: str, images: Tensor, scenes: list[Scene]) -> float:
    """The share of objects that are right in kind and place: `follows` without the colours, which
    only a prompt tells."""
    kinds = kinds_seen(images)
    drawings = [draw(scene, detector().size) for scene in scenes]
    right = [
        kind_and_place(seen, drawing, i)
        for seen, drawing in zip(kinds, drawings)
        for i in counted(condition, drawing)
    ]
    return float(np.mean(right))


def shown(condition: str, images: Tensor, scenes: list[Scene]) -> dict[str, float | None]:
    """How well pictures follow the scenes' hints and prompts."""
    return {
        "score": score(condition, images, scenes, detector()),
        "placed": placed(condition, images, scenes),
        "follows": follows(condition, images, scenes, detector()),
        "colours": float(np.mean(shows_colours(images, scenes))),
    }

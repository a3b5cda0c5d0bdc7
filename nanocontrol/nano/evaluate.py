"""Evaluate nano and its ControlNets on held-out scenes, from fixed noise; prints JSON.

    python -m nanocontrol.nano.evaluate [--base FILE] [--control FILE ...] [--n 64]

| number      | meaning, over n scenes                                                             |
|-------------|------------------------------------------------------------------------------------|
| vae_db      | peak signal-to-noise ratio of the VAE's reconstructions in dB, mean over pictures  |
| noisy_db    | the same with noise on the latents, a tenth of their standard deviation            |
| background  | without control: share of pictures whose background has the prompted colour        |
| colours     | without control: share of pictures that show the colour of every prompted object   |
| shapes      | without control: share of pictures in which the detector finds exactly the         |
|             | prompted kinds of objects                                                          |
| shapes_true | shapes for the true pictures, which shows how reliable the detector is             |
| iou         | with a Canny ControlNet only: intersection over union of the objects found in the  |
|             | generated and in the true picture, mean over pictures                              |
| edges       | how straight edges are, on scenes of cubes and pyramids alone: F1 of the Canny     |
|             | edges of pictures against the drawn scenes', within one pixel of 128, for pictures |
|             | `rebuilt` by the VAE, `true` ones and, with a Canny ControlNet, those `with` it    |
| conditions  | for each ControlNet: the score (scores.py) of pictures `with` it, of pictures      |
|             | `without` control, and of the `true` pictures; the share of correct objects        |
|             | (follows.py) in pictures with it, `follows`, and in true ones, `follows_true`      |

Two flags add numbers:

| flag    | number                                                                                 |
|---------|----------------------------------------------------------------------------------------|
| --more  | all_there: without control, share of pictures that show every prompted kind and every  |
|         | prompted colour. For each condition: follows_without: without control; follows_other:  |
|         | each scene against the picture made from another scene's hint; follows_told: only      |
|         | scenes without two objects of one kind, because neither hint nor prompt determines     |
|         | which of the two has which colour                                                      |
| --crisp | crisp, and the distances that it is computed from (crisp.py); 1,000 more pictures      |
"""

import argparse
import json
from functools import cache
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nanocontrol.checkpoint import load_sd
from nanocontrol.controlnet import ControlNet
from nanocontrol.nano.crisp import FIRST_OF_A, FIRST_OF_B, SCENES, crisp
from nanocontrol.nano.detector import Detector, load_detector
from nanocontrol.nano.follows import follows, nearest_colours
from nanocontrol.nano.model import DETECTOR, NANO, WEIGHTS, controls_by_condition
from nanocontrol.nano.scenes import HELD_OUT, Scenes, held_out_scenes
from nanocontrol.nano.scores import edges_met, score
from nanocontrol.nano.world import COLOURS, KINDS, POLYHEDRA, Scene, draw
from nanocontrol.plumbing.errors import blame, one_sentence
from nanocontrol.plumbing.flags import Parser, at_least
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.measure import border, make_pictures, mean_iou


def background_is(image: Tensor, colour: str) -> bool:
    """Whether this colour is the one of COLOURS nearest to the border's median."""
    seen = (border(image).median(dim=1).values.numpy() + 1) / 2
    return min(COLOURS, key=lambda name: np.linalg.norm(COLOURS[name] - seen)) == colour


def shows_colour(image: Tensor, colour: str) -> bool:
    """Whether this colour is the nearest of all COLOURS, in light and shade, for more than 3 % of
    the pixels."""
    nearest = nearest_colours(((image + 1) / 2).permute(1, 2, 0).numpy())
    return bool(np.mean(nearest == list(COLOURS).index(colour)) > 0.03)


def shows_colours(images: Tensor, scenes: list[Scene]) -> np.ndarray:
    """Whether each picture shows the colours of all objects of its scene [n]."""
    pairs = zip(images, scenes)
    return np.array([all(shows_colour(p, t.colour) for t in scene.things) for p, scene in pairs])


def shows_kinds(detector: Detector, images: Tensor, scenes: list[Scene]) -> float:
    """Share of pictures in which the detector finds exactly the scene's kinds of objects."""
    shown = detector(images.to(next(detector.parameters())))[1].cpu() > 0
    return shown.eq(kinds_shown(scenes)).all(dim=1).float().mean().item()


def has_kinds(detector: Detector, images: Tensor, scenes: list[Scene]) -> np.ndarray:
    """Whether the detector finds all kinds of objects of its scene in each picture [n]."""
    return ((detector(images)[1] > 0) | ~kinds_shown(scenes)).all(dim=1).numpy()


def kinds_shown(scenes: list[Scene]) -> Tensor:
    """Whether each scene has each of KINDS [n, 5]."""
    return torch.tensor([[bool(scene.of(kind)) for kind in KINDS] for scene in scenes])


def psnr(a: Tensor, b: Tensor) -> float:
    """Peak signal-to-noise ratio of pictures [B, 3, H, W] in [-1, 1] in dB, mean over pictures."""
    mse = ((a - b) / 2).square().mean(dim=(1, 2, 3))
    return (-10 * torch.log10(mse)).mean().item()


@torch.no_grad()
def rebuild(sd: StableDiffusion, images: Tensor, noise: float = 0.0) -> Tensor:
    """The VAE's reconstructions of images [B, 3, H, W] in [-1, 1], on the CPU. noise: added to each
    picture's latents, in their standard deviations."""
    mean, _ = sd.vae.encode(images.to(next(sd.vae.parameters())))
    drawn = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0)).to(mean)
    mean = mean + noise * mean.std(dim=(1, 2, 3), keepdim=True) * drawn
    return sd.vae.decode(mean).float().clamp(-1, 1).cpu()


def evaluate_nano(
    sd: StableDiffusion,
    controls: dict[str, ControlNet],
    detector: Detector,
    n: int,
    more: bool = False,
) -> dict:
    """The numbers of the tables above, without crisp. controls: by the names of their conditions.
    more: as --more."""

    @cache
    def uncontrolled(prompts: tuple[str, ...]) -> Tensor:
        """Pictures without control. They are cached, because most conditions share the prompts."""
        return make_pictures(sd, prompts)

    images, _, prompts, scenes = held_out_scenes("canny", n, size=sd.size)
    plain = uncontrolled(prompts)
    backgrounds = [background_is(p, scene.background) for p, scene in zip(plain, scenes)]
    coloured = shows_colours(plain, scenes)
    numbers: dict[str, Any] = {
        "vae_db": psnr(rebuild(sd, images), images),
        "noisy_db": psnr(rebuild(sd, images, 0.1), images),
        "background": float(np.mean(backgrounds)),
        "colours": float(np.mean(coloured)),
        "shapes": shows_kinds(detector, plain, scenes),
        "shapes_true": shows_kinds(detector, images, scenes),
        "conditions": {},
    }
    numbers["edges"] = edge_numbers(sd, controls.get("canny"), n)
    if more:
        numbers["all_there"] = float(np.mean(coloured & has_kinds(detector, plain, scenes)))
    for condition, control in controls.items():
        images, hints, prompts, scenes = held_out_scenes(condition, n, size=sd.size)
        made = make_pictures(sd, prompts, [(control, hints, 1.0)])
        if condition == "canny":
            numbers["iou"] = mean_iou(made, images)
        sets = {"with": made, "without": uncontrolled(prompts), "true": images}
        numbers["conditions"][condition] = of_condition(condition, sets, scenes, detector, more)
    return numbers


def edge_numbers(sd: StableDiffusion, control: ControlNet | None, n: int) -> dict[str, float]:
    """`edges`, on the first n held-out scenes of cubes and pyramids alone."""
    data = Scenes("canny", HELD_OUT, size=sd.size)
    straight = (i for i in count() if all(t.kind in POLYHEDRA for t in data.scene(i).things))
    chosen = [*islice(straight, n)]
    images, hints, prompts = zip(*(data[i] for i in chosen))
    true, drawings = torch.stack(images), [draw(data.scene(i), sd.size) for i in chosen]
    sets = {"rebuilt": rebuild(sd, true), "true": true}
    if control:
        sets["with"] = make_pictures(sd, prompts, [(control, torch.stack(hints), 1.0)])
    pixels = {name: ((x + 1) / 2).permute(0, 2, 3, 1).numpy() for name, x in sets.items()}
    return {
        name: float(np.mean([edges_met(*pair, within=0.5) for pair in zip(some, drawings)]))
        for name, some in pixels.items()
    }


def of_condition(
    condition: str, sets: dict[str, Tensor], scenes: list[Scene], detector: Detector, more: bool
) -> dict:
    """The numbers of one entry of `conditions`, from three sets of pictures."""
    numbers: dict[str, Any] = {
        name: score(condition, some, scenes, detector) for name, some in sets.items()
    }
    compared = {"follows": sets["with"], "follows_true": sets["true"]}
    if more:
        others = sets["with"].roll(1, dims=0)
        compared |= {"follows_without": sets["without"], "follows_other": others}
        told = [i for i, s in enumerate(scenes) if len({t.kind for t in s.things}) == len(s.things)]
        of_told = [scenes[i] for i in told]
        numbers["follows_told"] = follows(condition, sets["with"][told], of_told, detector)
    return numbers | {
        name: follows(condition, some, scenes, detector) for name, some in compared.items()
    }


def evaluate_crisp(sd: StableDiffusion, detector: Detector, n: int = SCENES) -> dict:
    """The numbers of crisp.py, with n scenes in each set."""
    a, hints, prompts, _ = held_out_scenes(None, n, FIRST_OF_A, sd.size)
    b = held_out_scenes(None, n, FIRST_OF_B, sd.size)[0]
    rebuilt = torch.cat([rebuild(sd, part) for part in a.split(50)])
    return crisp(detector, make_pictures(sd, prompts), rebuilt, a, b)


def main(argv: list[str] | None = None) -> None:
    bundled = sorted(WEIGHTS.glob("nano-control-*.safetensors"))
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--base", default=NANO, type=Path)
    add("--control", default=bundled, nargs="+", type=Path, metavar="FILE")
    add("--detector", default=DETECTOR, type=Path)
    add("--n", default=64, type=at_least(1), help="scenes to measure on (default: 64)")
    add("--more", action="store_true", help="see above")
    add("--crisp", action="store_true", help="see above; takes minutes")
    args = parser.parse_args(argv)
    with one_sentence("evaluate"):
        with blame("--base"):
            sd = load_sd(args.base)
        with blame("--detector"):
            detector = load_detector(args.detector)
        with blame("--control"):
            controls = controls_by_condition(args.control, sd)
        numbers = evaluate_nano(sd, controls, detector, args.n, args.more)
        if args.crisp:
            numbers |= evaluate_crisp(sd, detector)
        print(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()

"""Pictures to look at, of what limits.py counts:

    python -m nanocontrol.experiments.limits_sheet

writes assets/experiments/limits-prompts.png and limits-hints.png, and says the prompts. A row is a
scene, or a hint; in one row all pictures begin with the same noise.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from nanocontrol.experiments.encoder_at_size import edges_of_photographs
from nanocontrol.experiments.limits import drawn_by_hand, other_colours, other_kinds
from nanocontrol.experiments.pictures import bundled, nano, pictures
from nanocontrol.experiments.results import ASSETS
from nanocontrol.nano.scenes import held_out_scenes
from nanocontrol.nano.world import Scene
from nanocontrol.plumbing.pictures import columns_with_titles, save_picture, to_pixels
from nanocontrol.sampling import Control

SCENES, SEED = 5, 0


def made(prompts: Sequence[str], *controls: Control, **ways: Any) -> Tensor:
    return pictures(nano(), prompts, controls, SEED, **ways)


def of_prompts(scenes: list[Scene], hints: Tensor) -> dict[str, Tensor]:
    """A prompt that contradicts the hint, and control in a part of the steps."""
    own, kinds, colours = (
        [scene.prompt for scene in map(change, scenes)]
        for change in (lambda scene: scene, other_kinds, other_colours)
    )
    whole, half = (bundled("canny"), hints, 1.0), (bundled("canny"), hints, 0.5)
    return {
        "hint": hints * 2 - 1,
        "prompt agrees": made(own, whole),
        "other kinds": made(kinds, whole),
        "..., strength 0.5": made(kinds, half),
        "other colours": made(colours, whole),
        "no control": made(own),
        "first 25 % of steps": made(own, whole, control_to=0.25),
        "last 50 % of steps": made(own, whole, control_from=0.5),
    }


def of_hints(scenes: list[Scene], edges: Tensor, depths: Tensor) -> dict[str, Tensor]:
    """Two controls that disagree, then hints from outside; all without a prompt."""
    none, others = [""] * SCENES, depths.roll(1, dims=0)
    photographs, drawn = edges_of_photographs(nano().size), drawn_by_hand(nano().size)
    outside = torch.cat([photographs[: SCENES - 2], drawn[:2]])

    def both(of_edges: float, of_depth: float) -> Tensor:
        controls = (bundled("canny"), edges, of_edges), (bundled("depth"), others, of_depth)
        return made(none, *controls)

    return {
        "edges": edges * 2 - 1,
        "another's depth": others * 2 - 1,
        "both": both(1.0, 1.0),
        "both, edges 0.5": both(0.5, 1.0),
        "both, depth 0.5": both(1.0, 0.5),
        "from outside": outside * 2 - 1,
        "followed": made(none, (bundled("canny"), outside, 1.0)),
    }


def sheet(columns: dict[str, Tensor]) -> Image.Image:
    strips = [
        np.concatenate([to_pixels(image) for image in images], axis=1)
        for images in columns.values()
    ]
    return columns_with_titles(strips, list(columns), width=nano().size)


def main() -> None:
    _, edges, _, scenes = held_out_scenes("canny", SCENES, size=nano().size)
    _, depths, _, _ = held_out_scenes("depth", SCENES, size=nano().size)
    for scene in scenes:
        others = other_kinds(scene).prompt, other_colours(scene).prompt
        print(f"{scene.prompt}; other kinds: {others[0]}; other colours: {others[1]}")
    sheets = {"prompts": of_prompts(scenes, edges), "hints": of_hints(scenes, edges, depths)}
    for name, columns in sheets.items():
        file = ASSETS / f"limits-{name}.png"
        save_picture(sheet(columns), file)
        print(file)


if __name__ == "__main__":
    main()

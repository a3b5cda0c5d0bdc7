"""One scene through every condition: a figure of the hints and the pictures made from them.

    python -m nanocontrol.nano.nine --control FILE ... [--seed 1000000] [--out FILE]

There is a column for each ControlNet. The top row has the hints. The bottom row has pictures from
the scene's prompt and the same noise in every column. The first column has the scene's own picture,
and the picture made without control.
"""

import argparse
from itertools import count
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from nanocontrol.checkpoint import load_sd
from nanocontrol.controlnet import ControlNet
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.model import NANO, controls_by_condition
from nanocontrol.nano.scenes import HELD_OUT
from nanocontrol.nano.world import POLYHEDRA, draw, random_scene
from nanocontrol.plumbing.errors import blame, one_sentence, say
from nanocontrol.plumbing.files import make_folder
from nanocontrol.plumbing.flags import Parser, seed
from nanocontrol.plumbing.pictures import columns_with_titles, save_picture, to_pixels
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.measure import make_pictures


def side_by_side(sd: StableDiffusion, controls: dict[str, ControlNet], first: int) -> Image.Image:
    """The figure for the first scene, from seed `first` on, that leaves no hint empty: one with a
    figure, and a cube or pyramid."""
    scenes = (random_scene(seed, kinds=("figure",)) for seed in count(first))
    scene = next(scene for scene in scenes if scene.of(*POLYHEDRA))
    drawing = draw(scene, sd.size)

    def column(condition: str, control: ControlNet | None) -> np.ndarray:
        above = CONDITIONS[condition](drawing) if control else drawing.image
        hint = torch.from_numpy(above).permute(2, 0, 1)
        controls = [(control, hint[None], 1.0)] if control else []
        made = make_pictures(sd, [scene.prompt], controls)[0]
        return np.concatenate([to_pixels(hint * 2 - 1), to_pixels(made)], axis=1)

    columns = [column("", None)]
    columns += [column(name, control) for name, control in tqdm(controls.items(), "sampling")]
    return columns_with_titles(columns, ["picture", *controls], width=sd.size)


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--base", default=NANO, type=Path)
    parser.add_argument("--control", nargs="+", required=True, type=Path, metavar="FILE")
    parser.add_argument("--seed", type=seed, default=HELD_OUT, help=f"default: {HELD_OUT}")
    parser.add_argument("--out", type=Path, default=Path("out/nine.png"), metavar="FILE")
    args = parser.parse_args(argv)
    with one_sentence("nine"):
        with blame("--base"):
            sd = load_sd(args.base)
        with blame("--control"):
            controls = controls_by_condition(args.control, sd)
        make_folder("--out", args.out.parent)
        save_picture(side_by_side(sd, controls, args.seed), args.out)
    say(args.out)


if __name__ == "__main__":
    main()

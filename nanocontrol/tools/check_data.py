"""Look at a folder of pictures as training would, and say what it would find; nothing is trained.

    python -m nanocontrol.tools.check_data photos/ --hints canny

prints what is wrong, a line each with file and line, then what one should know, and leaves a sheet
of pairs as training will see them. Exit status 1 where training would refuse, else 0
(and 2 where the sheet cannot be written).
"""

import argparse
import sys
from pathlib import Path

import torch
from PIL import Image

from nanocontrol.plumbing.errors import one_sentence, say
from nanocontrol.plumbing.files import make_folder
from nanocontrol.plumbing.flags import Parser, at_least, canny_or_folder, width_and_height
from nanocontrol.plumbing.pictures import grid, save_picture
from nanocontrol.training.check import Findings, evenly_spaced, look_through
from nanocontrol.training.pairs import Folder, View

SHOWN, IN_ROW, WIDEST = 16, 8, 1600  # pairs on a sheet, pictures in a row, width in pixels


def check_data(args: argparse.Namespace) -> Findings:
    """Print what training would find; of pairs that it would take, leave a sheet."""
    width, height = map(int, args.size.split("x"))
    folder = Folder(args.folders, View((width, height), args.crop, args.hints))
    found = look_through(folder, args.steps, args.batch_size)
    for line in found.wrong.values():
        say(f"wrong: {line}")
    for line in found.notes:
        say(line)
    if not found.wrong:
        make_folder("--out", args.out.parent)
        save_picture(sheet_of_pairs(folder), args.out)
        say(args.out)
    return found


def sheet_of_pairs(folder: Folder) -> Image.Image:
    """A sheet of some pairs as training will see them: hint, picture, hint, picture, ..."""
    n, random = len(folder), folder.view.crop == "random"
    some = [folder[(i, i) if random else i] for i in evenly_spaced(n, SHOWN)]
    cells = [cell for image, hint, _ in some for cell in (hint * 2 - 1, image)]
    cells += [torch.ones_like(cells[0])] * (-len(cells) % IN_ROW if n > IN_ROW // 2 else 0)
    image = grid([cells[i : i + IN_ROW] for i in range(0, len(cells), IN_ROW)])
    image.thumbnail((WIDEST, image.height))
    return image


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("check_data", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("folders", type=Path, nargs="+", metavar="DIR", help="as train.py's --data; several: all")
    add("--hints", type=canny_or_folder, help="as train.py's, as are the next")
    add("--size", type=width_and_height, default="512x512", help="default: 512 (nano has 128)")
    add("--crop", choices=["middle", "random"], default="middle", help="default: middle")
    add("--steps", type=at_least(1), default=20_000, help="default: 20000")
    add("--batch-size", type=at_least(1), default=4, help="default: 4")
    add("--out", type=Path, default=Path("out/pairs.png"), help="default: out/pairs.png")
    args = parser.parse_args(argv)
    with one_sentence("check_data"):
        found = check_data(args)
    if found.wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()

"""How well pictures follow their hints, anyone's pictures too:

    python -m nanocontrol.tools.score --hints DIR --pictures DIR --condition canny
    python -m nanocontrol.tools.score --hints DIR --pictures DIR --condition canny --photos
    python -m nanocontrol.tools.score --hints DIR --pictures DIR --condition depth --maps DIR

The condition is found again in each picture, and this map is compared with the hint. Canny's edges
are found here; maps of other kinds are made by a detector of yours, of the pictures, in the form of
the hints. With --maps only the pictures' names are used. With --photos the hints are photographs,
as sample.py --canny takes them: their edges are found too. A picture's score, at most 1:

| condition              | score                                                                 |
|------------------------|-----------------------------------------------------------------------|
| canny, hough, cartoon  | F1 of lines, within 1 pixel (cartoon: dark on white; the others: light |
|                        | on black)                                                             |
| scribble               | the same, within 2 pixels                                             |
| soft, depth            | correlation of the two maps                                           |
| segmentation           | intersection over union, mean over the colours of the hint            |
| normals                | share of pixels within 22.5 degrees, of those where the hint is not   |
|                        | the flat background (128, 128, 255)                                   |
| pose                   | F1 of all that is drawn (not black), within 3 pixels                  |

Pixels are those of a picture whose short side is 64; at other sizes the distances are larger in
proportion. The definitions are those of nano's own scores (nano/scores.py), but for two. Pose: nano
counts joints that its detector finds. A drawn pose tells joints by colours, which differ from one
detector to the next, so here limbs count too, and left is not told from right. Normals: pixels at
the rim of things, mixed with the background, count here. (For scribbles nano takes the outlines of
what its detector finds; here a map of scribbles.)

Names: a picture `NAME.png` follows the hint `NAME.png`, and so do `NAME-anything.png` and
`NAME_anything.png`; of several such hints the one of the longest name is taken. A picture's map has
the picture's name. The files are of the kinds that training reads. Pictures and maps of another
size than the hint are brought to the hint's. (Thin lines fade where a map is made smaller: detect
them at the hint's size.) A photograph is brought to the picture's size.

It prints JSON: the condition, the number of pictures, the mean of their scores, the standard
deviation of these, and the five worst pictures.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from nanocontrol.nano.scores import WITHIN
from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.compare import correlation, f1, mean_overlap, near, share_of_normals
from nanocontrol.plumbing.errors import LONGEST, InputError, blame, one_sentence, say
from nanocontrol.plumbing.flags import Parser, at_least
from nanocontrol.plumbing.pictures import (
    PICTURES,
    picture_size,
    pictures_in,
    read_picture,
    size_to_sample,
)

CONDITIONS = [*WITHIN, "soft", "depth", "segmentation", "normals"]
FLAT = torch.tensor([0.5, 0.5, 1]).view(3, 1, 1)  # a normal that looks at the viewer
MOST_COLOURS = 256  # of a segmentation: JPEG and smoothing make thousands
THRESHOLDS = (100, 200)
LARGEST = 2040  # of Canny's gradients
MOST_ENLARGED = 2  # times, along each side


def score_map(condition: str, hint: Tensor, found: Tensor) -> float:
    """The map that a picture was to follow, and the one that was found in it, both [3, H, W], RGB
    in [0, 1] -> the picture's score."""
    if condition in WITHIN:
        within = near(WITHIN[condition], (hint.shape[1], hint.shape[2]))
        return f1(drawn_lines(condition, found), drawn_lines(condition, hint), within)
    if condition == "segmentation":
        return mean_overlap(labels_of(found), labels_of(hint))
    if condition == "normals":
        things = is_not_flat(hint)
        return share_of_normals(found.numpy()[:, things], hint.numpy()[:, things])
    return correlation(found.mean(dim=0).numpy(), hint.mean(dim=0).numpy())


def drawn_lines(condition: str, image: Tensor) -> np.ndarray:
    """[3, H, W] in [0, 1] -> bool [H, W]. A limb in one dim colour is a line, too."""
    if condition == "pose":
        return (image.amax(dim=0) > 0.25).numpy()
    grey = image.mean(dim=0)
    return (grey < 0.5 if condition == "cartoon" else grey > 0.5).numpy()


def labels_of(image: Tensor) -> np.ndarray:
    """[3, H, W] in [0, 1] -> [H, W], a number for each colour."""
    red, green, blue = (image * 255).round().long()
    return (256 * (256 * red + green) + blue).numpy()


def is_not_flat(image: Tensor) -> np.ndarray:
    """[3, H, W] in [0, 1] -> bool [H, W]; 127 or 128 of 255 is flat, and one more to be safe."""
    return ((image - FLAT).abs().amax(dim=0) > 2 / 255).numpy()


# ------------------------------------------------------------------------------ reading maps


def read_map(condition: str, file: Path, size: tuple[int, int] | None = None) -> Tensor:
    """A hint, or a map that was found: [3, H, W] in [0, 1], of this size (width, height) if one is
    given. Refuses maps that are not drawn as this condition's are: each would have some score."""
    if condition == "segmentation" and size:  # colours are names: they must not be mixed
        image = F.interpolate(read_picture(file)[None], size[::-1], mode="nearest-exact")[0]
    else:
        image = read_picture(file, size)
    if condition in WITHIN and drawn_lines(condition, image).mean() > 0.5:
        form = "dark lines on white" if condition == "cartoon" else "light lines on black"
        raise InputError(f"{file} is more than half lines; expected {form}")
    if condition == "segmentation" and len(np.unique(labels_of(image))) > MOST_COLOURS:
        form = "one for each kind of thing, not smoothed, and no JPEG"
        raise InputError(f"{file} has more than {MOST_COLOURS} colours; expected {form}")
    return image


def read_hint(condition: str, file: Path) -> Tensor:
    """[3, H, W] in [0, 1]"""
    hint = read_map(condition, file)
    if condition == "normals" and not is_not_flat(hint).any():
        raise InputError(f"{file} is flat background all over; expected normals of something")
    return hint


def check_shape(file: Path, size: tuple[int, int], hint: Path, hint_size: tuple[int, int]) -> None:
    """Refuse another shape than the hint's, up to a pixel that was rounded away, or to what
    sample.py makes of a hint: sides of multiples of 64. Sizes are (width, height)."""
    (width, height), (hint_width, hint_height) = size, hint_size
    apart = abs(width * hint_height - height * hint_width)
    sampled = size_to_sample(hint_size, min(size), None, None)
    if apart > max(*size, *hint_size) and size != sampled:
        raise InputError(
            f"{file} is {width}x{height}, but its hint {hint} {hint_width}x{hint_height}; expected "
            "one shape",
            longest=2 * LONGEST,
        )


# -------------------------------------------------------------------------- which belong together


def pictures_by_name(flag: str, folder: Path) -> dict[str, Path]:
    """A folder's pictures, by their names without suffix."""
    named: dict[str, Path] = {}
    with blame(flag):
        files = pictures_in(folder)
    for file in files:
        if file.stem in named:
            both = f"{named[file.stem]} and {file}"
            raise InputError(f"{flag}: {both} have one name; expected one of them", 2 * LONGEST)
        named[file.stem] = file
    if not named:
        raise InputError(f"{flag}: {folder} has no pictures; expected {', '.join(PICTURES)}")
    return named


def hint_of(name: str, hints: dict[str, Path]) -> Path | None:
    """The hint of a picture of this name: the longest of NAME, NAME-anything, NAME_anything."""
    ends = [len(name), *(i for i in reversed(range(len(name))) if name[i] in "-_")]
    return next((hints[name[:end]] for end in ends if name[:end] in hints), None)


def match_files(
    hints_folder: Path, pictures_folder: Path, maps_folder: Path | None
) -> list[tuple[Path, Path, Path | None]]:
    """(picture, hint, map of the picture) for each picture. Hints without pictures are named on
    stderr; a picture without hint or map is refused."""
    hints = pictures_by_name("--hints", hints_folder)
    pictures = pictures_by_name("--pictures", pictures_folder)
    maps = pictures_by_name("--maps", maps_folder) if maps_folder else {}
    together: list[tuple[Path, Path, Path | None]] = []
    for name, picture in pictures.items():
        hint = hint_of(name, hints)
        if hint is None or maps_folder and name not in maps:
            lacks = f"--hints {hints_folder}" if hint is None else f"--maps {maps_folder}"
            what = f"has none of its name in {lacks}; expected one for each picture"
            raise InputError(f"--pictures: {picture} {what}", 2 * LONGEST)
        together.append((picture, hint, maps.get(name)))
    followed = {hint for _, hint, _ in together}
    if left := [hint.name for hint in hints.values() if hint not in followed]:
        names = f"{len(left)} of {len(hints)} hints have no picture: {', '.join(left)}"
        say(f"score: {names}", sys.stderr)
    return together


# ----------------------------------------------------------------------------------- scoring


def score_edges(picture: Path, photo: Path, low: int, high: int) -> float:
    """The edges of a picture against those of the photograph that it was to follow."""
    with blame("--pictures"):
        size = picture_size(picture)
        check_shape(picture, size, photo, picture_size(photo))
        found = canny(read_picture(picture), low, high)
    with blame("--hints"):
        return score_map("canny", canny(read_picture(photo, size), low, high), found)


def score_file(
    condition: str, picture: Path, hint_file: Path, found_file: Path | None, low: int, high: int
) -> float:
    """found_file: the picture's map; None: its edges are found here, by Canny's thresholds."""
    with blame("--hints"):
        hint = read_hint(condition, hint_file)
    size = hint.shape[2], hint.shape[1]
    file = found_file or picture
    with blame("--maps" if found_file else "--pictures"):
        check_shape(file, picture_size(file), hint_file, size)
        if found_file:
            return score_map(condition, hint, read_map(condition, file, size))
        if size[0] > MOST_ENLARGED * picture_size(file)[0]:
            what = "enlarged so much it would have few edges; expected hints of the pictures' size"
            raise InputError(f"{file} is much smaller than its hint {hint_file}: {what}")
        return score_map(condition, hint, canny(read_picture(file, size), low, high))


def summary(condition: str, scores: dict[Path, float]) -> dict:
    """The numbers that are printed, rounded to four digits."""
    values = list(scores.values())
    worst = sorted(scores, key=lambda picture: scores[picture])[:5]
    return {
        "condition": condition,
        "pictures": len(scores),
        "score": round(float(np.mean(values)), 4),
        "deviation": round(float(np.std(values)), 4),
        "worst": [[picture.name, round(scores[picture], 4)] for picture in worst],
    }


def thresholds_of(args: argparse.Namespace) -> tuple[int, int]:
    """Canny's thresholds. Refuses flags that do not go together."""
    if args.condition == "canny" and args.maps:
        raise InputError(f"--maps {args.maps}: the edges of --condition canny are found here")
    if args.condition != "canny" and not args.maps:
        what = "the pictures' maps, made by your detector"
        raise InputError(f"--condition {args.condition} needs --maps, a folder of {what}")
    for flag in "thresholds", "photos":
        if args.condition != "canny" and getattr(args, flag):
            raise InputError(f"--{flag} is for --condition canny, not {args.condition}")
    low, high = args.thresholds or THRESHOLDS
    if not low <= high <= LARGEST:
        what = f"the lower one first, none above {LARGEST}"
        raise InputError(f"--thresholds {low} {high}: expected {what}")
    return low, high


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("score", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--hints", type=Path, required=True, metavar="DIR", help="what was to be followed")
    add("--pictures", type=Path, required=True, metavar="DIR", help="what was generated")
    add("--condition", choices=CONDITIONS, required=True, help="what the hints show")
    add("--maps", type=Path, metavar="DIR", help="the pictures' maps (all but canny)")
    add("--photos", action="store_true", help="the hints are photographs (canny)")
    add("--thresholds", nargs=2, type=at_least(0), metavar=("LOW", "HIGH"), help="default: 100 200")
    args = parser.parse_args(argv)
    with one_sentence("score"):
        low, high = thresholds_of(args)
        together = match_files(args.hints, args.pictures, args.maps)
        with tqdm(together, "scoring") as bar:  # (closed before anything else is printed)
            scores = {
                picture: score_edges(picture, hint, low, high)
                if args.photos
                else score_file(args.condition, picture, hint, found, low, high)
                for picture, hint, found in bar
            }
        print(json.dumps(summary(args.condition, scores)))


if __name__ == "__main__":
    main()

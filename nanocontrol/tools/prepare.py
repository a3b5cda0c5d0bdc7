"""Fill the cache of a training that comes later, here or on another machine.

    python -m nanocontrol.tools.prepare photos/ --hints canny --base FILE
    python -m nanocontrol.tools.prepare photos/ --hints canny --base FILE --part 2/4

checks and encodes all pairs, or a quarter of them, as `train.py --data photos/` would with the same
flags. All flags of train.py are taken. Give the training's --dtype: its default depends on the
machine. Parts may be made at the same time, in one --cache or in several; then copy the files of
their folders `encoded` into one.
"""

import argparse
import itertools
import re
from pathlib import Path

import torch

import train
from nanocontrol.plumbing.errors import InputError, one_sentence, say
from nanocontrol.plumbing.flags import Parser
from nanocontrol.training.cache import encode_all


def share_of(text: str) -> tuple[int, int]:
    """ "2/4" -> 1, 4: the part's number, counted from 0, and the number of parts."""
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not found or int(found[1]) > int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r} is no part; expected one as 2/4")
    return int(found[1]) - 1, int(found[2])


def prepare(settings: train.Settings, part: tuple[int, int]) -> int:
    """Fill the cache -> the number of pairs in the part."""
    if not settings.cache or settings.crop == "random":
        raise InputError("--no-cache, --crop random: such a training reads no cache")
    pairs, *_ = train.pairs_of(settings)
    sd, *_ = train.models(settings)
    with torch.no_grad():
        encode_all(sd, pairs, Path(settings.cache), settings.batch_size, part)
    return len(pairs)


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    usage = "python -m nanocontrol.tools.prepare DIR [DIR ...] [--part K/N] [flags of train.py]"
    parser = Parser(usage=usage, description=__doc__, formatter_class=formatter, allow_abbrev=False)
    parser.add_argument("--part", type=share_of, default=(0, 1), metavar="K/N", help="default: all")
    args, others = parser.parse_known_args(argv)
    folders = [*itertools.takewhile(lambda word: not word.startswith("-"), others)]
    if not folders:
        parser.error("expected folders first, as for train.py's --data")
    with one_sentence("prepare"):
        data = [x for folder in folders for x in ("--data", folder)]
        settings, *_ = train.parse(data + others[len(folders) :])
        say(f"{prepare(settings, args.part)} pairs: {settings.cache}")


if __name__ == "__main__":
    main()

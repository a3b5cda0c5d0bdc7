"""Folders of training pictures: which files form a pair, and which pairs cannot be used.

| list in folder | content                                                                        |
|----------------|--------------------------------------------------------------------------------|
| prompt.json    | one JSON object per line: target, source (the hint), prompt; as in Fill50K     |
| metadata.jsonl | one per line: file_name, conditioning_image, text; as in diffusers' trainer    |
| neither        | every picture of the folder, with its caption next to it: cat.jpg, cat.txt     |

Paths are relative to the folder. If hints are made from the pictures, the list need not name any.
"""

import json
from functools import partial
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import read_text
from nanocontrol.plumbing.pictures import (
    PICTURES,
    is_picture,
    picture_size,
    pictures_in,
    read_caption,
)

# Files that list pairs, and their names for the picture, the hint and the prompt.
LISTS = {
    "prompt.json": (["target"], ["source"], ["prompt"]),  # as published with Fill50K
    "metadata.jsonl": (  # an image folder for diffusers' trainer
        ["file_name", "image", "image_file_name"],
        ["conditioning_image", "conditioning_image_file_name"],
        ["text", "prompt"],
    ),
}
ALIKE = 0.02  # tolerance between the aspect ratios of hint and picture, as sides are whole pixels


class Entry(NamedTuple):
    """A pair as listed by its folder."""

    where: str  # file and line, or the picture's own name
    picture: Path
    hint: Path | None  # None: it is made from the picture
    prompt: str
    size: tuple[int, int] = (0, 0)  # width and height of the picture
    hint_size: tuple[int, int] = (0, 0)
    number: int = 0  # index over all folders
    mirrored: bool = False


def read_folder(folder: Path, own_hints: bool) -> tuple[list[Entry], list[str]]:
    """The folder's pairs, and an error line for each pair that cannot be used. Only the headers of
    pictures are read. own_hints: whether the hints are files of the folder.

    Raises InputError if there are no pairs at all.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist or is no folder; expected a folder of pictures")
    lists = [folder / name for name in LISTS if (folder / name).is_file()]
    if lists:
        some = [partial(from_line, *line, own_hints) for line in lines_of(lists[0])]
    elif own_hints:
        names = " or ".join(LISTS)
        raise InputError(
            f"{folder}: expected a folder with {names}, which lists the hints, or --hints canny, "
            "which makes them"
        )
    else:
        some = [partial(from_picture, file) for file in pictures_in(folder)]
    if not some:
        raise InputError(
            f"{lists[0]} lists no pairs: expected a JSON object on each line"
            if lists
            else f"{folder} holds no pictures: expected {', '.join(PICTURES)}, not in subfolders"
        )
    entries, wrong = [], []
    without: dict[str, list[int]] = {}  # numbers of the lines that have no text under a key
    for read in tqdm(some, "reading headers", leave=False):
        try:
            entries.append(with_sizes(read()))
        except InputError as error:
            wrong.append(str(error))
        except KeyError as error:
            without.setdefault(error.args[0], []).append(read.args[1])
    for key, numbers in without.items():
        others = f" and {len(numbers) - 1} other lines" if len(numbers) > 1 else ""
        wrong.append(f"{lists[0]}, line {numbers[0]}{others}: expected a text under {key!r}")
    return entries, wrong


def lines_of(file: Path) -> list[tuple[Path, int, str]]:
    """File, line number and text of every line that is not empty."""
    lines = enumerate(read_text(file).split("\n"), 1)
    return [(file, number, line) for number, line in lines if line.strip()]


def from_line(file: Path, number: int, line: str, own_hints: bool) -> Entry:
    where = f"{file}, line {number}"
    targets, sources, prompts = LISTS[file.name]
    needed = (targets, sources, prompts) if own_hints else (targets, prompts)
    try:
        entry = json.loads(line)
        if not isinstance(entry, dict):
            raise ValueError("not an object")
        json.dumps(entry, ensure_ascii=False).encode()  # half of a surrogate pair
    except (ValueError, RecursionError):
        keys = ", ".join(names[0] for names in needed)
        what = f"expected a JSON object on each line, with {keys}, not {line[:60]!r}"
        raise InputError(f"{where}: {what}") from None
    picture, prompt = file.parent / first_of(entry, targets), first_of(entry, prompts)
    hint = file.parent / first_of(entry, sources) if own_hints else None
    return Entry(where, picture, hint, prompt)


def first_of(entry: dict, names: list[str]) -> str:
    """The entry's text under the first of these names that it has. Raises KeyError, with the name,
    if there is no text."""
    name = next((name for name in names if name in entry), names[0])
    if not isinstance(entry.get(name), str):
        raise KeyError(name)
    return entry[name]


def ignored_in(folder: Path) -> list[str]:
    """In a folder without a list, the names of files that are neither pictures nor captions."""
    if any((folder / name).is_file() for name in LISTS):
        return []
    others = [
        file for file in folder.iterdir() if not is_picture(file) and file.suffix.lower() != ".txt"
    ]
    return sorted(file.name for file in others if not file.name.startswith("."))


def from_picture(file: Path) -> Entry:
    """A pair without a hint. A missing caption becomes an empty prompt."""
    caption = file.with_suffix(".txt")
    return Entry(str(file), file, None, read_caption(caption) if caption.exists() else "")


def with_sizes(entry: Entry) -> Entry:
    """The entry with its files' sizes.

    Raises InputError for pictures that cannot be read, and for a hint of another aspect ratio.
    """
    try:
        size = picture_size(entry.picture)
        hint_size = picture_size(entry.hint) if entry.hint else size
    except InputError as error:
        named = entry.where == str(entry.picture)
        raise InputError(str(error) if named else f"{entry.where}: {error}") from None
    shapes = size[0] * hint_size[1], size[1] * hint_size[0]
    if abs(shapes[0] - shapes[1]) > ALIKE * max(shapes):
        sizes = [f"{width}x{height}" for width, height in (size, hint_size)]
        raise InputError(
            f"{entry.where}: {entry.hint} is {sizes[1]} and its picture {sizes[0]}; expected the "
            "same aspect ratio"
        )
    return entry._replace(size=size, hint_size=hint_size)

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
from nanocontrol.plumbing.pictures import picture_size, read_caption

# Files that list pairs, and their names for the picture, the hint and the prompt.
LISTS = {
    "prompt.json": (["target"], ["source"], ["prompt"]),  # as published with Fill50K
    "metadata.jsonl": (  # an image folder for diffusers' trainer
        ["file_name", "image", "image_file_name"],
        ["conditioning_image", "conditioning_image_file_name"],
        ["text", "prompt"],
    ),
}
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
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
    for read in tqdm(some, "reading headers", leave=False):
        try:
            entries.append(with_sizes(read()))
        except InputError as error:
            wrong.append(str(error))
    return entries, wrong


def lines_of(file: Path) -> list[tuple[Path, int, str]]:
    """File, line number and text of every line that is not empty."""
    try:
        lines = file.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        raise InputError(f"{file} cannot be read as text ({error})") from None
    return [(file, number, line) for number, line in enumerate(lines, 1) if line.strip()]


def from_line(file: Path, number: int, line: str, own_hints: bool) -> Entry:
    where = f"{file}, line {number}"
    targets, sources, prompts = LISTS[file.name]
    try:
        entry = json.loads(line)
        picture, prompt = file.parent / first_of(entry, targets), first_of(entry, prompts)
        hint = file.parent / first_of(entry, sources) if own_hints else None
    except (ValueError, TypeError, KeyError, RecursionError):  # not JSON, not an object, ...
        needed = (targets, sources, prompts) if own_hints else (targets, prompts)
        keys = ", ".join(names[0] for names in needed)
        what = f"expected a JSON object on each line, with {keys}, not {line[:60]!r}"
        raise InputError(f"{where}: {what}") from None
    return Entry(where, picture, hint, prompt)


def first_of(entry: dict, names: list[str]) -> str:
    """The entry's text under the first of these names that it has.

    Raises KeyError if it has none of them, TypeError or ValueError if the value is no text.
    """
    name = next((name for name in names if name in entry), names[0])
    if not isinstance(entry[name], str):
        raise TypeError(name)
    entry[name].encode()  # raises ValueError for half of a surrogate pair
    return entry[name]


def pictures_in(folder: Path) -> list[Path]:
    try:
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in PICTURES)
    except OSError as error:
        raise InputError(f"{folder} cannot be read ({error.strerror}); expected a folder") from None
    return [file for file in files if not file.name.startswith(".")]  # macOS leaves ._cat.jpg


def ignored_in(folder: Path) -> list[str]:
    """In a folder without a list, the names of files that are neither pictures nor captions."""
    if any((folder / name).is_file() for name in LISTS):
        return []
    known = (*PICTURES, ".txt")
    others = [file for file in folder.iterdir() if file.suffix.lower() not in known]
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

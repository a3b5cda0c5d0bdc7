"""The pairs of a folder, whatever its form (forms.py), and which of them cannot be used."""

import os
from collections.abc import Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.pictures import is_picture
from nanocontrol.training.forms import (
    CAPTION,
    CAPTIONS,
    HINT,
    PICTURE,
    Member,
    Sample,
    first_key,
    pictures_below,
    samples_in,
)

ALIKE = 0.02  # tolerance between the aspect ratios of hint and picture, as sides are whole pixels


class Entry(NamedTuple):
    """A pair as listed by its folder."""

    where: str  # file and line, or the picture's own name
    picture: Path | Member
    hint: Path | Member | None  # None: it is made from the picture
    prompt: str
    number: int = 0  # index over all folders
    mirrored: bool = False
    others: tuple[str, ...] = ()  # more captions; one of all is drawn at every step

    def text(self) -> bytes:
        """The pair's name and captions: as listed in a folder that may have moved."""
        return repr((self.picture.name, self.prompt, *self.others)).encode()


class Lacking(Exception):
    """A pair lacks something. The message follows the number of such pairs: "lack ..."."""


def read_folder(folder: Path, hints: str | None, cache: Path) -> tuple[str, list[Entry], list[str]]:
    """The folder's form, its pairs, and a line for each error. No picture is opened.

    hints: "canny", a folder of hints, or None for those that the folder itself has; cache: where
    pictures are unpacked. Raises InputError if there are no pairs at all.
    """
    form, samples = samples_in(folder, cache)
    made = hints == "canny"
    by_name = hints_by_name(Path(hints)) if hints and not made else None
    if form == "pictures" and hints is None:
        raise InputError(
            f"{folder} has pictures without hints: expected a list of pairs (prompt.json, metadata."
            "jsonl or .csv), --hints DIR with a hint for each, or --hints canny, which makes them"
        )
    entries, wrong = [], []
    lacking: dict[str, list[str]] = {}
    for sample in tqdm(samples, "listing pairs", leave=False):
        try:
            if isinstance(sample, InputError):
                raise sample
            if by_name is not None and Path(sample.where) in by_name.values():
                continue  # the hints' folder is an inner one
            entries.append(entry_of(sample, folder, made, by_name))
        except InputError as error:
            wrong.append(str(error))
        except Lacking as what:
            lacking.setdefault(str(what), []).append(sample.where)
    return form, entries, wrong + [*grouped(lacking)]


def grouped(lacking: dict[str, list[str]]) -> Iterator[str]:
    """A line for each thing that pairs lack, with the first of these pairs."""
    for what, places in lacking.items():
        more = f" and {len(places) - 3:,} more" if len(places) > 3 else ""
        n = f"{len(places):,} pair{'s' * (len(places) > 1)}"
        yield f"{', '.join(places[:3])}{more}: {n} {what}"


def entry_of(sample: Sample, folder: Path, made: bool, by_name: dict[str, Path] | None) -> Entry:
    """made: whether hints are made from the pictures; by_name: the hints of another folder."""
    picture = file_of(sample, PICTURE)
    hint: Path | Member | None = None
    if by_name is not None:
        hint = hint_named(picture, folder, by_name)
    elif not made:
        hint = file_of(sample, HINT)
    prompt, *others = captions_of(sample)
    return Entry(sample.where, picture, hint, prompt, others=tuple(others))


def file_of(sample: Sample, names: tuple[str, ...]) -> Path | Member:
    """The file under the first of these names. Raises Lacking if there is none."""
    value = value_of(sample, names, (str, Member))
    return value if isinstance(value, Member) else path_in(sample.folder, value)


@lru_cache(2**16)  # lists may name a file often
def path_in(folder: Path, name: str) -> Path:
    path = folder / name
    if "\\" in name and not os.path.exists(path):  # a list made on Windows
        path = folder / name.replace("\\", "/")
    return path


def captions_of(sample: Sample) -> list[str]:
    value = value_of(sample, CAPTION, (str, list))
    captions = [value] if isinstance(value, str) else value
    if not captions or not all(isinstance(caption, str) for caption in captions):
        raise Lacking(f"lack `{CAPTION[1]}`: expected a text, or a list of texts")
    try:
        "".join(captions).encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise InputError(f"{sample.where}: its `{CAPTION[0]}` is not UTF-8") from None
    return captions


def value_of(sample: Sample, names: tuple[str, ...], kinds: tuple[type, ...]) -> Any:
    name = first_key(sample.values, names)
    if name is None or not isinstance(sample.values[name], kinds):
        keys = ", ".join(sorted(map(str, sample.values))) or "nothing"
        wanted = name or "` or `".join(names[:2])
        raise Lacking(f"lack `{wanted}`; they have: {keys}")
    return sample.values[name]


# ------------------------------------------------------------------------- hints of another folder


def hints_by_name(folder: Path) -> dict[str, Path]:
    """The pictures of a folder and its inner ones, by their paths in it without ending."""
    if not os.path.isdir(folder):
        raise InputError(f"--hints: {folder} does not exist or is no folder; expected hints")
    found: dict[str, Path] = {}
    for file in pictures_below(folder):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if name in found:
            raise InputError(f"--hints: {found[name]} and {file} have one name; expected one")
        found[name] = file
    return found


def hint_named(picture: Path | Member, folder: Path, by_name: dict[str, Path]) -> Path:
    """The hint of a picture: of its path in the folder, or else of its own name."""
    path = Path(picture.name) if isinstance(picture, Member) else picture
    inner = path.relative_to(folder) if path.is_relative_to(folder) else path
    found = by_name.get(inner.with_suffix("").as_posix()) or by_name.get(path.stem)
    if found is None:
        raise Lacking("lack a hint of their names in --hints")
    return found


# --------------------------------------------------------------------------------------- sizes


def check_shapes(entry: Entry, size: Sequence[int], hint_size: Sequence[int]) -> None:
    """Raises InputError for a hint of another aspect ratio than its picture's."""
    shapes = size[0] * hint_size[1], size[1] * hint_size[0]
    if abs(shapes[0] - shapes[1]) > ALIKE * max(shapes):
        sizes = [f"{width}x{height}" for width, height in (size, hint_size)]
        raise InputError(
            f"{entry.where}: {entry.hint} is {sizes[1]} and its picture {sizes[0]}; expected the "
            "same aspect ratio"
        )


def ignored_in(folder: Path) -> list[str]:
    """In a folder of pictures, the names of files that are neither pictures nor captions."""
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    others = (file for file in files if not is_picture(file))
    return sorted(file.name for file in others if file.suffix.lower() not in CAPTIONS)

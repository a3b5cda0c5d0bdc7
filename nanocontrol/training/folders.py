"""The pairs of a folder, whatever its form (forms.py), and which of them cannot be used."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from nanocontrol.plumbing.errors import InputError
from nanocontrol.training.forms import File, Lacking, Sample, ignored_in, pictures_below, samples_in
from nanocontrol.training.known import Size

ALIKE = 0.02  # tolerance between the aspect ratios of hint and picture, as sides are whole pixels


class Entry(NamedTuple):
    """A pair as listed by its folder."""

    where: str  # file and line, or the picture's own name
    picture: File
    hint: File | None  # None: it is made from the picture
    prompt: str
    number: int = 0  # index over all folders
    mirrored: bool = False
    others: tuple[str, ...] = ()  # more captions; one of all is drawn at every step

    def text(self) -> bytes:
        """The pair's name and captions: as listed in a folder that may have moved."""
        return repr((self.picture.name, self.prompt, *self.others)).encode()


class View(NamedTuple):
    """How training sees the pictures of folders."""

    size: Size  # of the crops, multiples of 64
    crop: str = "middle"  # or "random": a new place every time
    hints: str | None = None  # "canny": made from the pictures; a folder; None: the pairs' own
    seed: int = 0  # decides random places, thresholds and captions
    cache: Path = Path("cache")  # where pictures are unpacked


class Listing(NamedTuple):
    """The content of a folder."""

    entries: list[Entry]
    wrong: list[str]  # a line for each error
    notes: list[str]  # what one should know


def read_folder(folder: Path, view: View) -> Listing:
    """List a folder's pairs. No picture is opened. Raises InputError if the folder cannot be
    used."""
    form, samples = samples_in(folder, view.cache)
    made, by_name = view.hints == "canny", None
    if view.hints and not made:
        by_name = hints_by_name(Path(view.hints))
    if form == "pictures" and view.hints is None:
        raise InputError(
            f"{folder} has pictures without hints: expected a list of pairs (prompt.json, metadata."
            "jsonl or .csv), --hints DIR with a hint for each, or --hints canny, which makes them"
        )
    if form == "parquet" and view.crop == "random":
        kinds = "--crop random is not for parquet; expected files of pictures"
        raise InputError(f"{folder}: {kinds}")
    found = Listing([], [], [])
    if form == "pictures" and (names := ignored_in(folder, view.hints)):
        what = plural(len(names), "other item")
        found.notes.append(f"{what} in the folder, not used: {a_few(names)}")
    lacking: dict[str, list[str]] = {}
    inner = {*map(str, (by_name or {}).values())}  # the hints' folder may be an inner one
    for sample in tqdm(samples, "listing pairs", leave=False):
        try:
            if sample.where not in inner:
                found.entries.append(entry_of(sample, folder, made, by_name))
                if len(found.entries) == 1:
                    found.notes.extend(sources(sample, view.hints))
        except InputError as error:
            found.wrong.append(str(error))
        except Lacking as error:
            lacking.setdefault(str(error), []).append(sample.where)
    if not found.entries and not found.wrong and not lacking:
        inside = f"--hints {view.hints} has all pictures of {folder}; expected only their hints"
        raise InputError(inside if by_name else f"{folder} lists no pairs; expected some")
    for what, places in lacking.items():
        found.wrong.append(f"{a_few(places)}: {plural(len(places), 'pair')} {what}")
    return found


def sources(sample: Sample, hints: str | None) -> Iterator[str]:
    """Lines on the columns or endings of pictures, hints and captions."""
    picture, hint, caption = map(sample.source, ("picture", "hint", "caption"))
    used = f"--hints {hints}" if hints else hint
    yield f"pictures: {picture}; hints: {used}; captions: {caption}"
    if hints and hint != "none":
        yield f"{used} replaces the hints that the data have: {hint}"


def plural(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def a_few(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def entry_of(sample: Sample, folder: Path, made: bool, by_name: dict[str, Path] | None) -> Entry:
    """made: whether hints are made from the pictures; by_name: the hints of another folder."""
    picture = sample.file("picture")
    hint: File | None = None
    if by_name is not None:
        hint = hint_named(picture, folder, by_name)
    elif not made:
        hint = sample.file("hint")
    prompt, *others = sample.captions()
    return Entry(sample.where, picture, hint, prompt, others=tuple(others))


# ------------------------------------------------------------------------- hints of another folder


def hints_by_name(folder: Path) -> dict[str, Path]:
    """The pictures of a folder and its inner ones, by their paths in it without ending."""
    if not os.path.isdir(folder):
        raise InputError(f"--hints: {folder} does not exist or is no folder; expected hints")
    found: dict[str, Path] = {}
    for file in pictures_below(folder):
        name = file.relative_to(folder).with_suffix("").as_posix()
        if found.setdefault(name, file) != file:
            raise InputError(f"--hints: {found[name]} and {file} have one name; expected one")
    return found


def hint_named(picture: File, folder: Path, by_name: dict[str, Path]) -> Path:
    """The hint of a picture: of its path in the folder, or else of its own name."""
    path = picture if isinstance(picture, Path) else Path(picture.name)
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

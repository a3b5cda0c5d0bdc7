"""The pairs of a folder, whatever its form (forms.py), and which of them cannot be used."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.pictures import is_picture, pictures_in
from nanocontrol.training.forms import CAPTIONS, File, Lacking, Sample, pictures_below, samples_in

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
    inner = {*by_name.values()} if by_name else set()  # hints that are below the folder, too
    entries, wrong = [], []
    lacking: dict[str, list[str]] = {}
    for sample in tqdm(samples, "listing pairs", leave=False):
        try:
            if isinstance(sample, InputError):
                raise sample
            if Path(sample.where) in inner:
                continue
            entries.append(entry_of(sample, folder, made, by_name))
        except InputError as error:
            wrong.append(str(error))
        except Lacking as what:
            lacking.setdefault(str(what), []).append(sample.where)
    if not entries and not wrong and not lacking:
        besides = f" besides the hints in {hints}" if by_name else ""
        raise InputError(f"{folder} lists no pairs; expected some{besides}")
    return form, entries, wrong + [*grouped(lacking)]


def grouped(lacking: dict[str, list[str]]) -> Iterator[str]:
    """A line for each thing that pairs lack, with the first of these pairs."""
    for what, places in lacking.items():
        yield f"{a_few(places)}: {plural(len(places), 'pair')} {what}"


def plural(n: int, what: str) -> str:
    return f"{n:,} {what}{'' if n == 1 else 's'}"


def a_few(names: list[str]) -> str:
    more = f" and {len(names) - 3:,} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


def entry_of(sample: Sample, folder: Path, made: bool, by_name: dict[str, Path] | None) -> Entry:
    """made: whether hints are made from the pictures; by_name: the hints of another folder."""
    picture = sample.picture()
    hint: File | None = None
    if by_name is not None:
        hint = hint_named(picture, folder, by_name)
    elif not made:
        hint = sample.hint()
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
        if name in found:
            raise InputError(f"--hints: {found[name]} and {file} have one name; expected one")
        found[name] = file
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


def ignored_in(folder: Path, hints: str | None) -> list[str]:
    """The names of what is not used of a folder of pictures. Inner folders are, if it has no
    pictures itself, and so is that of the hints."""
    used = Path(hints or "").resolve()
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    others = [file for file in files if not is_picture(file) and file.resolve() != used]
    if not pictures_in(folder):
        others = [file for file in others if not file.is_dir()]
    return sorted(file.name for file in others if file.suffix.lower() not in CAPTIONS)

"""The forms in which people keep pairs, and what a pair is in each.

| form     | recognised by                        | a pair                                         |
|----------|--------------------------------------|------------------------------------------------|
| list     | prompt.json, metadata.jsonl or .csv, | a JSON object on a line or in one array, or a  |
|          | or the folder's only .jsonl or .csv  | row                                            |
| parquet  | *.parquet, here or in data/          | a row, with pictures as Hugging Face has them  |
| tar      | *.tar, as webdataset, img2dataset    | files of one name: key.jpg and, if there are   |
|          | and NeMo write them                  | any, key.png (the hint), key.txt or key.json   |
| pictures | pictures here, else in inner folders | a picture; its caption in cat.txt or           |
|          |                                      | cat.caption next to cat.jpg                    |

A list in an inner folder `train` is found too. Keys and columns have the names in NAMES. Paths are
relative to the list. With `--hints DIR` a hint is the file in DIR with its picture's name, whatever
the list says; with `--hints canny` it is made.
"""

import csv
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import make_folder, read_text, write_atomically
from nanocontrol.plumbing.pictures import PICTURES, is_picture, pictures_in, read_caption

NAMES = {
    "picture": ("target", "file_name", "image", "image_file_name"),
    "hint": ("source", "conditioning_image", "conditioning_image_file_name"),
    "caption": ("prompt", "text", "caption"),
}
LABELS = "-condlabel", "-masklabel"  # OneTrainer's hints and masks, next to their pictures
CAPTIONS = ".txt", ".caption"  # files


class Member(NamedTuple):
    """A file in a tar archive that is not compressed."""

    archive: Path
    name: str
    start: int  # of its bytes
    length: int

    def __str__(self) -> str:
        return f"{self.archive}/{self.name}"

    def read_bytes(self) -> bytes:
        with open(self.archive, "rb") as file:
            file.seek(self.start)
            return file.read(self.length)

    def caption(self) -> Any:
        """The text of a .txt file; from a .json file the value of a caption's key."""
        text = self.read_bytes().decode("utf-8-sig", "replace")
        if not self.name.lower().endswith(".json"):
            return text.strip()
        found = json_in(text)
        name = first_key(found, "caption") if isinstance(found, dict) else None
        return found[name] if name else ""


File = Path | Member


class Lacking(Exception):
    """A pair lacks something. The message follows the number of such pairs: "lack ..."."""


class Sample(NamedTuple):
    """A pair as its form describes it. What it lacks raises Lacking."""

    where: str  # file and line, or the picture's own name
    values: Any  # by key or column; a caption may be a file; no dictionary on a wrong line
    folder: Path  # to which paths are relative

    def file(self, role: str) -> File:
        value = self.value(role, (str, Path, Member))
        return path_in(self.folder, value) if isinstance(value, str) else value

    def captions(self) -> list[str]:
        value = self.value("caption", (str, list, Path, Member))
        if isinstance(value, File):
            value = read_caption(value) if isinstance(value, Path) else value.caption()
        captions = [value] if isinstance(value, str) else value
        if not isinstance(captions, list) or {*map(type, captions)} != {str}:
            raise Lacking("lack `text`: expected a text, or a list of texts")
        try:
            "".join(captions).encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            raise InputError(f"{self.where}: its `prompt` is not UTF-8") from None
        return captions

    def value(self, role: str, kinds: tuple[type, ...]) -> Any:
        """The value under the first of a role's names."""
        if not isinstance(self.values, dict):
            keys = ", ".join(names[0] for names in NAMES.values())
            what = f"expected a JSON object on each line, with {keys}"
            raise InputError(f"{self.where}: {what}, not {str(self.values)[:60]!r}")
        name = first_key(self.values, role)
        if name is None or not isinstance(self.values[name], kinds):
            keys = ", ".join(sorted(map(str, self.values))) or "nothing"
            wanted = name or "` or `".join(NAMES[role][:2])
            raise Lacking(f"lack `{wanted}`; they have: {keys}")
        return self.values[name]

    def source(self, role: str) -> str:
        """The column with this role, the ending of a file, or "none"."""
        name = first_key(self.values, role)
        value = self.values[name] if name else ""
        ending = os.path.splitext(value.name)[1] if isinstance(value, File) else ""
        return ending or (f"`{name}`" if value else "none")


class Form(NamedTuple):
    name: str
    files: Callable[[Path], list[Path]]  # those by which it is recognised in a folder
    read: Callable[[list[Path], Path], Iterator[Sample]]  # of these; cache


def samples_in(folder: Path, cache: Path) -> tuple[str, Iterator[Sample]]:
    """The form of a folder's pairs, and the pairs.

    cache: a folder for pictures that have to be unpacked. Raises InputError if nothing is found.
    """
    if not os.path.isdir(folder) or not os.access(folder, os.R_OK | os.X_OK):
        raise InputError(f"{folder} cannot be read, or is no folder; expected a folder of pairs")
    places = [(form, place) for place in (folder, folder / "train") for form in FORMS[:-1]]
    for form, place in [*places, (FORMS[-1], folder)]:
        if files := form.files(place):
            return form.name, form.read(files, cache)
    pictures = ", ".join(PICTURES)
    raise InputError(f"{folder} holds no pictures: expected {pictures}, or a list of pairs")


@lru_cache(2**16)  # lists may name a file often
def path_in(folder: Path, name: str) -> Path:
    path = folder / name
    if "\\" in name and not os.path.exists(path):  # a list made on Windows
        path = folder / name.replace("\\", "/")
    return path


def first_key(values: dict[str, Any], role: str) -> str | None:
    for name in NAMES[role]:  # a generator would take three times as long, a million times
        if values.get(name) is not None:
            return name
    return None


# ------------------------------------------------------------------------------------- lists


def lists_in(folder: Path) -> list[Path]:
    """The list of a folder. Raises InputError if there are several and none has a known name."""
    named = [folder / name for name in ("prompt.json", "metadata.jsonl", "metadata.csv")]
    others = sorted([*folder.glob("*.jsonl"), *folder.glob("*.csv")])
    found = [file for file in named if os.path.isfile(file)][:1] or others
    if len(found) > 1:
        names = ", ".join(file.name for file in found)
        raise InputError(f"{folder} has {len(found)} lists: {names}; expected one")
    return found


def read_list(files: list[Path], cache: Path) -> Iterator[Sample]:
    (file,) = files
    text, what = read_text(file), "line"
    rows: Iterable[tuple[int, Any]]
    if file.suffix == ".csv":
        rows = enumerate(csv.DictReader(text.splitlines()), 2)
    elif isinstance(whole := json_in(text), list):  # a second line ends the attempt
        rows, what = enumerate(whole, 1), "entry"
    else:
        lines = enumerate(text.split("\n"), 1)
        rows = ((i, json_in(line)) for i, line in lines if line.strip())
    yield from (Sample(f"{file}, {what} {i}", values, file.parent) for i, values in rows)


def json_in(text: str) -> Any:
    """The value of a JSON text; the text itself if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


# ------------------------------------------------------------------------------------ parquet


def parquet_in(folder: Path) -> list[Path]:
    files = sorted([*folder.glob("*.parquet"), *folder.glob("data/*.parquet")])
    return [file for file in files if file.name.startswith("train")] or files


def read_parquet(files: list[Path], cache: Path) -> Iterator[Sample]:
    """A row group is unpacked into the cache once; then only its list is read."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise InputError(f'{files[0]}: pip install -e ".[parquet]" brings its reader') from None
    for file in files:
        state = file.stat()
        key = f"{file.resolve()} {state.st_size} {state.st_mtime_ns}"
        folder = cache / f"parquet-{hashlib.sha256(key.encode()).hexdigest()[:16]}"
        try:
            table = parquet.ParquetFile(file)
            known = {name for names in NAMES.values() for name in names}
            names = [name for name in table.schema_arrow.names if name in known]
            for group in tqdm(range(table.num_row_groups), f"unpacking {file.name}", leave=False):
                listed = folder / f"{group}.json"
                if not listed.exists():
                    rows = table.read_row_group(group, names).to_pylist()
                    unpack(make_folder("--cache", folder), group, rows, file.parent, listed)
                for i, values in enumerate(json.loads(listed.read_text(encoding="utf-8"))):
                    yield Sample(f"{file}, row {i} of group {group}", values, folder)
        except (ArrowException, OSError) as error:
            raise InputError(f"{file} cannot be read ({error}); expected parquet") from None


def unpack(folder: Path, group: int, rows: list[dict], beside: Path, listed: Path) -> None:
    """Write a row group's pictures as files, then the list of its rows. beside: the folder to which
    paths in rows are relative."""
    for i, row in enumerate(rows):
        for name in NAMES["picture"] + NAMES["hint"]:
            data = path = row.get(name)
            if isinstance(data, dict):
                data, path = data.get("bytes"), data.get("path")
            if isinstance(data, bytes):
                row[name] = f"{group}-{i}-{name}.png"  # its first bytes say what it is
                (folder / row[name]).write_bytes(data)
            elif isinstance(path, str):
                row[name] = str((beside / path).resolve())
    text = json.dumps(rows)
    write_atomically(listed, lambda temporary: temporary.write_text(text, encoding="utf-8"))


# ---------------------------------------------------------------------------------------- tar


def tars_in(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def read_tars(files: list[Path], cache: Path) -> Iterator[Sample]:
    """The members of archives, indexed once and then read at random."""
    for archive in tqdm(files, "indexing archives", leave=False):
        groups: dict[str, dict[str, Member]] = {}
        try:
            with tarfile.open(archive, "r:") as tar:
                for one in tar:
                    if one.isfile():
                        folder, _, name = one.name.rpartition("/")
                        key, _, ending = name.partition(".")
                        member = Member(archive, one.name, one.offset_data, one.size)
                        groups.setdefault(f"{folder}/{key}", {})[ending.lower()] = member
        except (tarfile.TarError, OSError) as error:
            raise InputError(f"{archive} cannot be read ({error}); expected a .tar") from None
        for key, members in groups.items():
            yield Sample(f"{archive}/{key.strip('/')}", values_of(members), archive.parent)


def values_of(members: dict[str, Member]) -> dict[str, Any]:
    """A sample's files by their endings -> values as in a list. Of two pictures the PNG is the
    hint, as NeMo writes them."""
    pictures = [ending for ending in members if f".{ending}" in PICTURES]
    pictures.sort(key=lambda ending: ending == "png")
    named = zip(("image", "conditioning_image"), pictures)
    text = members.get("txt") or members.get("json") or ""
    return {"text": text} | {name: members[ending] for name, ending in named}


# ----------------------------------------------------------------------------------- pictures


def pictures_below(folder: Path) -> list[Path]:
    """The folder's pictures, or those of its inner folders."""
    return pictures_in(folder) or sorted(
        file for file in folder.rglob("*") if is_picture(file) and not file.name.startswith(".")
    )


def read_picture_files(files: list[Path], cache: Path) -> Iterator[Sample]:
    for file in files:
        if file.stem.endswith(LABELS):
            kind = f"{' and '.join(LABELS)} files next to pictures are not read"
            raise InputError(f"{file}: {kind}; expected hints in a folder of their own (--hints)")
    for file in files:
        captions = map(file.with_suffix, CAPTIONS)
        text = next((caption for caption in captions if os.path.isfile(caption)), "")
        yield Sample(str(file), {"image": file.absolute(), "text": text}, file.parent)


def ignored_in(folder: Path, hints: str | None) -> list[str]:
    """The names of what is not used of a folder of pictures. Inner folders are, if it has no
    pictures itself, and so is that of the hints."""
    used = Path(hints or "").resolve()
    files = (file for file in folder.iterdir() if not file.name.startswith("."))
    others = [file for file in files if not is_picture(file) and file.resolve() != used]
    if not pictures_in(folder):
        others = [file for file in others if not file.is_dir()]
    return sorted(file.name for file in others if file.suffix.lower() not in CAPTIONS)


FORMS = (
    Form("list", lists_in, read_list),
    Form("parquet", parquet_in, read_parquet),
    Form("tar", tars_in, read_tars),
    Form("pictures", pictures_below, read_picture_files),
)

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

A list in an inner folder `train` is found too. Keys and columns have the names in
PICTURE, HINT and CAPTION. Paths are relative to the list. With `--hints DIR` a hint is the file in
DIR with its picture's name, whatever the list says; with `--hints canny` it is made.
"""

import csv
import hashlib
import json
import os
import tarfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import make_folder, read_text, write_atomically
from nanocontrol.plumbing.pictures import PICTURES, is_picture, pictures_in, read_caption

PICTURE = "target", "file_name", "image", "image_file_name"
HINT = "source", "conditioning_image", "conditioning_image_file_name"
CAPTION = "prompt", "text", "caption"
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

    def read_text(self) -> str:
        return self.read_bytes().decode("utf-8-sig", "replace")


File = Path | Member


class Lacking(Exception):
    """A pair lacks something. The message follows the number of such pairs: "lack ..."."""


class Sample(NamedTuple):
    """A pair as its form describes it. What it lacks raises Lacking."""

    where: str  # file and line, or the picture's own name
    values: dict[str, Any]  # by key or column
    folder: Path  # to which paths are relative

    def picture(self) -> File:
        return self.file(PICTURE)

    def hint(self) -> File:
        return self.file(HINT)

    def captions(self) -> list[str]:
        value = self.value(CAPTION, (str, list))
        captions = [value] if isinstance(value, str) else value
        if not captions or not all(isinstance(caption, str) for caption in captions):
            raise Lacking(f"lack `{CAPTION[1]}`: expected a text, or a list of texts")
        try:
            "".join(captions).encode()
        except UnicodeEncodeError:  # half of a surrogate pair
            raise InputError(f"{self.where}: its `{CAPTION[0]}` is not UTF-8") from None
        return captions

    def file(self, names: tuple[str, ...]) -> File:
        value = self.value(names, (str, Member))
        return value if isinstance(value, Member) else path_in(self.folder, value)

    def value(self, names: tuple[str, ...], kinds: tuple[type, ...]) -> Any:
        """The value under the first of these names."""
        name = first_key(self.values, names)
        if name is None or not isinstance(self.values[name], kinds):
            keys = ", ".join(sorted(map(str, self.values))) or "nothing"
            wanted = name or "` or `".join(names[:2])
            raise Lacking(f"lack `{wanted}`; they have: {keys}")
        return self.values[name]


class Form(NamedTuple):
    name: str
    files: Callable[[Path], list[Path]]  # those by which it is recognised in a folder
    read: Callable[[list[Path], Path], Iterator[Sample | InputError]]  # of these; cache


def samples_in(folder: Path, cache: Path) -> tuple[str, Iterator[Sample | InputError]]:
    """The form of a folder's pairs, and a sample or an error for each.

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


def first_key(values: dict[str, Any], names: tuple[str, ...]) -> str | None:
    for name in names:  # a generator would take three times as long, a million times
        if values.get(name) is not None:
            return name
    return None


# ------------------------------------------------------------------------------------- lists


def lists_in(folder: Path) -> list[Path]:
    """The list of a folder. Raises InputError if there are several and none has a known name."""
    for name in ("prompt.json", "metadata.jsonl", "metadata.csv"):
        if os.path.isfile(folder / name):
            return [folder / name]
    others = sorted([*folder.glob("*.jsonl"), *folder.glob("*.csv")])
    if len(others) > 1:
        names = ", ".join(file.name for file in others)
        raise InputError(f"{folder} has {len(others)} lists: {names}; expected one")
    return others


def read_list(files: list[Path], cache: Path) -> Iterator[Sample | InputError]:
    (file,) = files
    text = read_text(file)
    if file.suffix == ".csv":
        rows = csv.DictReader(text.splitlines())
        yield from (Sample(f"{file}, line {i}", row, file.parent) for i, row in enumerate(rows, 2))
        return
    lines = [(i, line) for i, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not lines:
        raise InputError(f"{file} lists no pairs: expected a JSON object on each line")
    whole = json_in(text) if lines[0][1].strip() == "[" or len(lines) == 1 else None
    if isinstance(whole, list):
        yield from (sample_of(f"{file}, entry {i}", x, file) for i, x in enumerate(whole, 1))
    else:
        yield from (sample_of(f"{file}, line {i}", json_in(line), file) for i, line in lines)


def json_in(text: str) -> Any:
    """The value of a JSON text; the text itself if it is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def sample_of(where: str, values: Any, file: Path) -> Sample | InputError:
    if isinstance(values, dict):
        return Sample(where, values, file.parent)
    keys = ", ".join(names[0] for names in (PICTURE, HINT, CAPTION))
    what = f"expected a JSON object on each line, with {keys}"
    return InputError(f"{where}: {what}, not {str(values)[:60]!r}")


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
            names = [name for name in table.schema_arrow.names if name in PICTURE + HINT + CAPTION]
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
        for name in (*PICTURE, *HINT):
            value = row.get(name)
            data, path = value if isinstance(value, bytes) else None, value
            if isinstance(value, dict):
                data, path = value.get("bytes"), value.get("path")
            if data is not None:
                row[name] = f"{group}-{i}-{name}.png"  # its first bytes say what it is
                (folder / row[name]).write_bytes(data)
            elif isinstance(path, str):
                row[name] = str((beside / path).resolve())
    text = json.dumps(rows, default=lambda value: None)  # of a type that no form has: it lacks
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
            if archive.stat().st_size % tarfile.BLOCKSIZE:  # tarfile reads what is left
                raise tarfile.TarError("its end is missing")
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
    values: dict[str, Any] = {"text": ""} | {name: members[ending] for name, ending in named}
    if "json" in members:
        found = json_in(members["json"].read_text())
        name = first_key(found, CAPTION) if isinstance(found, dict) else None
        values["text"] = found[name] if name else ""
    if "txt" in members:
        values["text"] = members["txt"].read_text().strip()
    return values


# ----------------------------------------------------------------------------------- pictures


def pictures_below(folder: Path) -> list[Path]:
    """The folder's pictures, or those of its inner folders."""
    return pictures_in(folder) or sorted(
        file for file in folder.rglob("*") if is_picture(file) and not file.name.startswith(".")
    )


def read_picture_files(files: list[Path], cache: Path) -> Iterator[Sample | InputError]:
    for file in files:
        if file.stem.endswith(LABELS):
            kind = f"{' and '.join(LABELS)} files next to pictures are not read"
            raise InputError(f"{file}: {kind}; expected hints in a folder of their own (--hints)")
    for file in files:
        captions = (file.with_suffix(ending) for ending in CAPTIONS)
        try:
            text = next((read_caption(c) for c in captions if os.path.isfile(c)), "")
            yield Sample(str(file), {"image": str(file.absolute()), "text": text}, file.parent)
        except InputError as error:
            yield error


FORMS = (
    Form("list", lists_in, read_list),
    Form("parquet", parquet_in, read_parquet),
    Form("tar", tars_in, read_tars),
    Form("pictures", pictures_below, read_picture_files),
)

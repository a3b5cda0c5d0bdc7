"""Rows of tensors on disk: encodings of pairs, and facts about picture files.

A row is found by its key, a hash of everything it was computed from. If one of these changes, so
does the key, so a stale row is never read. A file holds some rows with their keys, and is complete
or absent. The files are memory-mapped.
"""

import hashlib
import shutil
from contextlib import suppress
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nanocontrol.formats.tensors import Tensors, read_safetensors, write_tensors
from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import make_folder, remove_temporary_files

VERSION = 3  # raise it when a change of the code changes the numbers in the files
AN_HOUR = 3600  # seconds: no running process still writes to a temporary file of this age
KEY = "S32"  # NumPy's type of a SHA-256
# The columns of a kind. `size` is the whole picture's, width and height, and so are `sides`.
KINDS = {
    "latents": ("mean", "deviation", "size"),
    "contexts": ("context",),
    "edges": ("bits",),  # made by --hints canny
    "files": ("content", "sides"),
    "contents": (),  # of files that were read
    "looks": ("look",),  # of hints: the white share and the deviation, as in check.Checked
    "maps": ("map",),  # of edges, see check.edge_map
    "crops": ("pixels",),  # of held-out pictures
}


def key_of(kind: str, *what: object) -> bytes:
    return hashlib.sha256(repr((VERSION, kind, *what)).encode()).digest()


class Store:
    """The rows in a folder, as they were when one was first looked for, and new ones. Without a
    folder there are none."""

    def __init__(self, folder: Path | None):
        self.folder = folder
        self.parts: dict[int, Tensors] = {}  # by the number of the file
        self.new: dict[bytes, tuple[str, tuple[Tensor, ...]]] = {}  # kind and columns, by key
        self.written: set[bytes] = set()

    def __getstate__(self) -> dict:
        """The state that a reader process gets: the files' names, not their mapped contents."""
        return {"files": self.files, "parts": {}}

    @cached_property
    def files(self) -> list[Path]:
        return sorted(self.folder.glob("*.safetensors")) if self.folder else []

    @cached_property
    def index(self) -> tuple[np.ndarray, np.ndarray]:
        """All keys, sorted, and their rows' places."""
        found = [(np.empty(0, KEY), np.empty(0, int))]
        for number in range(len(self.files)):
            with suppress(InputError):  # cut off: its rows are computed again
                for kind in KINDS.keys() & self.part(number).keys():
                    keys = self.part(number)[kind].numpy().view(KEY).ravel()
                    found.append((keys, (number << 32) + np.arange(len(keys))))
        keys, places = map(np.concatenate, zip(*found))
        order = keys.argsort()
        return keys[order], places[order]

    def part(self, number: int) -> Tensors:
        if number not in self.parts:
            self.parts[number] = read_safetensors(self.files[number])[0]
        return self.parts[number]

    def find(self, wanted: np.ndarray) -> np.ndarray:
        """The places of rows with these keys; -1 for one that is not on disk."""
        keys, places = self.index
        if not len(keys):
            return np.full(len(wanted), -1)
        at = np.searchsorted(keys, wanted).clip(max=len(keys) - 1)
        return np.where(keys[at] == wanted, places[at], -1)

    def row(self, kind: str, place: int) -> list[Tensor]:
        part = self.part(place >> 32)
        return [part[name][place & 0xFFFFFFFF] for name in KINDS[kind]]

    def get(self, kind: str, *what: object) -> list[Tensor] | None:
        """The columns of a row on disk, if that is there."""
        (place,) = self.find(np.array([key_of(kind, *what)], KEY)).tolist()
        return None if place < 0 else self.row(kind, place)

    def lacks(self, key: bytes) -> bool:
        known = key in self.written or key in self.new
        return not known and self.find(np.array([key], KEY))[0] < 0

    def add(self, kind: str, key: bytes, *columns: Tensor) -> None:
        if self.folder and self.lacks(key):
            self.new[key] = kind, columns

    def write(self, share_done: float = 1) -> None:
        """Write the new rows into a file. share_done: of the work, to ask for space before the
        first one. Raises InputError if the disk has too little."""
        tensors: Tensors = {}
        for kind, names in KINDS.items():
            rows = {key: columns for key, (own, columns) in self.new.items() if own == kind}
            if rows:
                keys = np.array([*rows], KEY).view(np.uint8).reshape(len(rows), -1)
                columns = map(torch.stack, zip(*rows.values()))
                tensors |= {kind: torch.from_numpy(keys), **dict(zip(names, columns))}
        if tensors and self.folder:
            make_folder("--cache", self.folder)
            if not self.written:
                remove_temporary_files(self.folder, AN_HOUR)
                needed = sum(tensor.nbytes for tensor in tensors.values()) / share_done
                check_space(self.folder, int(needed))
            name = hashlib.sha256(b"".join(self.new)).hexdigest()
            write_tensors(self.folder / f"{name}.safetensors", tensors, {})
            self.written |= self.new.keys()
            self.new.clear()


def check_space(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InputError(
            f"--cache {folder.parent} needs {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB are "
            "free: use a folder with more space, or --no-cache"
        )

"""Whether data in another folder are those that a run began with.

`pairs.bin` in a run's folder has a row for each pair: hashes of its place in the list, of its
picture's bytes and of its hint's, each of 64 bits. 0 stands for a file that was not read.
"""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import write_atomically
from nanocontrol.training.folders import Entry
from nanocontrol.training.processes import is_first
from nanocontrol.training.run import read_json

FILE = "pairs.bin"


def number_of(data: bytes) -> int:
    return int.from_bytes(hashlib.sha256(data).digest()[:8], "little")


def rows_of(entries: list[Entry]) -> np.ndarray:
    """The rows of pairs, [n, 3]."""
    rows = np.zeros((len(entries), 3), np.uint64)
    for row, entry in zip(tqdm(rows, "hashing pairs", leave=False), entries):
        listed = repr((entry.picture.name, entry.prompt, *entry.others)).encode()
        files = [file for file in (entry.picture, entry.hint) if file]
        row[: 1 + len(files)] = [number_of(x) for x in (listed, *(f.read_bytes() for f in files))]
    return rows


def record(run: Path, entries: list[Entry]) -> None:
    """Write a run's pairs into its folder, once."""
    if entries and not (run / FILE).exists():
        write_atomically(run / FILE, rows_of(entries).tofile)


def check_moved(run: Path, settings: dict[str, Any], entries: list[Entry]) -> None:
    """Raises InputError, naming the first one that differs, if these are not a run's pairs.

    Pairs are read only where the settings, of a resumed run, name other folders than the run has.
    """
    if not is_first() or not (run / FILE).exists():
        return
    before = read_json(run / "settings.json")
    if all(before.get(name) == folder for name, folder in settings.items()):
        return
    old, new = np.fromfile(run / FILE, np.uint64).reshape(-1, 3), rows_of(entries)
    for entry, was, now in zip(entries, old, new):
        if was[0] != now[0]:
            raise InputError(f"{entry.where} is another pair than {run} began with at its place")
        files = zip((entry.picture, entry.hint), was[1:], now[1:])
        for changed in (file for file, a, b in files if a and b and a != b):
            raise InputError(f"{changed} has another content than when {run} began")
    if len(old) != len(new):
        raise InputError(f"{run} began with {len(old)} pairs; these are {len(new)}")

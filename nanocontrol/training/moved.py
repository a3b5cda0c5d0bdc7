"""Whether data in another folder are those that a run began with.

`pairs.bin` in a run's folder has a row for each pair: hashes of its place in the list, of its
picture's bytes and of its hint's, each of 64 bits. 0 stands for a file that was not read yet.
"""

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import write_atomically
from nanocontrol.training.known import Facts
from nanocontrol.training.pairs import Folder, Pairs
from nanocontrol.training.processes import is_first
from nanocontrol.training.run import read_json

FILE = "pairs.bin"


def rows_of(folder: Folder, known: Callable[[Any], Facts | None]) -> np.ndarray:
    """The rows of all pairs, [n, 3]. known: facts about a file, asked once for each file."""
    known = cache(known)
    rows = np.zeros((len(folder.listed), 3), np.uint64)
    for row, entry in zip(tqdm(rows, "comparing pairs", leave=False), folder.listed):
        facts = [known(file) if file else None for file in (entry.picture, entry.hint)]
        contents = [found.content if found else bytes(8) for found in facts]
        hashes = [hashlib.sha256(entry.text()).digest(), *contents]
        row[:] = [int.from_bytes(x[:8], "little") for x in hashes]
    return rows


def read_rows(run: Path) -> np.ndarray:
    """The rows in a run's folder, [n, 3]; none without that file."""
    file = run / FILE
    return np.fromfile(file, np.uint64).reshape(-1, 3) if file.exists() else np.zeros((0, 3))


def record(run: Path, pairs: Pairs) -> None:
    """Write a run's pairs into its folder, unless it has them all. No picture is opened: the rows
    have what the index learnt when the pictures were checked and encoded."""
    before = read_rows(run)
    if isinstance(pairs, Folder) and not (len(before) and before[:, 1].all()):
        rows = rows_of(pairs, pairs.known.about)
        rows = np.where(before > 0, before, rows) if len(before) == len(rows) else rows
        write_atomically(run / FILE, rows.tofile)


def check_moved(run: Path, settings: dict[str, Any], folder: Folder) -> None:
    """Raises InputError, naming the first one that differs, if these are not a run's pairs.

    Pictures are read only where the settings, of a resumed run, name other folders than the run
    has.
    """
    old = read_rows(run)
    if not is_first() or not len(old):
        return
    before = read_json(run / "settings.json")
    if all(before.get(name) == value for name, value in settings.items()):
        return
    new = rows_of(folder, lambda file: folder.look(file, "")[0])
    for entry, was, now in zip(folder.listed, old, new):
        if was[0] != now[0]:
            raise InputError(f"{entry.where} is another pair than {run} began with at its place")
        files = zip((entry.picture, entry.hint), was[1:], now[1:])
        for changed in (file for file, a, b in files if a and b and a != b):
            raise InputError(f"{changed} has another content than when {run} began")
    if len(old) != len(new):
        raise InputError(f"{run} began with {len(old)} pairs; these are {len(new)}")

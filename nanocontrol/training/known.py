"""The index: what earlier starts learnt about picture files, which are then not opened again.

It is a store next to the cache. Its rows are a file's content and size, found by its path and the
state in which it was read; contents that were read, so that a copied or touched file is not decoded
again; how hints look, and maps of edges, for the check (check.py); and crops of held-out pictures.
Without it, or where it is damaged, everything is learnt again.
"""

import hashlib
import os
import stat
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from nanocontrol.plumbing.errors import InputError
from nanocontrol.training.forms import File, Member
from nanocontrol.training.store import Store, key_of

FOLDER = "known"
SETTLED = 2  # seconds: a younger file could change once more without getting another time


class Facts(NamedTuple):
    """About a picture file."""

    file: File
    stamp: str  # its state when it was read; "" if a later change might not show in it
    content: bytes  # SHA-256
    size: tuple[int, int] = (0, 0)  # width and height of the upright picture


def stamp_of(file: File) -> str:
    """The state of a file: its size, times and inode; "" if it is missing or not regular."""
    try:
        found = os.stat(file.archive if isinstance(file, Member) else file)
    except (OSError, ValueError):
        return ""
    facts = found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
    return " ".join(map(str, facts)) if stat.S_ISREG(found.st_mode) else ""


def state_key(file: File, stamp: str) -> tuple[object, ...]:
    """The file and its state, as parts of a key."""
    inner = (file.name, file.start) if isinstance(file, Member) else ()
    path = file.archive if isinstance(file, Member) else file
    return os.fsencode(os.path.abspath(path)), *inner, stamp


class OpenedOnce:
    """A picture file whose bytes are read once, with facts about them."""

    def __init__(self, file: File):
        self.file, self.data = file, b""

    def __str__(self) -> str:
        return str(self.file)

    def read_bytes(self) -> bytes:
        if not self.data:
            before = stamp_of(self.file)
            last = max(map(int, before.split()[1:3]), default=0)
            self.data = self.file.read_bytes()
            digest = hashlib.sha256(self.data).digest()
            sure = time.time() - last / 1e9 > SETTLED and before == stamp_of(self.file)
            self.facts = Facts(self.file, before if sure else "", digest)
        return self.data


class Known:
    """The index in a folder; without a folder, in memory. Threads may share it, if one alone saves.
    Reader processes get an empty one. room: bytes that `crops` may take."""

    def __init__(self, folder: Path | None = None, room: int = 0):
        self.store, self.room = Store(folder / FOLDER if folder else None), room
        self.turns = [Lock() for _ in range(64)]
        self.recent: dict[File, Facts] = {}  # learnt by this process
        self.crops: dict[tuple, Tensor] = {}  # decoded by this process, for the cache

    def __reduce__(self) -> tuple:
        return Known, ()

    def turn(self, file: File) -> Lock:
        """A lock under which one thread at a time learns about a file."""
        return self.turns[hash(file) % len(self.turns)]

    def about(self, file: File) -> Facts | None:
        """Facts about a file, as this process read it or in its present state; None if it has to be
        read."""
        if file in self.recent or not (stamp := stamp_of(file)):
            return self.recent.get(file)
        if (row := self.store.get("files", *state_key(file, stamp))) is None:
            return None
        content, (width, height) = row[0].numpy().tobytes(), row[1].tolist()
        return Facts(file, stamp, content, (width, height))

    def seen(self, content: bytes) -> bool:
        """Whether an earlier start read a file with this content."""
        return self.store.get("contents", content) is not None

    def learn(self, facts: Facts) -> None:
        self.recent[facts.file] = facts
        if facts.stamp:
            content = torch.frombuffer(bytearray(facts.content), dtype=torch.uint8)
            row = key_of("files", *state_key(*facts[:2])), content, torch.tensor(facts.size)
            self.store.add("files", *row)
            self.store.add("contents", key_of("contents", facts.content))

    def crop(self, *how: object, saved: bool) -> Tensor | None:
        """A crop, if this process decoded it or, with `saved`, an earlier start kept it. how: the
        picture's content, the colour behind it, and the crop's size."""
        if how in self.crops or not saved:
            return self.crops.get(how)
        (pixels,) = self.store.get("crops", *how) or (None,)
        return pixels

    def keep(self, how: tuple, pixels: Tensor) -> None:
        """Keep a crop in memory, if there is room. how: as above."""
        if pixels.nbytes <= self.room:
            self.room -= pixels.nbytes
            self.crops[how] = pixels

    def save(self) -> None:
        """Write what was learnt. A disk that cannot take it only makes later starts slower."""
        with suppress(InputError):
            self.store.write()

    def settle(self) -> None:
        """Write what was learnt, and forget what was kept for the cache only."""
        self.save()
        self.crops.clear()

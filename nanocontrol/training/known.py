"""The index: what earlier starts learnt about picture files, which are then not opened again.

It is a store next to the cache, with three kinds of rows: a file's content, found by its path and
the state in which it was read; the size of a picture with this content, which shows that it could
be decoded; and crops of held-out pictures. Without it, or where it is damaged, everything is learnt
again.
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
        content = self.store.get("files", *state_key(file, stamp))
        return None if content is None else self.decoded(file, stamp, content.numpy().tobytes())

    def decoded(self, file: File, stamp: str, content: bytes) -> Facts | None:
        """Facts about a file with this content, if an earlier start decoded one."""
        size = self.store.get("pictures", content)
        return None if size is None else Facts(file, stamp, content, (int(size[0]), int(size[1])))

    def learn(self, facts: Facts) -> None:
        self.recent[facts.file] = facts
        content = torch.frombuffer(bytearray(facts.content), dtype=torch.uint8)
        if facts.stamp:
            self.store.add("files", key_of("files", *state_key(*facts[:2])), content)
            key = key_of("pictures", facts.content)
            self.store.add("pictures", key, torch.tensor(facts.size))

    def crop(self, *how: object, saved: bool) -> Tensor | None:
        """A crop, if this process decoded it or, with `saved`, an earlier start kept it. how: the
        picture's content, the colour behind it, and the crop's size."""
        if how in self.crops or not saved:
            return self.crops.get(how)
        return self.store.get("crops", *how)

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

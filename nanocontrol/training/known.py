"""The index: what earlier starts learnt about picture files, which are then not opened again.

It is a database next to the cache with two tables: files, by path, with the state in which each was
read; and crops of held-out pictures, by a hash of what they were made from. A file in another state
is read again. A transaction is complete or absent, even if the process is killed. Without a
database, or with a damaged one, everything is learnt again.
"""

import hashlib
import os
import sqlite3
import stat
import time
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from torch import Tensor

from nanocontrol.training.forms import Member

NAME = "known-1.sqlite3"
SETTLED = 2  # seconds: a younger file could change once more without getting another time
PATIENCE = 60  # seconds to wait for other processes
TABLES = (
    "files (path BLOB PRIMARY KEY, stamp TEXT, content BLOB, width INT, height INT)",
    "crops (key BLOB PRIMARY KEY, pixels BLOB)",
)


class Facts(NamedTuple):
    """About a picture file."""

    stamp: str  # its state when it was read, from `stamp_of`; "" if it changed meanwhile
    settled: bool  # whether any later change shows in its stamp
    content: bytes  # SHA-256
    size: tuple[int, int] = (0, 0)  # width and height of the upright picture


def stamp_of(file: Path | Member) -> str:
    """The state of a file: its size, times and inode; "" if it is missing or not regular."""
    try:
        found = os.stat(file.archive if isinstance(file, Member) else file)
    except (OSError, ValueError):
        return ""
    facts = found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
    return " ".join(map(str, facts)) if stat.S_ISREG(found.st_mode) else ""


def path_of(file: Path | Member) -> bytes:
    if isinstance(file, Member):
        return path_of(file.archive) + os.fsencode(f"\n{file.name}\n{file.start}")
    return os.fsencode(os.path.abspath(file))


class OpenedOnce:
    """A picture file whose bytes are read once, with facts about them."""

    def __init__(self, file: Path | Member):
        self.file, self.data = file, b""

    def __str__(self) -> str:
        return str(self.file)

    def read_bytes(self) -> bytes:
        if not self.data:
            before = stamp_of(self.file)
            last = max(map(int, before.split()[1:3]), default=0)
            settled = time.time() - last / 1e9 > SETTLED
            self.data = self.file.read_bytes()
            stamp = before if before == stamp_of(self.file) else ""
            self.facts = Facts(stamp, settled, hashlib.sha256(self.data).digest())
        return self.data


class Known:
    """The index in a folder; without a folder, in memory. Threads may share it, if one alone saves.
    Reader processes get an empty one. room: bytes that `crops` may take."""

    def __init__(self, folder: Path | None = None, room: int = 0):
        self.folder, self.room, self.lock = folder, room, Lock()
        self.turns = [Lock() for _ in range(64)]
        self.db: sqlite3.Connection | None = None
        self.recent: dict[bytes, Facts] = {}  # not in the database
        # Decoded by the check, for the cache; the key is a file and the colour behind it.
        self.crops: dict[tuple[Path | Member, str], tuple[Facts, Tensor]] = {}
        self.lasting: dict[bytes, bytes] = {}  # crops that are not yet in the database

    def __reduce__(self) -> tuple:
        return Known, ()

    def turn(self, file: Path | Member) -> Lock:
        """A lock under which one thread at a time learns about a file."""
        return self.turns[hash(file) % len(self.turns)]

    def recall(self, file: Path | Member) -> Facts | None:
        """Facts about a file in its state when it was last read."""
        path = path_of(file)
        if path in self.recent:
            return self.recent[path]
        row = self.ask("SELECT stamp, content, width, height FROM files WHERE path = ?", path)
        return Facts(row[0], True, row[1], row[2:]) if row else None

    def about(self, file: Path | Member) -> Facts | None:
        """Facts about a file in its present state; None if it has to be read."""
        facts = self.recall(file)
        return facts if facts and facts.stamp == stamp_of(file) != "" else None

    def learn(self, file: Path | Member, facts: Facts) -> None:
        self.recent[path_of(file)] = facts

    def keep(self, file: Path | Member, behind: str, facts: Facts, pixels: Tensor) -> None:
        """Keep a crop in memory, if there is room."""
        if pixels.nbytes <= self.room:
            self.room -= pixels.nbytes
            self.crops[file, behind] = facts, pixels

    def crop(self, key: bytes) -> bytes | None:
        row = self.ask("SELECT pixels FROM crops WHERE key = ?", key)
        return self.lasting.get(key) or (row[0] if row else None)

    def ask(self, question: str, key: bytes) -> tuple | None:
        with self.lock:
            try:
                return self.opened().execute(question, (key,)).fetchone()
            except sqlite3.Error as error:
                self.give_up(error)
                return None

    def save(self) -> None:
        """Write what was learnt, and close the database. Of files that are too young, facts stay in
        memory."""
        found = self.recent.items()
        files = [(path, x.stamp, x.content, *x.size) for path, x in found if x.settled]
        try:
            with self.opened() as db:  # a transaction
                db.executemany("REPLACE INTO files VALUES (?, ?, ?, ?, ?)", files)
                db.executemany("REPLACE INTO crops VALUES (?, ?)", self.lasting.items())
        except sqlite3.Error as error:
            return self.give_up(error)
        self.lasting.clear()
        self.recent = {path: facts for path, facts in found if not facts.settled}
        if self.folder:
            db.close()
            self.db = None

    def opened(self) -> sqlite3.Connection:
        if self.db is None:
            if self.folder:
                with suppress(OSError):
                    self.folder.mkdir(parents=True, exist_ok=True)
            where = self.folder / NAME if self.folder else ":memory:"
            self.db = sqlite3.connect(where, timeout=PATIENCE, check_same_thread=False)
            for table in TABLES:
                self.db.execute(f"CREATE TABLE IF NOT EXISTS {table} WITHOUT ROWID")
        return self.db

    def give_up(self, error: sqlite3.Error) -> None:
        """Continue in memory. A damaged database is deleted."""
        if self.folder and type(error) is sqlite3.DatabaseError:
            for name in (f"{NAME}-journal", NAME):
                with suppress(OSError):
                    (self.folder / name).unlink()
        self.folder = self.db = None

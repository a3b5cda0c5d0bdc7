"""A folder that only one process may use at a time."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from nanocontrol.plumbing.errors import InputError
from nanocontrol.plumbing.files import make_folder
from nanocontrol.plumbing.flags import absolute


@contextmanager
def folder_held(out: str | None, kind: str, resume: bool) -> Iterator[str]:
    """Lock a run's folder, which is created if necessary -> its path. The operating system holds
    the lock, so it ends with the process in any case. A new folder that stays empty is removed.

    out: the folder; None: the first free one of runs/kind-1, runs/kind-2, ...
    resume: whether a message names --resume or --out.
    Raises InputError if another run holds the lock.
    """
    flag = "--resume" if resume else "--out"
    made = out is None or not os.path.exists(out)
    path = make_folder(flag, Path(out)) if out else numbered_folder(kind)
    try:
        file = open(path / "lock", "ab")
    except OSError as error:
        raise InputError(f"{flag}: {path} cannot be written to: {error.strerror}") from None
    with file:
        if not lock(file):
            raise InputError(f"{flag} {path}: another run is using it; expected a free folder")
        try:
            yield absolute(str(path))
        finally:
            if made and os.listdir(path) == ["lock"]:
                with suppress(OSError):
                    os.unlink(file.name)
                    path.rmdir()


def numbered_folder(kind: str) -> Path:
    """Create the first free folder. If two runs start at once, only one of them can create it."""
    folder, number = make_folder("--out", Path("runs")), 1
    while True:
        path = folder / f"{kind}-{number}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
        except OSError as error:
            raise InputError(f"--out: {path} cannot be created: {error.strerror}") from None


def lock(file: IO) -> bool:
    """Whether this process now holds the file's lock. The lock ends with the process, and child
    processes do not inherit it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # The last owner may have deleted the file since it was opened here.
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except (BlockingIOError, PermissionError, FileNotFoundError):
        return False
    except OSError:  # a file system without locks, as on some clusters: the user must take care
        return True

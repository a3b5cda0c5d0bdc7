"""A folder that one process has to itself."""

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
    """The folder's path. The lock is the system's own, so it ends with the process, however that
    ends. A folder that was made for nothing is taken away.

    Raises InputError if another run has it.
    """
    flag = "--resume" if resume else "--out"
    made = out is None or not Path(out).exists()
    path = make_folder(flag, Path(out)) if out else numbered_folder(kind)
    try:
        file = open(path / "lock", "ab")
    except OSError as error:
        raise InputError(f"{flag}: {path} cannot be written to: {error.strerror}") from None
    with file:
        if not lock(file):
            raise InputError(f"{flag} {path}: another run is at work there; expected no other one")
        try:
            yield absolute(str(path))
        finally:
            if made and os.listdir(path) == ["lock"]:
                with suppress(OSError):
                    os.unlink(file.name)
                    path.rmdir()


def numbered_folder(kind: str) -> Path:
    """Made here: of two runs that start at once only one can make it."""
    folder, number = make_folder("--out", Path("runs")), 1
    while True:
        path = folder / f"{kind}-{number}"
        try:
            path.mkdir()
            return path
        except FileExistsError:
            number += 1
        except OSError as error:
            raise InputError(f"--out: {path} cannot be made: {error.strerror}") from None


def lock(file: IO) -> bool:
    """Whether this process has the file's lock now. It loses it with its end, and its children
    never have it."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        # (Its last owner may have taken the file away since it was opened.)
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except (BlockingIOError, PermissionError, FileNotFoundError):
        return False
    except OSError:  # a file system without locks, as some clusters have: then care is the user's
        return True

"""What all that reads and writes files shares."""

import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from nanocontrol.plumbing.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a temporary file, then put it in place: a file is whole or not there,
    wherever this process is killed or the power cut."""
    # (No process id: two machines, or two containers, that share a folder may have the same.)
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # others may read it, as any file (safetensors lets only its owner)
        sync(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk comes as any of them
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} could not be written: {why}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def sync(path: Path) -> None:
    """Wait until the file is on the disk: what only the system has yet is lost in a power cut."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def remove_temporary_files(folder: Path, seconds: float = 0) -> None:
    """Those that `write_atomically` left when it was killed, if nobody wrote to them for that long:
    where others write too, theirs must stay."""
    for file in folder.glob("*." + "[0-9a-f]" * 8 + ".tmp"):
        with suppress(OSError):  # another may be faster
            if file.stat().st_mtime <= time.time() - seconds:
                file.unlink()


def make_folder(flag: str, path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag}: the folder {path} cannot be made: {error.strerror}") from None
    return path

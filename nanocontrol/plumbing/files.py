"""What all that reads and writes files shares."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from nanocontrol.plumbing.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Have `write` make a temporary file, then put it in place: a file is whole or not there."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        write(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk comes as any of them
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} could not be written: {why}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def make_folder(flag: str, path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag}: the folder {path} cannot be made: {error.strerror}") from None
    return path

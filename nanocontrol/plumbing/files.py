"""Functions shared by all code that writes files."""

import codecs
import hashlib
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from safetensors import SafetensorError

from nanocontrol.plumbing.errors import InputError


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` create a temporary file, then rename it to `path`. A file is complete or absent,
    even if the process is killed or the power fails. Raises InputError if it cannot be written."""
    # The name is random. Two machines or containers that share a folder can have equal process ids.
    temporary = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        write(temporary)
        temporary.chmod(mode)  # as for any new file; safetensors lets only the owner read
        sync(temporary)
        os.replace(temporary, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # a full disk raises any of these
        why = (str(error) or type(error).__name__).splitlines()[0]
        raise InputError(f"{path} could not be written: {why}") from None
    finally:
        with suppress(OSError):
            temporary.unlink()


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark."""
    try:
        data = path.read_bytes()
        is_utf16 = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
        text = data.decode("utf-16" if is_utf16 else "utf-8-sig")
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a text") from None
    except UnicodeDecodeError:
        text = "\0"
    if "\0" in text:  # as in UTF-16 without a mark and in UTF-32
        raise InputError(f"{path} is not UTF-8; expected a text in UTF-8")
    return text


def first_bytes(path: Path, n: int) -> bytes:
    with open(path, "rb") as file:
        return file.read(n)


def hash_of(path: str | Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits. Raises InputError if it cannot be read."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a file") from None


def sync(path: Path) -> None:
    """Wait until the file is on the disk. The system's buffers are lost when the power fails."""
    with open(path, "rb+") as file:
        os.fsync(file.fileno())


def remove_temporary_files(folder: Path, seconds: float = 0) -> None:
    """Delete files that `write_atomically` left when it was killed. Only files that were unchanged
    for this many seconds are deleted, because other processes may be writing theirs."""
    for file in folder.glob("*." + "[0-9a-f]" * 8 + ".tmp"):
        with suppress(OSError):  # another process may have deleted it
            if file.stat().st_mtime <= time.time() - seconds:
                file.unlink()


def make_folder(flag: str, path: Path) -> Path:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{flag}: the folder {path} cannot be created: {error.strerror}") from None
    return path

"""What is refused ends in one sentence that names the flag or the file."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 299  # characters of a message that names one file


class InputError(Exception):
    """A file, flag or folder that cannot be used; the message is one sentence that names it, one
    printable line. longest: of a message that names several."""

    def __init__(self, message: str, longest: int = LONGEST):
        # One from a process that reads pairs is made anew, of that process's whole traceback.
        if message.startswith("Caught InputError in DataLoader worker"):
            message = message.strip().splitlines()[-1].removeprefix(f"{__name__}.InputError: ")
        # A folder's name may be long, and the file's own stands at the end of it.
        message = re.sub(r"\S{121,}", lambda word: one_line(word[0], 120), message)
        super().__init__(one_line(message, longest))


def one_line(text: str, longest: int = LONGEST) -> str:
    """A text that may come from a file, to be printed: the middle of a long one is left out, and
    what is not printable (a terminal could obey it) is escaped as Python does it."""
    text = without_middle(text, longest)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return without_middle(text, longest)


def without_middle(text: str, longest: int) -> str:
    half = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


def memory_is_full(error: Exception) -> bool:
    """PyTorch raises a RuntimeError then, on a CPU too."""
    return isinstance(error, MemoryError) or "allocate" in str(error)


class Stopped(KeyboardInterrupt):
    """By the signal of this number; the message is one sentence."""

    def __init__(self, number: int, message: str = "stopped"):
        super().__init__(message)
        self.number = number


@contextmanager
def blame(flag: str) -> Iterator[None]:
    """Name the flag whose value was refused."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{flag}: {error}", max(LONGEST, len(str(error)))) from None


@contextmanager
def one_sentence(program: str, when_memory_is_full: str = "more is needed") -> Iterator[None]:
    """End with one sentence where something is refused (status 2) or stopped (as shells have it,
    128 and the signal's number: 130 by Ctrl-C, 143 by SIGTERM)."""
    try:
        yield
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not memory_is_full(error):
            raise
        sys.exit(f"{program}: there is not enough memory; {when_memory_is_full}")
    except KeyboardInterrupt as stop:
        print(f"{program}: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))

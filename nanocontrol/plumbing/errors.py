"""Errors that end the program with one sentence, which names the flag or the file."""

import re
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper
from typing import TextIO

LONGEST = 299  # characters of a message that names one file
LONGEST_LINE = 3000  # of a report


class InputError(Exception):
    """A file, flag or folder that cannot be used. The message is one sentence that names it, on one
    printable line. longest: the limit in characters, larger if the message names several."""

    def __init__(self, message: str, longest: int = LONGEST):
        # DataLoader raises a worker's error again, with that worker's whole traceback as message.
        if message.startswith("Caught InputError in DataLoader worker"):
            message = message.strip().splitlines()[-1].removeprefix(f"{__name__}.InputError: ")
        # Long paths are cut in the middle, because the file's own name is at the end.
        message = re.sub(r"\S{121,}", lambda word: one_line(word[0], 120), message)
        super().__init__(one_line(message, longest))


def one_line(text: str, longest: int = LONGEST) -> str:
    """Make a text that may come from a file safe to print. The middle of a long text is left out.
    Unprintable characters, which a terminal could obey, are escaped as in Python."""
    text = without_middle(text, longest)
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
    return without_middle(text, longest)


def say(text: object, stream: TextIO | None = None) -> None:
    """Print a line in which a name from outside may stand. stream: standard output by default."""
    print(one_line(str(text), LONGEST_LINE), file=stream)


def without_middle(text: str, longest: int) -> str:
    half = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"


def memory_is_full(error: Exception) -> bool:
    """Whether an error means that memory is full. PyTorch then raises a RuntimeError, on a CPU
    too."""
    return isinstance(error, MemoryError) or bool(re.search("allocate|shared memory", str(error)))


class Stopped(KeyboardInterrupt):
    """A signal stopped the program. number: the signal's; message: one sentence."""

    def __init__(self, number: int, message: str = "stopped"):
        super().__init__(message)
        self.number = number


@contextmanager
def blame(flag: str) -> Iterator[None]:
    """Put the flag in front of the message of an InputError."""
    try:
        yield
    except InputError as error:
        named = f"{flag}: {error}"
        raise InputError(named, max(LONGEST, len(named))) from None


@contextmanager
def one_sentence(program: str, when_memory_is_full: str = "more is needed") -> Iterator[None]:
    """End the program with one sentence, and escape characters that standard output does not have
    (Windows: cp1252). The exit status is 2 for an InputError. If a signal
    stopped it, the status is 128 plus the signal's number, as in shells: 130 for Ctrl-C."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except InputError as error:
        say(f"{program}: {error}", sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:
        if not memory_is_full(error):
            raise
        if "shared memory" in str(error):  # in which DataLoader's workers return what they read
            when_memory_is_full = "it is shared memory: raise its limit, in Docker with --shm-size"
        sys.exit(f"{program}: there is not enough memory; {when_memory_is_full}")
    except KeyboardInterrupt as stop:
        say(f"{program}: {str(stop) or 'stopped'}", sys.stderr)
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))

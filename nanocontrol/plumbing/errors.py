"""What is refused ends in one sentence that names the flag or the file."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager


class InputError(Exception):
    """A file, flag or folder that cannot be used; the message is one sentence that names it."""


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
        raise InputError(f"{flag}: {error}") from None


@contextmanager
def one_sentence(program: str, when_memory_is_full: str = "more is needed") -> Iterator[None]:
    """End with one sentence where something is refused (status 2) or stopped (as shells have it,
    128 and the signal's number: 130 by Ctrl-C, 143 by SIGTERM)."""
    try:
        yield
    except InputError as error:
        # One from a process that reads pairs comes at the end of that process's traceback.
        message = str(error).strip().splitlines()[-1]
        message = message.removeprefix(f"{InputError.__module__}.InputError: ")
        print(f"{program}: {message}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:  # PyTorch's is the first, on a CPU too
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        sys.exit(f"{program}: there is not enough memory; {when_memory_is_full}")
    except KeyboardInterrupt as stop:
        print(f"{program}: {str(stop) or 'stopped'}", file=sys.stderr)
        sys.exit(128 + getattr(stop, "number", signal.SIGINT))

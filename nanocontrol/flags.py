"""What the command lines share: checks of flags, each refusing with one sentence."""

import argparse
import ctypes
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

from .files import InputError


@contextmanager
def blame(flag: str) -> Iterator[None]:
    """Name the flag whose value was refused."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{flag}: {error}") from None


@contextmanager
def one_sentence(program: str, when_memory_is_full: str = "more is wanted") -> Iterator[None]:
    """End with one sentence where something is refused (status 2) or stopped."""
    try:
        yield
    except InputError as error:
        print(f"{program}: {error}", file=sys.stderr)
        sys.exit(2)
    except (RuntimeError, MemoryError) as error:  # PyTorch's is the first, on a CPU too
        if isinstance(error, RuntimeError) and "allocate" not in str(error):
            raise
        sys.exit(f"{program}: there is not enough memory; {when_memory_is_full}")
    except KeyboardInterrupt:
        sys.exit(f"{program}: stopped")


def at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if int(text) < least:
            raise argparse.ArgumentTypeError(f"{text} is less than {least}")
        return int(text)

    return whole_number


def seed(text: str) -> int:
    if not 0 <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2^63")
    return int(text)


def fraction(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


def positive(text: str) -> float:
    if not float(text) > 0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return float(text)


def finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return float(text)


def numbers(text: str) -> list[float]:
    """1 or 0.5,1,1"""
    return [finite(number) for number in text.split(",")]


def multiple_of_64(text: str) -> int:
    if int(text) <= 0 or int(text) % 64:
        raise argparse.ArgumentTypeError(f"{text} is no multiple of 64")
    return int(text)


def keep_freed_memory() -> None:
    """On a CPU: have the C library (glibc) keep what is freed, for the next tensors. It would give
    large pieces back to the system and ask for them anew at every step, which for Stable Diffusion
    takes a fifth of a training step's time."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no piece is mapped on its own
        libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: none is given back


def available(name: str) -> bool:
    """Whether PyTorch can use this device here."""
    try:
        torch.zeros(1, device=name).item()
    except Exception:  # every kind of device has its own way of not being there
        return False
    return True


def device(text: str) -> str:
    if not available(text):
        raise argparse.ArgumentTypeError(f"PyTorch has no device {text!r} here")
    return text


def default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"

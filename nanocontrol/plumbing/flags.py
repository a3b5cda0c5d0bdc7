"""Parsers for the values of command-line flags. Each refuses a bad value with one sentence."""

import argparse
import math
import os
import re
from collections.abc import Callable
from typing import Any, NoReturn

from nanocontrol.plumbing.errors import LONGEST_LINE, one_line
from nanocontrol.plumbing.machine import available

MOST = 2**31


class Parser(argparse.ArgumentParser):
    """Prints errors on one printable line, and takes values like -1,0.5 and -1e5."""

    def __init__(self, *given: Any, **more: Any):
        super().__init__(*given, **more)
        self._negative_number_matcher = re.compile(r"-\.?\d")

    def error(self, message: str) -> NoReturn:
        super().error(one_line(message, LONGEST_LINE))


def at_least(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        if not least <= int(text) <= MOST:
            wrong = f"less than {least}" if int(text) < least else "more than 2^31"
            raise argparse.ArgumentTypeError(f"{text} is {wrong}")
        return int(text)

    return whole_number


def utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError(f"{text!a} is not UTF-8") from None
    return text


def number_or_all(text: str) -> int:
    return MOST if text == "all" else at_least(0)(text)


def seed(text: str) -> int:
    if not 0 <= int(text) < 2**63:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2^63")
    return int(text)


def fraction(text: str) -> float:
    if not 0 <= float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return float(text)


def positive(text: str) -> float:
    if not 0 < float(text) < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and finite")
    return float(text)


def finite(text: str) -> float:
    if not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"{text} is not finite")
    return float(text)


def numbers(text: str) -> list[float]:
    """Numbers separated by commas: "1" or "0.5,1,1"."""
    return [finite(number) for number in text.split(",")]


def multiple_of_64(text: str) -> int:
    if int(text) <= 0 or int(text) % 64:
        raise argparse.ArgumentTypeError(f"{text} is not a multiple of 64")
    return int(text)


def width_and_height(text: str) -> str:
    """A size WIDTHxHEIGHT: "512" -> "512x512", "768x512" -> "768x512"."""
    sides = [multiple_of_64(side) for side in text.split("x")]
    if len(sides) > 2:
        raise argparse.ArgumentTypeError(f"expected 512 or 768x512, not {text}")
    return f"{sides[0]}x{sides[-1]}"


def device(text: str) -> str:
    if not available(text):
        raise argparse.ArgumentTypeError(f"PyTorch has no device {text!r} here")
    return text


def canny_or_folder(text: str) -> str:
    return text if text == "canny" else absolute(text)


def absolute(path: str) -> str:
    """The absolute path, because a run may be resumed from another folder."""
    return os.path.abspath(path)  # links stay, as next to a link there may be a config.json

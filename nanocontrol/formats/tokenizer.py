"""CLIP's tokenizer, which is open_clip's: the one thing of the method that is not written here."""

import importlib.util
from functools import cache
from types import ModuleType
from typing import Any


def count_tokens(text: str) -> int:
    """The tokens of a prompt before it is cut, with those of start and end."""
    return 2 + len(tokenizer().encode(text))


@cache
def tokenizer() -> Any:
    return open_clip_tokenizer().SimpleTokenizer()


@cache
def open_clip_tokenizer() -> ModuleType:
    # The file alone, by its path: importing all of open_clip takes five seconds.
    folder = importlib.util.find_spec("open_clip").submodule_search_locations[0]
    spec = importlib.util.spec_from_file_location("open_clip_tokenizer", f"{folder}/tokenizer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module

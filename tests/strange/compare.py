"""Other readers on the strange files, as a table:

    python tests/strange/compare.py [--each]

Every reader gets every file of a format that it supports, in a process of its own, with the limits
of harness.py. Payloads create an empty file in a temporary folder and do nothing else.
"""

import argparse
import os
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import torch
from safetensors.torch import load_file

TESTS = Path(__file__).parents[1]
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

from strange.harness import (  # noqa: E402
    CASES,
    CRASHED,
    KINDS,
    RAN,
    TOO_MUCH_MEMORY,
    TOO_SLOW,
    Case,
    Process,
    attempt,
    difference,
    fault,
    read_file,
)

RIGHT, LINE, ACCEPTED, WRONG = "right weights", "one line", "accepted", "wrong weights"
ANOTHER = "another exception"
ENDS = [RIGHT, LINE, ACCEPTED, WRONG, ANOTHER, TOO_SLOW, TOO_MUCH_MEMORY, CRASHED, RAN]


def with_diffusers() -> Callable:
    from diffusers.models.model_loading_utils import load_state_dict

    return load_state_dict


def readers() -> dict[str, Callable]:
    found: dict[str, Callable] = {
        "nanocontrol": read_file,
        "torch.load": lambda path: torch.load(path, map_location="cpu"),
        "torch.load, mapped": lambda path: torch.load(path, map_location="cpu", mmap=True),
        "safetensors": load_file,
    }
    if find_spec("diffusers"):
        found["diffusers"] = with_diffusers()
    return found


def unwrapped(found: object) -> object:
    """The content of a file's state_dict, as every program unwraps it."""
    for _ in range(8):
        if isinstance(found, dict) and "state_dict" in found:
            found = found["state_dict"]
    return found


def end_of(case: Case, read: Callable, folder: Path) -> str:
    found, message, trouble = attempt(read, path := case.write(folder), Exception)
    if trouble:
        return trouble
    if message is not None:
        return ANOTHER if fault(message, path, case._replace(says="")) else LINE
    if case.ends == "refused":
        return ACCEPTED
    found = unwrapped(found)
    return RIGHT if isinstance(found, dict) and not difference(found, case) else WRONG


def tried(case: Case, read: Callable) -> str:
    with tempfile.TemporaryDirectory() as folder:

        def quietly() -> str:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            return end_of(case, read, Path(folder))

        process = Process(lambda _: quietly())
        said = process.ask("")
        process.end()
    return said if said in ENDS else ANOTHER


def suits(name: str, suffix: str) -> bool:
    """Whether a reader supports this format. torch.load and safetensors read one format each."""
    if name == "safetensors":
        return suffix == ".safetensors"
    return not name.startswith("torch.load") or suffix != ".safetensors"


def row(cells: list) -> str:
    return "| " + " | ".join(map(str, cells)) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--each", action="store_true", help="a line for every case as well")
    each = parser.parse_args().each
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for kind in KINDS:
        import_module(f"strange.{kind}")
    cases = [case for case in CASES.values() if case.read is read_file]
    with tempfile.TemporaryDirectory() as folder:
        suffixes = {}
        for case in cases:
            (place := Path(folder) / case.name[:100]).mkdir()
            suffixes[case.name] = case.write(place).suffix
    print(row(["reader", "files", *ENDS]))
    print(row(["---"] * (2 + len(ENDS))))
    for name, read in readers().items():
        suited = [case for case in cases if suits(name, suffixes[case.name])]
        ends = {case.name: tried(case, read) for case in suited}
        count = Counter(ends.values())
        print(row([name, len(ends), *(count[end] or "" for end in ENDS)]), flush=True)
        for case, end in ends.items() if each else ():
            print(f"    {case}: {end}")


if __name__ == "__main__":
    main()

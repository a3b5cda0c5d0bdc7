"""What others' readers do with the strange files, as a table:

    python tests/strange/compare.py [--each]

Every reader gets every file whose tensors it could return, in a process of its own, with the bounds
of harness.py. Payloads make an empty file in a temporary folder, and nothing else.
"""

import argparse
import json
import os
import signal
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
    CPU_SECONDS,
    KINDS,
    MARKER,
    MEMORY,
    SECONDS,
    Case,
    difference,
    fault,
    forget_peak,
    memory,
    read_file,
)

RIGHT, LINE = "right weights", "one line"
ENDS = [RIGHT, LINE, "accepted", "wrong weights", "another exception"]
ENDS += ["too slow", "too much memory", "crash", "payload ran"]


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
    """What stands in a file's state_dict, as every program takes it out."""
    for _ in range(8):
        if isinstance(found, dict) and "state_dict" in found:
            found = found["state_dict"]
    return found


def end_of(case: Case, read: Callable, folder: Path) -> str:
    path = case.write(folder)
    forget_peak()
    before, size = memory("VmRSS"), os.path.getsize(path) if os.path.isfile(path) else 0
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    message, found = None, None
    try:
        found = unwrapped(read(path))
    except Exception as error:  # whatever it may be
        message = str(error)
    if (path.parent / MARKER).exists():
        return "payload ran"
    if memory("VmHWM") - before > MEMORY[0] * size + MEMORY[1]:
        return "too much memory"
    if message is not None:
        return "another exception" if fault(message, path, case._replace(says="")) else LINE
    if case.ends == "refused":
        return "accepted"
    same = isinstance(found, dict) and not difference(found, case)
    return RIGHT if same else "wrong weights"


def tried(case: Case, read: Callable) -> str:
    back, out = os.pipe()
    with tempfile.TemporaryDirectory() as folder:
        if os.fork() == 0:
            sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
            try:
                said = end_of(case, read, Path(folder))
            except BaseException as error:
                said = f"another exception ({type(error).__name__})"
            os.write(out, json.dumps(said).encode())
            os._exit(0)
        os.close(out)
        with open(back, "rb") as file:
            said = file.read()
        _, status = os.wait()
    if os.WIFSIGNALED(status):
        slow = os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
        return "too slow" if slow else "crash"
    return json.loads(said).split(" (")[0]


def suits(name: str, suffix: str) -> bool:
    """torch.load and safetensors each have one form."""
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

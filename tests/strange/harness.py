"""Cases of strange files, how they are run, and how they may end.

A case is a small function that writes a file into a folder and returns its path. Its name describes
the file, and its decorator states the expected end:

    @loads                                     # exactly the right weights
    @refused(says="is cut off")                # one line that names the file, with these words

Cases run in separate processes, forked from one that has imported torch. A fork takes longer than a
case, so each process runs up to twenty. CPU time and memory are limited. This needs Linux.
"""

import ctypes
import gc
import json
import os
import re
import signal
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nanocontrol.formats.tensors import open_tensors
from nanocontrol.plumbing.errors import InputError, one_line

TESTS = Path(__file__).parents[1]
KINDS = ["pickles", "zips", "safetensors_files", "tensors", "names", "other_files"]

CPU_SECONDS = 2.0
# A process that waits, for example for a pipe, uses no CPU time. On a busy machine two seconds of
# work may take this long.
SECONDS = 20
# Limit of the peak memory above the memory before. A file is mapped or read once, its tensors are
# copied once, and inflated data may be as large again. The constant part is for a pickle of 16 MB,
# its objects, and library pages that are used for the first time.
MEMORY = 4, 80 * 2**20  # multiple of the file's size, plus bytes

RAN, TOO_MUCH_MEMORY, TOO_SLOW = "payload ran", "too much memory", "too slow"
CRASHED = "crash"

CASES_IN_A_PROCESS = 20

MARKER = "it-ran"  # every payload creates a file of this name in the case's folder


def small_model() -> dict[str, Tensor]:
    """2.5 kB of tensors: several shapes, two precisions, a scalar, integers as in real files."""
    generator = torch.Generator().manual_seed(0)
    draw = partial(torch.randn, generator=generator)
    return {
        "conv.weight": draw(8, 4, 3, 3),
        "conv.bias": draw(8),
        "linear.weight": draw(16, 8),
        "half.weight": draw(5, 7).half(),
        "scale": draw(()),
        "position_ids": torch.arange(12).reshape(1, 12),
    }


WEIGHTS = small_model()


def read_file(path: Path) -> dict[str, Tensor]:
    return open_tensors(path).tensors


class Case(NamedTuple):
    name: str
    write: Callable[[Path], Path]
    ends: str  # "loads", "refused", or "either" for randomly damaged files
    read: Callable[[Path], dict[str, Tensor]]
    weights: dict[str, Tensor]
    says: str  # words that the message has to contain
    blind: bool  # values may differ, as there is no checksum; names, shapes and dtypes may not


CASES: dict[str, Case] = {}


def case(ends, write=None, read=read_file, weights=WEIGHTS, says="", blind=False):
    def add(write):
        assert write.__name__ not in CASES, write.__name__
        CASES[write.__name__] = Case(write.__name__, write, ends, read, weights, says, blind)
        return write

    return add(write) if write else add


loads = partial(case, "loads")
refused = partial(case, "refused")


def find(name: str) -> Case:
    """The case of this name. A number means a randomly damaged file."""
    if name.isdecimal():
        return import_module("strange.mutations").mutation(int(name))
    for kind in KINDS:
        import_module(f"strange.{kind}")
    return CASES[name]


# --------------------------------------------------------------------------- running one case


def attempt(read: Callable, path: Path, refusal: type[Exception]) -> tuple[Any, str | None, str]:
    """Read the file within the limits -> (result, message of a refusal or None, trouble or "")."""
    forget_peak()
    before, size = memory("VmRSS"), os.path.getsize(path) if os.path.isfile(path) else 0
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    found, message = None, None
    try:
        found = read(path)
    except refusal as error:
        message = str(error)
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0), signal.setitimer(signal.ITIMER_REAL, 0)
    if (path.parent / MARKER).exists():
        return found, message, RAN
    too_much = memory("VmHWM") - before > MEMORY[0] * size + MEMORY[1]
    return found, message, TOO_MUCH_MEMORY if too_much else ""


def complaint(case: Case, path: Path) -> str:
    """Read the file -> what is wrong with the way it ended, or ""."""
    tensors, message, trouble = attempt(case.read, path, InputError)
    if trouble:
        return trouble
    if case.ends == "refused" and message is None:
        return "was loaded, expected a refusal"
    if case.ends == "loads" and message is not None:
        return f"was refused, expected the weights: {message}"
    return difference(tensors, case) if message is None else fault(message, path, case)


def difference(tensors: dict[str, Tensor], case: Case) -> str:
    """The first difference from the right tensors, compared bitwise, or ""."""
    if tensors.keys() != case.weights.keys():
        return f"wrong names: {sorted(tensors.keys() ^ case.weights.keys())}"
    for name, right in case.weights.items():
        tensor = tensors[name]
        if (tensor.dtype, tensor.shape) != (right.dtype, right.shape):
            return f"{name} is {tensor.dtype}, {[*tensor.shape]}"
        if not case.blind and bits(tensor) != bits(right):
            return f"{name} has wrong numbers"
    return ""


def bits(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


def fault(message: str, path: Path, case: Case) -> str:
    """The fault in a message, or "". It has to be one printable line that names the file."""
    named = one_line(path.name)[-40:] in message  # for a long name, its end
    good = message.isprintable() and len(message) < 300 and named
    return "" if good and case.says in message else f"says {message[:400]!r}"


def memory(which: str) -> int:
    """Memory of this process in bytes: now ("VmRSS") or at the peak ("VmHWM")."""
    return 1024 * int(re.search(rf"{which}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def forget_peak() -> None:
    """Reset the peak. Memory freed by earlier cases is returned to the system if possible."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def can_try() -> bool:
    """Whether this system reports a process's peak memory, as Linux does."""
    try:
        forget_peak()
        return memory("VmHWM") > 0
    except (OSError, TypeError):
        return False


# ------------------------------------------------------------------------ processes for cases


class Process:
    """A fork of this process that answers lines, one after the other, with `answer`."""

    def __init__(self, answer: Callable[[str], str]):
        ours, theirs = socket.socketpair()
        self.pid = os.fork()
        if self.pid == 0:
            ours.close()
            with suppress(BrokenPipeError), theirs.makefile("rw") as lines:
                for line in lines:
                    lines.write(json.dumps(answered(answer, line)) + "\n")
                    lines.flush()
            os._exit(0)
        theirs.close()
        self.socket, self.lines = ours, ours.makefile("rw")

    def ask(self, line: str) -> str:
        """The answer, or how the process ended if it gave none."""
        with suppress(BrokenPipeError, ConnectionResetError):  # it has ended already
            self.lines.write(line + "\n")
            self.lines.flush()
            if said := self.lines.readline():
                return json.loads(said)
        return self.end()

    def end(self) -> str:
        """Let the process finish -> how it ended."""
        if self.lines.closed:
            return ""
        with suppress(BrokenPipeError):
            self.lines.close()
        self.socket.close()
        _, status = os.waitpid(self.pid, 0)
        if os.WIFSIGNALED(status):
            waited = os.WTERMSIG(status) in (signal.SIGPROF, signal.SIGALRM)
            return TOO_SLOW if waited else CRASHED
        return "ended without an answer"


def answered(answer: Callable[[str], str], line: str) -> str:
    try:
        return answer(line)
    except BaseException as error:
        return f"ended in {type(error).__name__}: {error}"[:1000]


def try_case(line: str) -> str:
    """Run a case. The line is JSON: [name, folder] -> what went wrong, or ""."""
    name, folder = json.loads(line)
    os.chdir(folder)  # the previous case may have changed it
    case = find(name)
    return complaint(case, case.write(Path(folder)))


def serve() -> None:
    """Read lines [name, folder] from stdin, run these cases, and print what went wrong."""
    warnings.simplefilter("error")  # as in the other tests; a warning would be a second line
    torch.set_num_threads(1)
    for kind in (*KINDS, "mutations"):
        import_module(f"strange.{kind}")
    gc.freeze()  # forks need not collect, and thereby copy, existing objects
    process, left = None, 0
    for line in sys.stdin:
        if left == 0:
            process, left = Process(try_case), CASES_IN_A_PROCESS
        said, left = process.ask(line.strip()), left - 1
        if said or left == 0:
            process.end()
            left = 0
        print(json.dumps(said), flush=True)
    if process:
        process.end()


class Server:
    """A process that forks the processes for cases."""

    def __enter__(self):
        path = os.pathsep.join([str(TESTS.parent), str(TESTS)])
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from strange.harness import serve; serve()"],
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        return self

    def complaint(self, name: str, folder: Path) -> str:
        """Run this case -> what went wrong, or ""."""
        self.process.stdin.write(json.dumps([name, str(folder)]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __exit__(self, *_):
        self.process.communicate()

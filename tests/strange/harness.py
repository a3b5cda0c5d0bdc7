"""What a strange file is, how it is tried, and how it may end.

A case is a small function that writes a file into a folder and returns its path; its name is a
sentence, and the decorator says the expected end:

    @loads                                     # exactly the right weights
    @refused(says="is cut off")                # one line that names the file, with these words

They are tried in processes beside the tests', forked from one that has imported torch already
(twenty in each: a fork takes longer than a case), with two seconds of processor time and a bound on
their memory. (Python and torch alone: Linux has the rest.)
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
# A process that waits, for a pipe for instance, uses no processor time. So long because the machine
# may be busy: two seconds of work, a tenth of a processor.
SECONDS = 20
# How much memory may be held at the peak, above what the process held before. In terms of the file:
# its pages are mapped (once), or it is read (once) and its tensors are copied out (once); what
# is inflated may be as large again. What does not grow with the file: 16 MB of a pickle and what is
# made of them, and the pages of libraries that are used for the first time.
MEMORY = 4, 80 * 2**20  # times the size, plus bytes

RAN, TOO_MUCH_MEMORY, TOO_SLOW = "payload ran", "too much memory", "too slow"
CRASHED = "crash"

CASES_IN_A_PROCESS = 20

MARKER = "it-ran"  # every payload makes a file of this name in the case's folder


def small_model() -> dict[str, Tensor]:
    """2.5 kB: several shapes, two precisions, a number alone, and the integers of real files."""
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
    ends: str  # "loads", "refused", or "either" (of a file that is damaged at random)
    read: Callable[[Path], dict[str, Tensor]]
    weights: dict[str, Tensor]
    says: str  # the message has these words
    blind: bool  # the numbers may differ: there is no checksum (names, shapes and dtypes may not)


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
    """The case of a name, or of a number (one that is damaged at random)."""
    if name.isdecimal():
        return import_module("strange.mutations").mutation(int(name))
    for kind in KINDS:
        import_module(f"strange.{kind}")
    return CASES[name]


# ------------------------------------------------------------------ in the process of the case


def attempt(read: Callable, path: Path, refusal: type[Exception]) -> tuple[Any, str | None, str]:
    """Read the file within the bounds -> what was read, the message of a refusal (None without
    one), and what went wrong besides ("" if nothing)."""
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
    """Read the file; what is wrong with the end, "" if nothing."""
    tensors, message, trouble = attempt(case.read, path, InputError)
    if trouble:
        return trouble
    if case.ends == "refused" and message is None:
        return "was loaded, expected a refusal"
    if case.ends == "loads" and message is not None:
        return f"was refused, expected the weights: {message}"
    return difference(tensors, case) if message is None else fault(message, path, case)


def difference(tensors: dict[str, Tensor], case: Case) -> str:
    """How tensors differ from the right ones, to the bit."""
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
    """What is wrong with a message: it is one printable line that names the file."""
    named = one_line(path.name)[-40:] in message  # of a long name the end
    good = message.isprintable() and len(message) < 300 and named
    return "" if good and case.says in message else f"says {message[:400]!r}"


def memory(which: str) -> int:
    """Bytes that this process holds ("VmRSS"), or held at the peak ("VmHWM")."""
    return 1024 * int(re.search(rf"{which}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def forget_peak() -> None:
    """What earlier cases freed goes back to the system, where the C library can do that."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def can_try() -> bool:
    """Whether this system tells a process how much memory it used (Linux does)."""
    try:
        forget_peak()
        return memory("VmHWM") > 0
    except (OSError, TypeError):
        return False


# ---------------------------------------------------------------- the processes that try cases


class Process:
    """Forked from this one: it answers lines, one after the other, with what `answer` makes of
    them."""

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
        """The answer, or how the process ended instead."""
        with suppress(BrokenPipeError, ConnectionResetError):  # it ended before
            self.lines.write(line + "\n")
            self.lines.flush()
            if said := self.lines.readline():
                return json.loads(said)
        return self.end()

    def end(self) -> str:
        """Let it go -> how it ended."""
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
    """What is wrong with the end of the case that the line names, in the folder that it names."""
    name, folder = json.loads(line)
    os.chdir(folder)  # wherever the one before it went
    case = find(name)
    return complaint(case, case.write(Path(folder)))


def serve() -> None:
    """For each line [name, folder], a line with what is wrong."""
    warnings.simplefilter("error")  # as in the other tests: they are lines, too
    torch.set_num_threads(1)
    for kind in (*KINDS, "mutations"):
        import_module(f"strange.{kind}")
    gc.freeze()  # what is there now needs no collection in the forked ones, which would copy it
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
    """The process from which those that try cases are forked, for the tests."""

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
        """What is wrong with the end of this case, "" if nothing."""
        self.process.stdin.write(json.dumps([name, str(folder)]) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def __exit__(self, *_):
        self.process.communicate()

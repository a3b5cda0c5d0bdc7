"""A submission in a process of its own, seen from the grader."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from threading import Thread, Timer
from typing import Any

from nanocontrol.commands.clone import ROOT
from nanocontrol.course.messages import pack, read_message

HERE = Path(__file__).parent
PRIVATE = ROOT / "tests", HERE / "checks"  # the solutions, and the sentences
SECONDS = 120.0  # that the grader waits for a file, in all its calls
STARTING = 300.0  # seconds in which PyTorch has to be imported
MOST_PRINTED = 2**20  # bytes
MOST_HANDED_IN = 2**24  # bytes of a file
KILLED = 9  # SIGKILL, which Windows does not have
CLOSED = "nanocontrol.course", "tests"
ENVIRONMENT = "PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "LANG"  # a submission sees no more of it
DAMAGED = "the result is damaged; a file may not write to the grader"


class Wrong(Exception):
    """An answer is wrong or missing. The message is a sentence that says what it looks like."""


class Student(AbstractContextManager):
    """A child process that runs a submission's files, one after the other.

    private: more folders that a submission may not open. seconds: that each file may compute.
    """

    def __init__(self, private: tuple[Path, ...] = (), seconds: float = SECONDS):
        self.private, self.seconds = (*PRIVATE, *private), seconds
        self.process: Any = None  # subprocess.Popen
        self.folder = Path()  # where it runs
        self.printed = b""

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, folder: Path) -> None:
        """Start the process, in the submission's folder."""
        self.folder, self.printed, self.bytes_printed = folder, b"", 0
        python = [sys.executable, "-I", "-B"]  # it may not write bytecode elsewhere
        command = [*python, str(HERE / "child.py"), str(ROOT), *map(str, self.private)]
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment |= {"OMP_NUM_THREADS": "1", "HOME": str(folder), "TMPDIR": str(folder)}
        pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True, **pipes
        )
        self.reader = Thread(target=self.overhear, args=(self.process,), daemon=True)
        self.reader.start()
        self.left = STARTING
        self.exchange(b"")  # it says that it is ready

    def overhear(self, process: subprocess.Popen) -> None:
        """Keep the beginning of what is printed. Stop a process that prints too much."""
        while data := process.stderr.read1(2**16):
            self.printed += data[: 2**12 - len(self.printed)]
            self.bytes_printed += len(data)
            if self.bytes_printed > MOST_PRINTED:
                kill(process)

    def exchange(self, request: bytes) -> Any:
        """The process's answer. The process is stopped when its time is up."""
        began, process = time.monotonic(), self.process
        timer = Timer(max(0, self.left), kill, [process])
        timer.start()
        try:
            with suppress(OSError):  # it has ended, and may have said why
                process.stdin.write(request)
                process.stdin.flush()
            return read_message(process.stdout)
        except (EOFError, OSError, ValueError) as error:
            why = error
        finally:
            timer.cancel()
            self.left -= time.monotonic() - began
        self.stop()
        raise Wrong(self.explained(why, -process.returncode))

    def explained(self, error: Exception, crash: int) -> str:
        """A sentence about a process that was stopped. crash: the signal that ended it."""
        if self.bytes_printed > MOST_PRINTED:
            return f"the file prints more than {MOST_PRINTED // 2**20} MB"
        if self.left <= 0:
            return f"the file computes for more than {self.seconds:g} seconds"
        if isinstance(error, ValueError):
            return DAMAGED
        if crash > 0 and crash != KILLED:
            return f"the process crashed ({signal.strsignal(crash)})"
        return "the process ended before it answered; does it call exit?"

    def ask(self, *request: Any) -> Any:
        match self.exchange(pack(request)):
            case {"value": value}:
                return value
            case {"error": str(sentence)}:
                raise Wrong(sentence)
            case {"refused": what}:
                self.stop()
                raise Wrong(f"the file {what}, which a submission may not")
        self.stop()
        raise Wrong(DAMAGED)

    def load(self, file: Path, closed: Sequence[str] = ()) -> None:
        """Run a file. Its functions and values can then be asked for.

        closed: modules that it may not import, besides the course's own.
        """
        if self.process is None or self.process.poll() is not None or self.folder != file.parent:
            self.stop()
            self.start(file.parent)
        self.left = self.seconds
        self.ask("load", str(file), [*CLOSED, *closed])

    def call(self, name: str, *args: Any, through: str | None = None) -> Any:
        """The result of the file's function for these arguments.

        through: a function of inside.py that calls it with objects which cannot be sent.
        """
        return self.ask("call", name, args, through)

    def value(self, name: str) -> Any:
        return self.ask("value", name)

    def stop(self) -> None:
        """End the process and all that it started."""
        process, self.process = self.process, None
        if process:
            with suppress(OSError), process:  # it waits for the end, and closes the pipes
                kill(process)
                self.reader.join(5)


def kill(process: subprocess.Popen) -> None:
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def copy_file(name: str, source: Path, folder: Path) -> Path:
    """A copy of a submitted file. Raises Wrong if it is missing, not an ordinary file of this
    submission, or too large. name: relative to both folders."""
    file = source / name
    if not file.resolve().is_relative_to(source.resolve()) or file.is_symlink():
        raise Wrong(f"{name} is a link; expected a file")
    if not file.is_file():
        raise Wrong(f"{name} is missing; expected a file")
    if file.stat().st_size > MOST_HANDED_IN:
        raise Wrong(f"{name} is larger than {MOST_HANDED_IN // 2**20} MB")
    copy = folder / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(file.read_bytes())
    return copy

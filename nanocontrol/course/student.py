"""A submission in a process of its own, seen from the grader."""

import os
import queue
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from threading import Thread
from typing import Any, BinaryIO

from nanocontrol.commands.clone import ROOT
from nanocontrol.course.messages import TooLong, pack, read_message

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


class Failed(Exception):
    """The submission gave no answer. The message is a sentence that says why."""


class Student(AbstractContextManager):
    """A child process that runs a submission's files, one after the other.

    private: more folders that a submission may not open. seconds: that each file may compute.
    """

    def __init__(self, private: tuple[Path, ...] = (), seconds: float = SECONDS):
        self.private, self.seconds = (*PRIVATE, *private), seconds
        self.process: subprocess.Popen | None = None
        self.folder = Path()  # where it runs
        self.printed = b""

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self, folder: Path) -> None:
        """Start the process, in the submission's folder."""
        self.folder, self.printed, self.bytes_printed = folder, b"", 0
        command: list[str | Path] = [sys.executable, "-I", HERE / "child.py", ROOT, *self.private]
        environment = {name: os.environ[name] for name in ENVIRONMENT if name in os.environ}
        environment |= {"OMP_NUM_THREADS": "1", "HOME": str(folder), "TMPDIR": str(folder)}
        pipes: Any = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
        self.process = subprocess.Popen(
            command, cwd=folder, env=environment, start_new_session=True, **pipes
        )
        self.replies: queue.Queue = queue.Queue()
        Thread(target=self.listen, args=(self.process.stdout, self.replies), daemon=True).start()
        self.reader = Thread(target=self.overhear, args=(self.process,), daemon=True)
        self.reader.start()
        self.left = STARTING
        if self.receive() != {"ready": True}:
            raise RuntimeError(f"the course's process does not start: {self.printed.decode()}")

    def listen(self, pipe: BinaryIO, replies: queue.Queue) -> None:
        """Put what the process sends into a queue, in a thread: pipes have no time limit."""
        try:
            while True:
                replies.put(read_message(pipe))
        except (EOFError, OSError):
            replies.put(Failed("the process ended before it answered; does it call exit?"))
        except TooLong as error:
            replies.put(Failed(f"the result is {error}"))
        except (ValueError, RecursionError):
            replies.put(Failed(DAMAGED))

    def overhear(self, process: subprocess.Popen) -> None:
        """Keep the beginning of what is printed. Stop a process that prints too much."""
        while data := process.stderr.read1(2**16):
            self.printed += data[: 2**12 - len(self.printed)]
            self.bytes_printed += len(data)
            if self.bytes_printed > MOST_PRINTED:
                kill(process)

    def receive(self) -> Any:
        began = time.monotonic()
        try:
            reply = self.replies.get(timeout=max(0, self.left))
        except queue.Empty:
            reply = Failed(f"the file computes for more than {self.seconds:g} seconds")
        self.left -= time.monotonic() - began
        if isinstance(reply, Failed):
            raise self.explained(reply)
        return reply

    def explained(self, failed: Failed) -> Failed:
        """A better sentence for a process that was stopped or crashed."""
        process = self.process
        with suppress(subprocess.TimeoutExpired):
            process.wait(0.5)
        self.stop()
        if self.bytes_printed > MOST_PRINTED:
            return Failed(f"the file prints more than {MOST_PRINTED // 2**20} MB")
        crash = -(process.returncode or 0)
        if "ended" in str(failed) and crash > 0 and crash != KILLED:
            return Failed(f"the process crashed ({signal.strsignal(crash)})")
        return failed

    def ask(self, *request: Any) -> Any:
        with suppress(OSError):  # it has ended; `receive` says so
            self.process.stdin.write(pack(request))
            self.process.stdin.flush()
        reply = self.receive()
        kind = next(iter(reply), None) if isinstance(reply, dict) else None
        if kind == "value":
            return reply["value"]
        if kind == "error":
            raise Failed(str(reply["error"]))
        self.stop()
        if kind == "refused":
            raise Failed(f"the file {reply['refused']}, which a submission may not")
        raise Failed(DAMAGED)

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
        if process is None:
            return
        kill(process)
        process.wait()
        self.reader.join(5)
        for pipe in process.stdin, process.stdout, process.stderr:
            with suppress(OSError):
                pipe.close()


def kill(process: subprocess.Popen) -> None:
    with suppress(OSError):
        if hasattr(os, "killpg"):
            os.killpg(process.pid, signal.SIGKILL)
        else:
            process.kill()


def copy_file(name: str, source: Path, folder: Path) -> Path:
    """A copy of a submitted file. Raises Failed if it is missing, not an ordinary file of this
    submission, or too large. name: relative to both folders."""
    file = source / name
    if not file.resolve().is_relative_to(source.resolve()) or file.is_symlink():
        raise Failed(f"{name} is a link; expected a file")
    if not file.is_file():
        raise Failed(f"{name} is missing; expected a file")
    if file.stat().st_size > MOST_HANDED_IN:
        raise Failed(f"{name} is larger than {MOST_HANDED_IN // 2**20} MB")
    copy = folder / name
    copy.parent.mkdir(parents=True, exist_ok=True)
    copy.write_bytes(file.read_bytes())
    return copy

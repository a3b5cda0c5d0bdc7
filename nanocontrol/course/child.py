"""The process in which a submission runs. It only computes: it calls functions of the submission
for inputs that it is sent, and sends back what they return. The grader judges in its own process.

    python -I child.py ROOT PRIVATE ...

ROOT: the folder that holds the package nanocontrol. PRIVATE: folders that a submission may not
open, such as the other submissions. Messages come on standard input and go to standard output. What
the submission prints goes to standard error.

An audit hook refuses what no exercise needs. A determined program gets past it: this is no sandbox.
"""

import ast
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = 2 * 2**30  # bytes that a submission may use, on Linux
FILE = 2**24  # bytes of a file that it may write, on Linux
PROCESSOR = 900  # seconds of processor time, on Linux: the last resort
# How the names of refused events begin.
PROGRAMS = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.")
OTHERS = ("os.kill", "signal.pthread_kill", "socket.connect", "socket.bind", "socket.getaddrinfo")
LINKS = ("os.link", "os.symlink")
CHANGES = ("os.remove", "os.rename", "os.rmdir", "os.mkdir", "os.chmod", "os.truncate", "shutil.")
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def limit_resources() -> None:
    """Limits on memory, files and processor time; without effect where Python has none of them."""
    if sys.platform != "linux":
        return
    import resource

    taken = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    limits = {"AS": taken + MEMORY, "FSIZE": FILE, "CPU": PROCESSOR, "CORE": 0}
    for name, most in limits.items():
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))


def guard(private: tuple[str, ...], refuse: Callable[[str], None]) -> None:
    """From now on, call refuse(what) when the process does something that no exercise needs.
    private: folders that it may not open."""
    own, state = os.path.realpath(os.getcwd()), {"refused": False}
    closed = [os.path.realpath(folder) for folder in private]

    def within(path: str, folder: str) -> bool:
        return path == folder or path.startswith(folder + os.sep)

    def why_not(event: str, args: tuple) -> str | None:
        for what, events in {
            "starts another program": PROGRAMS,
            "reaches for another process or the network": OTHERS,
            "makes links": LINKS,
        }.items():
            if event.startswith(events):
                return what
        changes = event.startswith(CHANGES)
        for given in args if changes else args[:1] if event == "open" else ():
            if not isinstance(given, str | bytes | os.PathLike):
                continue
            path = os.path.realpath(os.fsdecode(given))
            if within(path, own):
                continue
            if changes:
                return "changes files outside its own folder"
            if any(within(path, folder) for folder in closed):
                return "opens the checks, the solutions or another submission"
            if (args[2] or 0) & WRITES and path != os.devnull:
                return "writes a file outside its own folder"
        return None

    def hook(event: str, args: tuple) -> None:
        if not state["refused"] and (what := why_not(event, args)):
            state["refused"] = True
            refuse(what)

    sys.addaudithook(hook)


def closed_import(source: str, closed: list[str]) -> str | None:
    """The first module that the source imports although this exercise asks to write its content."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            package = f"{node.module}." if isinstance(node, ast.ImportFrom) else ""
            for name in [package + alias.name for alias in node.names]:
                if any(f"{name}.".startswith(f"{module}.") for module in closed):
                    return name
    return None


class Submission:
    """A student's file. Each method's result is a reply to the grader."""

    def __init__(self, inside: Any):
        self.inside = inside
        self.names: dict[str, Any] = {}
        self.file = ""

    def load(self, file: str, closed: list[str]) -> dict:
        self.file, self.names = os.path.basename(file), {"__name__": "submission"}
        try:
            source = Path(file).read_text(encoding="utf-8-sig")
            if name := closed_import(source, closed):
                return {"refused": f"imports {name}, which this exercise asks you to write"}
            exec(compile(source, file, "exec"), self.names)
        except BaseException as error:
            return self.failed("the file", error)
        return {"value": None}

    def value(self, name: str) -> dict:
        if name not in self.names:
            return {"error": f"{name} is missing in {self.file}"}
        return {"value": self.names[name]}

    def call(self, name: str, args: list, through: str | None) -> dict:
        """Call a function, or let a function of inside.py call it."""
        function = self.names.get(name)
        if not callable(function):
            return {"error": f"the function {name} is missing in {self.file}"}
        try:
            if through:
                return {"value": getattr(self.inside, through)(function, *args)}
            return {"value": function(*args)}
        except BaseException as error:
            return self.failed(name, error)

    def failed(self, name: str, error: BaseException) -> dict:
        """A sentence about an error of the submission's own."""
        if isinstance(error, NotImplementedError):
            return {"error": f"{name} is not written yet"}
        if isinstance(error, SystemExit):
            return {"error": f"{name} ends the program (exit); expected a result"}
        if isinstance(error, MemoryError) or "allocate" in str(error):
            most = f"the {MEMORY // 2**30} GB of memory that it may use"
            return {"error": f"{name} needs more than {most}"}
        line, step = getattr(error, "lineno", None), error.__traceback__
        while step:
            if os.path.basename(step.tb_frame.f_code.co_filename) == self.file:
                line = step.tb_lineno
            step = step.tb_next
        where = f", line {line} of {self.file}" if line else ""
        return {"error": f"{name} raises {type(error).__name__}{where}: {str(error)[:200]}"}


def main(root: str, *private: str) -> None:
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    sys.path.insert(0, root)
    import torch

    from nanocontrol.course import inside
    from nanocontrol.course.messages import TooLong, pack, read_message

    torch.set_num_threads(1)
    torch.manual_seed(0)
    sys.dont_write_bytecode = True

    def send(reply: dict) -> None:
        try:
            data = pack(reply)
        except TooLong as error:
            data = pack({"error": f"the result is {error}"})
        except Exception as error:
            data = pack({"error": f"the result has {error}; expected numbers or tensors"})
        replies.write(data)
        replies.flush()

    def refuse(what: str) -> None:
        send({"refused": what})
        os._exit(1)

    limit_resources()
    submission = Submission(inside)
    guard(private, refuse)
    send({"ready": True})
    while True:
        what, *args = read_message(requests)
        send(getattr(submission, what)(*args))


if __name__ == "__main__":
    main(*sys.argv[1:])

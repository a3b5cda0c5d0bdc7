"""The process in which a submission runs. It only computes: it calls functions of the submission
for inputs that it is sent, and sends back what they return. The grader judges in its own process.

    python -I -B child.py ROOT PRIVATE ...

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
from traceback import walk_tb
from typing import Any

MEMORY = 2 * 2**30  # bytes that a submission may use, on Linux
FILE = 2**24  # bytes of a file that it may write, on Linux
PROCESSOR = 900  # seconds of processor time, on Linux: the last resort
# How the names of refused events begin.
PROGRAMS = ("subprocess.", "os.system", "os.exec", "os.fork", "os.posix_spawn", "os.spawn", "pty.")
OTHERS = ("os.kill", "signal.pthread_kill", "socket.connect", "socket.bind", "socket.getaddrinfo")
REFUSED = {
    "starts another program": PROGRAMS,
    "reaches for another process or the network": OTHERS,
    "makes links": ("os.link", "os.symlink"),
}
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
    """From now on, call refuse(what), which ends the process, when it does something that no
    exercise needs. private: folders that it may not open."""
    own, *closed = (os.path.realpath(folder) for folder in (os.getcwd(), *private))

    def within(path: str, folder: str) -> bool:
        return path == folder or path.startswith(folder + os.sep)

    def hook(event: str, args: tuple) -> None:
        for what, events in REFUSED.items():
            if event.startswith(events):
                refuse(what)
        changes = event.startswith(CHANGES)
        for given in args if changes else args[:1] if event == "open" else ():
            if not isinstance(given, str | bytes | os.PathLike):
                continue
            path = os.path.realpath(os.fsdecode(given))
            if within(path, own):
                continue
            if changes:
                refuse("changes files outside its own folder")
            if any(within(path, folder) for folder in closed):
                refuse("opens the checks, the solutions or another submission")
            if (args[2] or 0) & WRITES and path != os.devnull:
                refuse("writes a file outside its own folder")

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


class Missing(Exception):
    """The file lacks a value or a function. The message names it."""


class Submission:
    """A student's file. The grader asks for its three methods."""

    def __init__(self, inside: Any, refuse: Callable[[str], None]):
        self.inside, self.refuse = inside, refuse

    def load(self, file: str, closed: list[str]) -> None:
        self.file, self.running = os.path.basename(file), "the file"
        self.names: dict[str, Any] = {"__name__": "submission"}
        source = Path(file).read_text(encoding="utf-8-sig")
        if name := closed_import(source, closed):
            self.refuse(f"imports {name}, which this exercise asks you to write")
        exec(compile(source, file, "exec"), self.names)

    def value(self, name: str) -> Any:
        if name not in self.names:
            raise Missing(name)
        return self.names[name]

    def call(self, name: str, args: list, through: str | None) -> Any:
        """Call a function, or let a function of inside.py call it."""
        function, self.running = self.names.get(name), name
        if not callable(function):
            raise Missing(f"the function {name}")
        return getattr(self.inside, through)(function, *args) if through else function(*args)

    def explained(self, error: BaseException) -> str:
        """A sentence about an error of the submission's own."""
        if isinstance(error, Missing):
            return f"{error} is missing in {self.file}"
        if isinstance(error, NotImplementedError):
            return f"{self.running} is not written yet"
        if isinstance(error, SystemExit):
            return f"{self.running} ends the program (exit); expected a result"
        if isinstance(error, MemoryError) or "allocate" in str(error):
            return f"{self.running} needs more than the {MEMORY // 2**30} GB of memory it may use"
        lines = [getattr(error, "lineno", None)]
        for frame, line in walk_tb(error.__traceback__):
            lines += [line] if os.path.basename(frame.f_code.co_filename) == self.file else []
        where = f", line {lines[-1]} of {self.file}" if lines[-1] else ""
        return f"{self.running} raises {type(error).__name__}{where}: {str(error)[:200]}"


def main(root: str, *private: str) -> None:
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    sys.stdout.reconfigure(line_buffering=True, errors="replace")
    sys.path.insert(0, root)
    import torch

    from nanocontrol.course import inside
    from nanocontrol.course.messages import pack, read_message

    torch.manual_seed(0)

    def send(kind: str, content: Any) -> None:
        try:
            data = pack({kind: content})
        except Exception as error:
            data = pack({"error": f"the result has {error}; expected numbers or tensors"})
        replies.write(data)
        replies.flush()

    def refuse(what: str) -> None:
        send("refused", what)
        os._exit(1)

    limit_resources()
    submission = Submission(inside, refuse)
    guard(private, refuse)
    send("ready", None)
    while True:
        what, *args = read_message(requests)
        try:
            send("value", getattr(submission, what)(*args))
        except BaseException as error:
            send("error", submission.explained(error))


if __name__ == "__main__":
    main(*sys.argv[1:])

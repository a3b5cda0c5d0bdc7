"""Latency of the page: from a request to the first preview, and to the pair of pictures.

    pip install -e ".[page]"
    python tests/bench/page.py [--rounds 10]

It starts the page on a free port and asks for a drawn pyramid, 20 steps, with and without control.
Then it does so with two users at once, and measures how long an older request of a client runs
after a newer one. Printed are medians and ranges; on Linux also the server's CPU time for a pair,
which other work on the machine changes less.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path

from nanocontrol.plumbing.flags import Parser, at_least

STATIC = Path(__file__).parents[2] / "nanocontrol" / "page" / "static"


def events(port: int, request: dict) -> Iterator[tuple[float, dict]]:
    """The events of a request, each with the seconds since it was sent."""
    connection = HTTPConnection("127.0.0.1", port, timeout=300)
    began = time.perf_counter()
    body, headers = json.dumps(request), {"Content-Type": "application/json"}
    connection.request("POST", "/api/generate", body, headers)
    for row in connection.getresponse():
        yield time.perf_counter() - began, json.loads(row)
    connection.close()


def once(port: int, request: dict) -> tuple[float, float]:
    """Seconds to the first preview and to the last picture."""
    times: dict[str, list[float]] = {"step": [], "picture": []}
    for seconds, event in events(port, request):
        times.setdefault(event["event"], []).append(seconds)
    return times["step"][0], times["picture"][-1]


def cancelling(port: int, request: dict) -> float:
    """Milliseconds that an older request still runs after a newer one is sent."""
    older = events(port, request)
    for _ in range(6):
        next(older)
    sent = time.perf_counter()
    newer = threading.Thread(target=once, args=(port, request | {"steps": 1}))
    newer.start()
    for _, event in older:
        if event["event"] == "cancelled":
            break
    milliseconds = 1000 * (time.perf_counter() - sent)
    newer.join()
    return milliseconds


def tell(name: str, values: list[float], unit: str) -> None:
    middle, low, high = statistics.median(values), min(values), max(values)
    print(f"{name}: {middle:.2f} {unit} ({low:.2f} to {high:.2f}, n = {len(values)})")


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far; 0 where there is no /proc."""
    file = Path(f"/proc/{pid}/stat")
    fields = file.read_text().rpartition(")")[2].split() if file.exists() else ["0"] * 13
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def measure(port: int, rounds: int, pid: int) -> None:
    request = json.loads((STATIC / "first.json").read_text())["request"]
    request |= {"client": "bench", "attention": False}
    once(port, request)  # the first one is slower
    for name, more in ("pair", {}), ("pair with attention", {"attention": True}):
        before = cpu_seconds(pid)
        first, pair = zip(*(once(port, request | more) for _ in range(rounds)))
        print(f"{name}: {(cpu_seconds(pid) - before) / rounds:.2f} s of CPU time")
        tell(f"{name}: first preview", [*first], "s")
        tell(f"{name}: both pictures", [*pair], "s")
    found: list[tuple[float, float]] = []

    def user(name: str) -> None:
        found.append(once(port, request | {"client": name}))

    for _ in range(rounds):
        users = [threading.Thread(target=user, args=(name,)) for name in ("one", "other")]
        for thread in users:
            thread.start()
        for thread in users:
            thread.join()
    tell("two users: first preview", [first for first, _ in found], "s")
    tell("two users: both pictures", [pair for _, pair in found], "s")
    tell("an older request ends after", [cancelling(port, request) for _ in range(rounds)], "ms")


def main() -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--rounds", type=at_least(1), default=10)
    args = parser.parse_args()
    command = [sys.executable, "-m", "nanocontrol.page", "--port", "0", "--device", "cpu"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            port = int(re.search(r":(\d+) ", server.stdout.readline())[1])
            connection = HTTPConnection("127.0.0.1", port)
            while True:
                connection.request("GET", "/api/info")
                if json.loads(connection.getresponse().read())["ready"]:
                    break
                time.sleep(0.2)
            time.sleep(5)  # while it measures the hints of the training
            measure(port, args.rounds, server.pid)
        finally:
            server.terminate()


if __name__ == "__main__":
    main()

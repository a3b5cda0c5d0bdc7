"""Run the checks, and count them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from nanocontrol.conformance import may, must, should
from nanocontrol.conformance.bench import Bench, Found
from nanocontrol.plumbing.errors import one_line


class Check(NamedTuple):
    """A check: measured <= allowed passes. The message says which idea was missed."""

    name: str
    level: str  # must, should or may
    function: Callable[[Bench], Found]


# The functions of those modules that are called with a bench, and with nothing else, and return
# Found.
CHECKS = [
    Check(name, module.__name__.rpartition(".")[2], function)
    for module in (must, should, may)
    for name, function in vars(module).items()
    if getattr(function, "__annotations__", None) == {"bench": Bench, "return": Found}
]


@dataclass(frozen=True)
class Result:
    """How a check went. passed is None if it did not run; then message is the reason."""

    name: str
    level: str  # must, should or may
    passed: bool | None
    measured: float | None
    allowed: float | None
    message: str  # the idea that is missed, or "" if it passed
    expected: str = ""  # why it is expected to fail

    @property
    def status(self) -> str:
        if self.passed is None:
            return "did not run"
        if self.expected:
            return "PASSED UNEXPECTEDLY" if self.passed else "failed as expected"
        return "passed" if self.passed else "FAILED"

    @property
    def wrong(self) -> bool:
        """Whether it makes the suite fail: a must that fails, or an expected failure that
        passes."""
        must_failed = self.level == "must" and self.status == "FAILED"
        return must_failed or self.status == "PASSED UNEXPECTEDLY"


def check_controlnet(
    adapter: Any, expected_failures: Mapping[str, str] = {}, only: Sequence[str] = ()
) -> list[Result]:
    """Run all checks, or only those named, on an adapter.

    expected_failures: names of checks and why they are expected to fail.
    Raises ValueError for the name of a check that does not exist.
    """
    names = [check.name for check in CHECKS]
    for name in [*expected_failures, *only]:
        if name not in names:
            raise ValueError(f"there is no check {name!r}; expected one of {', '.join(names)}")
    bench = Bench(adapter)
    chosen = [check for check in CHECKS if not only or check.name in only]
    return [run_check(check, bench, expected_failures.get(check.name, "")) for check in chosen]


REQUIRED = "make", "load", "base", "residuals", "predict", "parameters"


def run_check(check: Check, bench: Bench, expected: str) -> Result:
    """A check's result. A check that raises an error fails; it does not run without an optional
    function that it needs."""
    passed, measured, allowed = None, None, None
    try:
        measured, allowed, message = check.function(bench)
        passed = bool(measured <= allowed)  # a NaN fails
        message = "" if passed else message
    except Exception as error:  # the implementation's, of any type
        missing = missing_function(error, bench.adapter)
        passed = False if missing in (None, *REQUIRED) else None
        message = f"the adapter has no {missing}"
        if missing is None:
            message = one_line(f"it raised {type(error).__name__}: {error}")
    return Result(check.name, check.level, passed, measured, allowed, message, expected)


def missing_function(error: Exception, adapter: Any) -> str | None:
    """The function that the adapter lacks, or what it says that it has not implemented."""
    if isinstance(error, NotImplementedError):
        return str(error) or "such function"
    if isinstance(error, AttributeError) and error.obj is adapter:
        return error.name
    return None


def counts(results: Sequence[Result]) -> str:
    """How many checks ran and how many did not, in a sentence that is always printed."""
    number = {status: sum(r.status == status for r in results) for status in STATUSES}
    ran = len(results) - number["did not run"]
    said = ", ".join(f"{n} {status}" for status, n in number.items() if n)
    return f"{len(results)} checks: {ran} ran, {number['did not run']} did not. {said}."


STATUSES = "passed", "failed as expected", "FAILED", "PASSED UNEXPECTEDLY", "did not run"

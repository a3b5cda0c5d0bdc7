"""Run the checks, and count them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from nanocontrol.conformance import may, must, should
from nanocontrol.conformance.bench import Bench, Found
from nanocontrol.plumbing.errors import one_line

# The level and function of each check, by its name: the functions of these modules that are called
# with a bench, and with nothing else, and return Found.
CHECKS: dict[str, tuple[str, Callable[[Bench], Found]]] = {
    name: (module.__name__.rpartition(".")[2], function)
    for module in (must, should, may)
    for name, function in vars(module).items()
    if getattr(function, "__annotations__", None) == {"bench": Bench, "return": Found}
}


class Result(NamedTuple):
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
        must_failed = (self.level, self.status) == ("must", "FAILED")
        return must_failed or self.status == "PASSED UNEXPECTEDLY"


def check_controlnet(
    adapter: Any, expected_failures: Mapping[str, str] = {}, only: Sequence[str] = ()
) -> list[Result]:
    """Run all checks, or only those named, on an adapter.

    expected_failures: names of checks and why they are expected to fail.
    Raises ValueError for the name of a check that does not exist.
    """
    for name in [*expected_failures, *only]:
        if name not in CHECKS:
            raise ValueError(f"there is no check {name!r}; expected one of {', '.join(CHECKS)}")
    bench = Bench(adapter)
    return [
        Result(name, level, *run_check(check, bench), expected_failures.get(name, ""))
        for name, (level, check) in CHECKS.items()
        if not only or name in only
    ]


# passed, measured, allowed and message of a Result
Outcome = tuple[bool | None, float | None, float | None, str]
REQUIRED = "make", "load", "base", "residuals", "predict", "parameters"


def run_check(check: Callable[[Bench], Found], bench: Bench) -> Outcome:
    """A check's outcome: measured <= allowed passes. A check that raises an error fails; it does
    not run without an optional function that it needs."""
    try:
        measured, allowed, message = check(bench)
    except Exception as error:  # the implementation's, of any type
        missing = missing_function(error, bench.adapter)
        if missing is None:
            return False, None, None, one_line(f"it raised {type(error).__name__}: {error}")
        passed = False if missing in REQUIRED else None
        return passed, None, None, f"the adapter has no {missing}"
    passed = bool(measured <= allowed)  # a NaN fails
    return passed, measured, allowed, "" if passed else message


def missing_function(error: Exception, adapter: Any) -> str | None:
    """The function that the adapter lacks, or what it says that it has not implemented."""
    if isinstance(error, AttributeError) and error.obj is adapter:
        return error.name
    return (str(error) or "such function") if isinstance(error, NotImplementedError) else None


def counts(results: Sequence[Result]) -> str:
    """How many checks ran and how many did not, in a sentence that is always printed."""
    number = {status: sum(r.status == status for r in results) for status in STATUSES}
    ran = len(results) - number["did not run"]
    said = ", ".join(f"{n} {status}" for status, n in number.items() if n)
    return f"{len(results)} checks: {ran} ran, {number['did not run']} did not. {said}."


STATUSES = "passed", "failed as expected", "FAILED", "PASSED UNEXPECTEDLY", "did not run"

"""Check an implementation of ControlNet:

    python -m nanocontrol.conformance ours
    python -m nanocontrol.conformance diffusers
    python -m nanocontrol.conformance mutants:shared_encoder
    python -m nanocontrol.conformance my_adapter.py:MyAdapter --json results.json

prints a table, and how many checks ran and how many did not. The exit status is 1 if a must fails
unexpectedly or an expected failure passes, and 2 if there is no such adapter.
"""

import json
import runpy
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from nanocontrol.conformance.cases import VERSION
from nanocontrol.conformance.suite import Result, check_controlnet, counts
from nanocontrol.plumbing.errors import InputError, blame, one_sentence, say
from nanocontrol.plumbing.files import write_atomically
from nanocontrol.plumbing.flags import Parser

FORM = "ours, diffusers, mutants:NAME, FILE.py:CLASS or MODULE:CLASS"
PLACES = {
    "ours": "nanocontrol.conformance.ours:Ours",
    "diffusers": "nanocontrol.conformance.of_diffusers:OfDiffusers",
    "mutants": "nanocontrol.conformance.mutants",
}


def adapter_named(name: str) -> Any:
    """The adapter that the command line names. Raises InputError if there is none."""
    place, _, last = PLACES.get(name, name).rpartition(":")
    if not place:
        raise InputError(f"{name}: expected {FORM}")
    found = names_in(PLACES.get(place, place))
    if place == "mutants":
        found = {mutant: entry.adapter for mutant, entry in found["MUTANTS"].items()}
    if last not in found:
        one_of = f"; expected one of {', '.join(found)}" if place == "mutants" else ""
        raise InputError(f"there is no {last} in {place}{one_of}")
    return found[last]()


def names_in(module: str) -> dict[str, Any]:
    """The names that a module defines, which is given by its name or by its file."""
    try:
        return runpy.run_path(module) if module.endswith(".py") else vars(import_module(module))
    except FileNotFoundError:
        raise InputError(f"{module}: there is no such file") from None
    except ModuleNotFoundError as error:
        extra = '; pip install -e ".[bench]"' if error.name in ("diffusers", "transformers") else ""
        message = f"{module} cannot be imported: there is no module {error.name}{extra}"
        raise InputError(message) from None


def table(results: Sequence[Result]) -> list[str]:
    """A line for each check, and one below it for what went wrong."""
    lines = [f"{'level':<8}{'check':<36}{'result':<21}{'measured':>10}  {'allowed':>8}"]
    for r in results:
        numbers = "" if r.measured is None else f"{r.measured:>10.2g}{r.allowed:>10.2g}"
        lines.append(f"{r.level:<8}{r.name:<36}{r.status:<21}{numbers}".rstrip())
        for text in (r.message, r.expected and f"expected: {r.expected}"):
            if text:
                lines.append(f"{'':<8}{text}")
    return lines


def as_json(results: Sequence[Result]) -> dict:
    """The results as JSON."""
    each = [result._asdict() | {"status": result.status} for result in results]
    return {"version": VERSION, "summary": counts(results), "checks": each}


def main(argv: list[str] | None = None) -> None:
    parser = Parser("conformance", description=__doc__, formatter_class=RawDescriptionHelpFormatter)
    parser.add_argument("adapter", metavar="ADAPTER", help=FORM)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the results here")
    args = parser.parse_args(argv)
    with one_sentence("conformance"):
        with blame("ADAPTER"):
            adapter = adapter_named(args.adapter)
        results = check_controlnet(adapter, getattr(adapter, "expected_failures", {}))
        for line in table(results):
            say(line)
        if args.json:
            text = json.dumps(as_json(results), indent=2) + "\n"
            write_atomically(args.json, lambda temporary: temporary.write_text(text))
        say(counts(results))
    sys.exit(any(result.wrong for result in results))


if __name__ == "__main__":
    main()

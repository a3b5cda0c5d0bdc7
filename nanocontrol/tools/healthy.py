"""Make the bands of healthy runs, with which other runs are compared.

    python -m nanocontrol.tools.healthy runs/canny-1 runs/canny-2 ...

writes nano/healthy.json: the lowest and the highest value of each number at every evaluation.
`train.py` draws it behind the curves of a run with the same settings.
"""

import argparse
from pathlib import Path
from typing import Any

from nanocontrol.nano.healthy import HEALTHY, same_but_seed
from nanocontrol.plumbing.errors import InputError, one_sentence
from nanocontrol.plumbing.files import hash_of
from nanocontrol.plumbing.flags import Parser
from nanocontrol.training.run import Run, read_run, write_json
from nanocontrol.training.settings import what_is_learnt
from train import Settings

NUMBERS = "held_out_loss", "control_gain", "score", "follows", "iou"


def ranges_of(runs: list[Run]) -> dict[str, Any]:
    """The settings of the runs, and by number the steps, and there the lowest and the highest.

    Raises InputError if settings or steps differ.
    """
    first, found = runs[0], {}
    for run in runs:
        if not same_but_seed(run.settings, first.settings, Settings):
            raise InputError(f"{run.folder}: its settings are not those of {first.folder}")
    for name in NUMBERS:
        values = [dict(run.measured(name)) for run in runs]
        if others := [run for run, own in zip(runs, values) if own.keys() != values[0].keys()]:
            raise InputError(f"{others[0].folder}: its steps are not those of {first.folder}")
        columns = {step: [own[step] for own in values] for step in values[0]}
        if columns:
            found[name] = {
                "runs": len(runs),
                "steps": [*columns],
                "lowest": [round(min(column), 5) for column in columns.values()],
                "highest": [round(max(column), 5) for column in columns.values()],
            }
    if not found:
        raise InputError(f"{first.folder} was never measured; expected a ControlNet's run")
    learnt, base = what_is_learnt(first.settings, Settings), hash_of(first.settings["base"])
    return {"settings": learnt, "base": base, "numbers": found}


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("healthy", description=__doc__, formatter_class=formatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    args = parser.parse_args(argv)
    with one_sentence("healthy"):
        write_json(HEALTHY, ranges_of([read_run(run) for run in args.runs]))
    print(HEALTHY)


if __name__ == "__main__":
    main()

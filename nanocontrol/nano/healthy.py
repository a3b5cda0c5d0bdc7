"""What healthy runs have in common, for others to be compared with.

    python -m nanocontrol.nano.healthy runs/canny-1 runs/canny-2 ...

writes healthy.json, beside this file: at every step that was measured, the lowest and the highest
of each number. `train.py` draws it behind the curves of a run with the same settings.
"""

import argparse
import json
from pathlib import Path

from nanocontrol.plumbing.errors import InputError, one_sentence
from nanocontrol.training.run import write_json

HEALTHY = Path(__file__).with_name("healthy.json")
OWN = "out", "seed", "device", "dtype", "compile", "low_memory", "cache", "save_every"
NUMBERS = "held_out_loss", "control_gain", "score", "follows", "iou"


def bands_for(settings: dict) -> dict[str, dict]:
    """By number, what healthy runs with the same settings had; nothing if there are none."""
    if not HEALTHY.exists():
        return {}
    healthy = json.loads(HEALTHY.read_text())
    return healthy["numbers"] if comparable(settings) == healthy["settings"] else {}


def comparable(settings: dict) -> dict:
    """Without what hardly changes a run; of the base only its name."""
    kept = {name: value for name, value in settings.items() if name not in OWN}
    return kept | {"base": Path(settings["base"] or "").name}  # (parts of nano have none)


def measured(runs: list[Path]) -> dict:
    """The settings of the runs, and by number the steps, and there the lowest and the highest.

    Raises InputError if settings or steps differ.
    """
    all_settings = [comparable(read(run, "settings.json")[0]) for run in runs]
    logs, found = [read(run, "log.jsonl") for run in runs], {}
    for run, settings in zip(runs, all_settings):
        if settings != all_settings[0]:
            raise InputError(f"{run} and {runs[0]} have other settings; expected other seeds only")
    for name in NUMBERS:
        values = [{e["step"]: e[name] for e in log if e.get(name) is not None} for log in logs]
        for run, own in zip(runs, values):
            if own.keys() != values[0].keys():
                raise InputError(f"{run} and {runs[0]} were not measured at the same steps")
        if not values[0]:
            continue
        columns = {step: [own[step] for own in values] for step in values[0]}
        found[name] = {
            "runs": len(runs),
            "steps": [*columns],
            "lowest": [round(min(column), 5) for column in columns.values()],
            "highest": [round(max(column), 5) for column in columns.values()],
        }
    if not found:
        raise InputError(f"{runs[0]} was never measured; expected a ControlNet's run")
    return {"settings": all_settings[0], "numbers": found}


def read(run: Path, name: str) -> list[dict]:
    """The JSON objects of a file, one or one a line."""
    try:
        text = (run / name).read_text()
        return [json.loads(part) for part in (text.splitlines() if name[-1] == "l" else [text])]
    except (OSError, ValueError):
        raise InputError(f"{run}: no {name} that can be read; expected a run's folder") from None


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("healthy", description=__doc__, formatter_class=formatter)
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN")
    args = parser.parse_args(argv)
    with one_sentence("healthy"):
        write_json(HEALTHY, measured(args.runs))
    print(HEALTHY)


if __name__ == "__main__":
    main()

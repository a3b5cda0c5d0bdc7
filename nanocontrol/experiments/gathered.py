"""What is known of an experiment: runs that are here, and those of other machines in its file."""

import json
from dataclasses import asdict
from pathlib import Path

from nanocontrol.experiments.experiment import Experiment
from nanocontrol.experiments.results import rounded, run_as_json
from nanocontrol.experiments.runs import Run, runs_of
from nanocontrol.experiments.sampled import measurements_of

SEEDS = range(10)  # that are looked for


def content_of(experiment: Experiment, once: dict, root: Path, file: Path) -> dict:
    """All runs that are done, be they more than were asked for now. file: the results as they were.
    Its runs stay, but those whose seed has been run here, and those of an arm that has other
    settings or is no more.
    """
    before = json.loads(file.read_text()) if file.exists() else {"arms": {}, "sampled": {}}
    return {
        "expected": experiment.expected.strip(),
        "once": once,
        "arms": arms_of(experiment, root, before["arms"]),
        "sampled": sampled_of(experiment, root, before["sampled"]),
    }


def arms_of(experiment: Experiment, root: Path, before: dict) -> dict:
    found: dict[str, dict] = {}
    for run in runs_of(experiment, experiment.arms, SEEDS, root):
        arm = found.setdefault(run.arm.name, {"settings": settings_of_arm(run), "runs": []})
        if run.is_done:
            file = run.file_afterwards if run.afterwards else None
            arm["runs"].append(run_as_json(run.folder, file))
    for name, arm in found.items():
        if name in before and before[name]["settings"] == rounded(arm["settings"]):
            arm["runs"] = by_seed(before[name]["runs"], arm["runs"])
    return found


def sampled_of(experiment: Experiment, root: Path, before: dict) -> dict:
    names = tuple(row.name for row in experiment.sampled)
    found: dict[str, dict] = {name: {"runs": []} for name in names}
    for one in measurements_of(experiment, names, SEEDS, 0, root):
        if one.file.exists():
            found[one.row]["runs"].append(json.loads(one.file.read_text()))
    for name in names:
        if name in before:
            found[name]["runs"] = by_seed(before[name]["runs"], found[name]["runs"])
    return found


def by_seed(before: list[dict], now: list[dict]) -> list[dict]:
    every = {run["seed"]: run for run in (*before, *now)}
    return [every[seed] for seed in sorted(every)]


def settings_of_arm(run: Run) -> dict:
    """Without what differs from seed to seed and from machine to machine."""
    settings = asdict(run.settings)
    for name in ("out", "seed", "cache", "device"):
        del settings[name]
    before = run.arm.goes_on_from
    names = {"base": Path(run.settings.base).name, "init_control": before and before.name}
    return settings | names

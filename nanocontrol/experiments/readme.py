"""What an experiment's JSON file says, in README.md in this folder: its rows of the table of
claims, and a part of its own. Both stand between marks, and are written anew each time."""

import re
from pathlib import Path

from nanocontrol.experiments.experiment import Claim, Experiment, experiment_of
from nanocontrol.experiments.numbers import spoken
from nanocontrol.experiments.results import Results
from nanocontrol.plumbing.files import write_atomically

README = Path(__file__).with_name("README.md")
NOT_RUN = "not run yet"
HEAD = ["claim", "evidence for it", "ours", "verdict", "minutes"]
COLUMNS = {"area": 2, "jump": 0, "follows": 2, "score": 2, "control_gain": 4, "held_out_loss": 4}
TITLES = ["area of `follows`", "step of the jump", "`follows` at the end", "score at the end"]
TITLES += ["control gain", "held-out loss"]


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def claims_table(found: dict[str, Results | None]) -> str:
    """Of all experiments; those that were not run, or not to their end, say so."""
    rows = []
    for name, results in found.items():
        experiment = experiment_of(name)
        rows += [claim_row(claim, experiment, results) for claim in experiment.claims]
    return table(HEAD, rows)


def claim_row(claim: Claim, experiment: Experiment, results: Results | None) -> list[str]:
    said = [claim.claim, claim.evidence]
    if results is None or not results.has([arm.name for arm in experiment.arms]):
        return [*said, "", NOT_RUN, ""]
    return [*said, *claim.judge(results), f"{results.minutes:.0f}"]


def part_of(experiment: Experiment, results: Results | None) -> str:
    """What was expected, then a row for each arm."""
    text = f"Expected: {experiment.expected.strip()}"
    if results is None:
        return text
    if not experiment.arms:
        return text + once_table(results)
    rows = []
    for arm, content in results.arms.items():
        runs = content["runs"]
        if runs:
            cells = [spoken(results.values(arm, name), n) for name, n in COLUMNS.items()]
            minutes = spoken([run["seconds"] / 60 for run in runs], 1)
            rows.append([arm, str(len(runs)), *cells, minutes])
    head = ["arm", "seeds", *TITLES, "minutes"]
    picture = f"![The curves of {experiment.name}](../../assets/experiments/{experiment.name}.png)"
    machines = {str(run["machine"]) for a in results.arms.values() for run in a["runs"]}
    facts = "; ".join(sorted(machine.strip("{}").replace("'", "") for machine in machines))
    return f"{text}\n\n{picture}\n\n{table(head, rows)}\n\n(One thread each; {facts}.)"


def once_table(results: Results) -> str:
    """Of numbers that took no training: a row for each, by its name."""
    rows = [[name, *(f"{x:.2g}" for x in xs)] for name, xs in results.content["once"].items()]
    width = max(len(row) for row in rows) - 1
    rows = [row + [""] * (1 + width - len(row)) for row in rows]
    return "\n\n" + table(["", *(f"layer {i + 1}" for i in range(width))], rows)


def with_part(text: str, mark: str, part: str) -> str:
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"README.md has no marks {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n{part}\n{end}", text)


def written(text: str, found: dict[str, Results | None]) -> str:
    """The README's text with all parts as these results have them."""
    text = with_part(text, "claims", claims_table(found))
    for name, results in found.items():
        text = with_part(text, name, part_of(experiment_of(name), results))
    return text


def write_readme(found: dict[str, Results | None]) -> None:
    text = written(README.read_text(encoding="utf-8"), found)
    write_atomically(README, lambda temporary: temporary.write_text(text, encoding="utf-8"))

"""What an experiment's JSON file says, in README.md in this folder: its rows of the table of
claims, and a part of its own. Both stand between marks, and are written anew each time, or by

    python -m nanocontrol.experiments.readme
"""

import re
from pathlib import Path

from nanocontrol.experiments.experiment import NAMES, Claim, Experiment, experiment_of
from nanocontrol.experiments.numbers import spoken
from nanocontrol.experiments.results import Results, results_of
from nanocontrol.plumbing.files import write_atomically

README = Path(__file__).with_name("README.md")
FRONT = Path(__file__).parents[2] / "README.md"
# What a newcomer would most like to know.
FRONT_ROWS = {
    "sudden_convergence": "with the paper's start pictures follow only after a long wait",
    "unlocked": "a base that is not locked forgets",
    "data_size": "with 1,000 pictures it does not collapse",
    "prompt_dropout": "half of the prompts emptied makes it find meanings in the hint",
    "limits": "a hint is still followed if the prompt names other kinds (asked after the runs)",
}
NOT_RUN = "not run yet"
SEEDS = 3  # of each arm, that a verdict should have
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


def front_table(found: dict[str, Results | None]) -> str:
    """Five rows, without the evidence and the minutes."""
    rows = []
    for name, text in FRONT_ROWS.items():
        experiment = experiment_of(name)
        claim = next(claim for claim in experiment.claims if claim.claim == text)
        _, _, ours, verdict, _ = claim_row(claim, experiment, found[name])
        rows.append([text, ours, verdict])
    return table(["claim", "on nano", "verdict"], rows)


def claim_row(claim: Claim, experiment: Experiment, results: Results | None) -> list[str]:
    said = [claim.claim, claim.evidence]
    names = list(claim.compares) or experiment.names
    if results is None or not results.has(names):
        return [*said, "", NOT_RUN, ""]
    ours, verdict = claim.judged(results)
    seeds = min((len(results.runs(name)) for name in names), default=SEEDS)
    if seeds == 1:
        verdict = f"one seed says: {verdict}"  # (one of each are always apart)
    elif seeds < SEEDS:
        verdict += f" (some arms: {seeds} seeds only)"
    return [*said, ours, verdict, f"{results.minutes:.0f}"]


def part_of(experiment: Experiment, results: Results | None) -> str:
    """What was expected, then the curves, a row for each arm, and what took no training."""
    parts = [f"Expected before the first run:\n{experiment.expected.strip()}"]
    if results and results.both:
        file = f"../../assets/experiments/{experiment.name}.png"
        parts.append(f"![The curves of {experiment.name}]({file})")
        parts += [arms_table(results, experiment)] if results.arms else []
        parts += [sampled_table(results, experiment)] if results.sampled else []
        parts.append(f"(One thread each; {'; '.join(machines_of(results))}.)")
    if results and results.content["once"]:
        once = results.content["once"]
        rows = [[name, *(f"{x:.2g}" for x in values)] for name, values in once["rows"].items()]
        parts.append(table(once["head"], rows))
        parts += [once["note"]] if "note" in once else []
    return "\n\n".join(parts)


def arms_table(results: Results, experiment: Experiment) -> str:
    rows = []
    for arm in results.arms:
        if runs := results.runs(arm):
            cells = [spoken(results.values(arm, name), n) for name, n in COLUMNS.items()]
            cells += own_numbers(results, experiment, arm)
            minutes = spoken([run["seconds"] / 60 for run in runs], 1)
            steps = results.arms[arm]["settings"]["steps"]
            rows.append([experiment.title(arm), str(len(runs)), str(steps), *cells, minutes])
    return table(["arm", "seeds", "steps", *TITLES, *experiment.numbers.values(), "minutes"], rows)


def own_numbers(results: Results, experiment: Experiment, name: str) -> list[str]:
    """Of an arm or a row."""
    digits = {number: 4 if number.endswith("loss") else 2 for number in experiment.numbers}
    return [
        spoken(results.values(name, number), n) if results.knows(name, number) else ""
        for number, n in digits.items()
    ]


def sampled_table(results: Results, experiment: Experiment) -> str:
    rows = [
        [name, str(len(results.runs(name))), *own_numbers(results, experiment, name)]
        for name in results.sampled
        if results.runs(name)
    ]
    return table(["", "seeds of noise", *experiment.numbers.values()], rows)


def machines_of(results: Results) -> list[str]:
    machines = [run["machine"] for name in results.both for run in results.runs(name)]
    return sorted({", ".join(f"{name} {x}" for name, x in own.items()) for own in machines})


def with_part(text: str, mark: str, part: str, gap: str = "\n\n") -> str:
    begin, end = f"<!-- {mark} -->", f"<!-- end of {mark} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the text has no marks {begin} and {end}")
    return pattern.sub(lambda _: begin + gap + part + gap + end, text)


def written(text: str, found: dict[str, Results | None]) -> str:
    """The README's text with all parts as these results have them."""
    text = with_part(text, "claims", claims_table(found))
    for name, results in found.items():
        text = with_part(text, name, part_of(experiment_of(name), results))
    return text


def front_written(text: str, found: dict[str, Results | None]) -> str:
    return with_part(text, "claims", front_table(found), gap="\n")


def write_readme() -> None:
    found = {name: results_of(name) for name in NAMES}
    write_text(README, written(README.read_text(encoding="utf-8"), found))
    write_text(FRONT, front_written(FRONT.read_text(encoding="utf-8"), found))


def write_text(file: Path, text: str) -> None:
    write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


if __name__ == "__main__":
    write_readme()

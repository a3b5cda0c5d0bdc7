"""The report: RESULTS.md, the front page's table, and a plot for each experiment, all of them from
the JSON files. They are written after every run, or without training by

    python -m nanocontrol.experiments report

Plots take matplotlib: pip install -e ".[experiments]".
"""

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from nanocontrol.experiments.frame import NAMES, Chart, Claim, Experiment, Panel, experiment_of
from nanocontrol.experiments.results import ASSETS, Curve, Results, results_of, spoken
from nanocontrol.plumbing.files import write_atomically

RESULTS = Path(__file__).with_name("RESULTS.md")
FRONT = Path(__file__).parents[2] / "README.md"
# What the paper and users ask most, whatever the verdict: the claims on the front page, each with a
# number and two of the variants or rows that it compares.
FRONT_ROWS = Path(__file__).with_name("front.json")
SEEDS = 3  # of each variant, that a verdict should have
TITLES = {  # of numbers
    "area": "area of `follows`",
    "jump": "step of the jump",
    "follows": "`follows`: right objects",
    "score": "score of the condition",
    "control_gain": "control gain",
    "held_out_loss": "held-out loss",
    "loss": "loss in training",
    "spread_last": "signal of the encoder",
}
COLUMNS = ("area", "jump", "follows", "score", "control_gain", "held_out_loss")
INTRODUCTION = """# Results of the experiments

Generated from the JSON files in [assets/experiments](../../assets/experiments);
[README.md](README.md) says how to run the experiments and what the numbers mean. Numbers are means
over seeds, then the lowest and the highest. A claim that nobody made (evidence: none) is seen or
not seen here; the others are reproduced or not."""

BASES = """Verdicts are on the {}, then on both; "reproduced" alone means on both. Numbers and
plots are of the newest base with three seeds. "Found" is what was found on the first.

Runs on the {}, of three for each variant: {}."""
COUNTS, ORDINALS = ("one", "two", "three", "four"), ("first", "second", "third", "fourth")

ByBase = Mapping[str, Results]  # without the bases on which an experiment was not run
Found = Mapping[str, ByBase]  # of each experiment

# ----------------------------------------------------------------------------------- verdicts


class Judged(NamedTuple):
    """A claim on one base."""

    ours: str  # our numbers
    verdict: str
    seeds: int  # of the variant or row that has fewest; 0 if not all of them have run


def judged(claim: Claim, experiment: Experiment, results: Results | None) -> Judged:
    names = experiment.names if claim.compares is None else claim.compares
    if results is None or not results.has(*names):
        return Judged("", "not run yet", 0)
    return Judged(*claim.judged(results), results.seeds(names) if names else SEEDS)


def judged_on(bases: Sequence[str], claim: Claim, experiment: Experiment, own: ByBase) -> list:
    """On each base."""
    each = [judged(claim, experiment, own.get(base)) for base in bases]
    settled = Judged("", "settled on the first base", 0)
    return [settled if i and experiment.settled and not x.seeds else x for i, x in enumerate(each)]


def joint(each: Sequence[Judged]) -> str:
    """The verdict on all of these bases. If they differ: the one most in the claim's favour, and on
    how many bases it was found."""
    ran = [one for one in each if one.seeds]
    if not ran:
        return each[0].verdict
    verdicts = [one.verdict for one in ran]
    n = verdicts.count(verdict := max(verdicts, key=favour))
    if n < len(each):
        verdict += f" on {COUNTS[n - 1]} base{'s' * (n > 1)} of {COUNTS[len(each) - 1]}"
        verdict += " (the other base was not run)" * (n == len(ran))
    seeds = sorted(one.seeds for one in ran)
    where = "one of the bases: " if seeds[-1] >= SEEDS else ""
    few = f" ({where}{seeds[0]} seed{'s' * (seeds[0] > 1)})"
    return verdict + few * (seeds[0] < SEEDS)


def best(own: ByBase, names: Iterable[str]) -> Results:
    """On the newest base with three seeds of these variants or rows, else on that with most."""
    return max([*own.values()][::-1], key=lambda x: min(SEEDS, x.seeds(names)))


def favour(verdict: str) -> list[bool]:
    """It is larger for a verdict that is more in the claim's favour, or that says more."""
    return [bool(re.match(begin, verdict)) for begin in ("(reproduced|seen)$", "repr|seen", "not ")]


def bases_of(found: Found) -> list[str]:
    """All bases with results, in the order of their first runs."""
    return list(dict.fromkeys(base for own in found.values() for base in own)) or [""]


def titles_of(bases: Sequence[str]) -> dict[str, str]:
    """Empty for a single base."""
    return {base: f"{n} base" for base, n in zip(bases, ORDINALS)} if len(bases) > 1 else {}


# ------------------------------------------------------------------------------------- tables


def markdown_table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def claims_table(found: Found) -> str:
    """With several bases there is a column for the verdict on each."""
    rows, bases = [], bases_of(found)
    titles = titles_of(bases)
    for experiment, own in ((experiment_of(name), found[name]) for name in found):
        link = f"[{experiment.parts[0]}](#{anchor_of(experiment)})"
        for claim in experiment.claims:
            each = judged_on(bases, claim, experiment, own)
            ours = max(each[::-1], key=lambda one: min(SEEDS, one.seeds)).ours
            verdicts = [joint([one]) for one, _ in zip(each, titles)]
            rows.append([link, claim.claim, claim.evidence, ours, *verdicts, joint(each)])
    head = ["experiment", "claim", "evidence for it", "ours", *titles.values(), "verdict"]
    if not titles:
        return markdown_table(head, rows)
    names = " and the ".join(f"{title} (`{base[:8]}`)" for base, title in titles.items())
    said = BASES.format(names, titles[bases[-1]], progress(found, bases[-1]))
    return f"{said}\n\n{markdown_table(head, rows)}"


def progress(found: Found, base: str) -> str:
    """How many of its runs each experiment has on this base."""
    counts = []
    for experiment, own in ((experiment_of(name), found[name]) for name in found):
        if experiment.names and not experiment.settled:
            each = [own[base].seeds([name]) for name in experiment.names] if base in own else []
            done, all_runs = sum(min(SEEDS, n) for n in each), SEEDS * len(experiment.names)
            counts.append(f"{experiment.parts[0]} {done} of {all_runs}")
    return "; ".join(counts)


def front_table(found: Found) -> str:
    rows, bases = [], bases_of(found)
    for row in json.loads(FRONT_ROWS.read_text(encoding="utf-8")):
        experiment, own = experiment_of(row["experiment"]), found[row["experiment"]]
        claim = next(claim for claim in experiment.claims if claim.claim == row["claim"])
        link = f"[{claim.claim}](nanocontrol/experiments/RESULTS.md#{anchor_of(experiment)})"
        pair, number = row["compared"], row["number"]
        results = best(own, pair) if own else Results({"arms": {}, "sampled": {}})
        cells = [f"{title}: {spoken_with_n(results, name, number)}" for name, title in pair.items()]
        verdicts = [joint([one]) for one in judged_on(bases, claim, experiment, own)]
        rows.append([link, row["measured"], *cells, *verdicts])
    verdicts = [*titles_of(bases).values()] or ["verdict"]
    return markdown_table(["claim", "measured on nano", "one", "the other", *verdicts], rows)


def spoken_with_n(results: Results, name: str, number: str) -> str:
    n = results.seeds([name])
    return f"{results.spoken(name, number)}, n = {n}" if n else "not run"


def anchor_of(experiment: Experiment) -> str:
    return re.sub(r"[^\w\- ]", "", experiment.parts[0].lower()).replace(" ", "-")


def section(experiment: Experiment, own: ByBase, bases: Sequence[str]) -> str:
    """The verdicts, what was expected, then the plot, and the tables of each base."""
    name, (title, asked, expected, found, *notes) = experiment.name, experiment.parts
    verdicts = (joint(judged_on(bases, claim, experiment, own)) for claim in experiment.claims)
    lines = (f"- {claim.claim}: **{said}**" for claim, said in zip(experiment.claims, verdicts))
    code = f"Code: [claims/{name}.py](claims/{name}.py)"
    code += f"; data: [{name}.json](../../assets/experiments/{name}.json)" if own else ""
    parts = [f"## {title}", code, "\n".join(lines), f"**Found:** {found}"]
    parts += [f"**Question:** {asked}", f"**Expected before the first run:** {expected}"]
    if any(results.both for results in own.values()):
        parts.append(f"![The plot of {name}](../../assets/experiments/{name}.png)")
    titles = titles_of(bases)
    for base, results in own.items():
        parts += [f"### {title}, {titles[base]}"] if titles else []
        if results.both:
            machines = "; ".join(machines_of(results))
            parts += [numbers_table(results, experiment), *notes]
            parts.append(f"One thread each, {results.minutes:.0f} minutes in all; {machines}.")
        if once := results.content["once"]:
            rows = [[name, *(f"{x:.2g}" for x in values)] for name, values in once["rows"].items()]
            parts.append(markdown_table(once["head"], rows))
            parts += [once["note"]] if "note" in once else []
        notes = []  # once is enough
    return "\n\n".join(parts)


def numbers_table(results: Results, experiment: Experiment) -> str:
    """A row for each variant or row: its numbers, of those that any of them has."""
    titles = {n: TITLES[n] for n in COLUMNS} | experiment.numbers
    names = [name for name in results.both if results.has(name)]
    numbers = [n for n in titles if any(results.knows(name, n) for name in names)]
    rows = []
    for name in names:
        runs, arm = results.runs(name), results.arms.get(name)
        cells = (results.spoken(name, number) for number in numbers)
        minutes = spoken([run["seconds"] / 60 for run in runs], 1)
        steps = [str(arm["settings"]["steps"])] if arm else []
        rows.append([experiment.title_of(name), str(len(runs)), *steps, *cells, minutes])
    steps = ["steps"] if results.arms else []
    head = ["variant", "seeds", *steps, *(titles[n] for n in numbers), "minutes"]
    return markdown_table(head, rows)


def machines_of(results: Results) -> list[str]:
    machines = [run["machine"] for name in results.both for run in results.runs(name)]
    return sorted({", ".join(f"{name} {x}" for name, x in own.items()) for own in machines})


def results_page(found: Found) -> str:
    bases = bases_of(found)
    sections = (section(experiment_of(name), own, bases) for name, own in found.items())
    return "\n\n".join([INTRODUCTION, "## Claims", claims_table(found), *sections]) + "\n"


def front_page(text: str, found: Found) -> str:
    """The front page with the table of claims between its marks."""
    begin, end = "<!-- claims -->", "<!-- end of claims -->"
    before, rest = text.split(begin)
    _, after = rest.split(end)
    return f"{before}{begin}\n{front_table(found)}\n{end}{after}"


def write_pages() -> None:
    found = {name: results_of(name) for name in NAMES}
    write_text(RESULTS, results_page(found))
    write_text(FRONT, front_page(FRONT.read_text(encoding="utf-8"), found))


def write_text(file: Path, text: str) -> None:
    write_atomically(file, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_report() -> None:
    """The pages, and every plot again."""
    write_pages()
    for name in NAMES:
        if own := results_of(name):
            write_plots(own, experiment_of(name), ASSETS)


# -------------------------------------------------------------------------------------- plots

BESIDE = 2  # charts
OFFSET = 0.16  # between numbers of one name, so that none hides another


def write_plots(own: ByBase, experiment: Experiment, folder: Path) -> None:
    names = {name for results in own.values() for name in results.both if results.has(name)}
    results = best(own, names)
    write_plot(results, experiment, folder / f"{experiment.name}.png")
    if experiment.front:
        panels, curves = experiment.panels[:1], experiment.front
        small = replace(experiment, panels=panels, curves=curves, charts=())
        write_plot(results, small, folder / f"{experiment.name}-front.png")


def write_plot(results: Results, experiment: Experiment, path: Path) -> None:
    """Above are the curves of those panels that have two variants to compare, below the charts.
    Without matplotlib it says so."""
    panels = [p for p in experiment.panels if sum(map(results.has, p.variants)) > 1]
    charts = [c for c in experiment.charts if any(map(results.has, c.names))]
    if not panels and not charts:
        return
    if find_spec("matplotlib") is None:
        message = f'no {path.name}: pip install -e ".[experiments]" brings matplotlib'
        print(message, file=sys.stderr)
        return
    from matplotlib.figure import Figure  # takes a second

    most = max((len(chart.names) for chart in charts), default=0)
    rows_of_charts = -(-len(charts) // BESIDE) * (1.8 + 0.25 * most)
    heights = [2.6 * len(experiment.curves)] * bool(panels) + [rows_of_charts] * bool(charts)
    size = (max(13 if charts else 8, 4.3 * len(panels)), sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if panels:
        draw_panels(parts[0], results, experiment, panels)
    if charts:
        draw_charts(parts[-1], results, experiment, charts)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=90))


def draw_panels(figure: Any, results: Results, experiment: Experiment, panels: list[Panel]) -> None:
    """A row for each number, a column for each panel: of each variant the mean over seeds, and a
    band from the lowest to the highest."""
    shape = len(experiment.curves), len(panels)
    grid = figure.subplots(*shape, sharex="col", sharey="row", squeeze=False)
    for row, name in zip(grid, experiment.curves):
        row[0].set_ylabel(TITLES[name].replace("`", ""))
        if name in ("spread_last", "control_gain"):
            row[0].set_yscale("symlog", linthresh=1e-6)
        for axes, panel in zip(row, panels):
            axes.grid(alpha=0.3)
            for i, variant in enumerate(panel.variants):
                if results.has(variant) and (curves := results.curves(variant, name)):
                    draw_curves_of(axes, curves, experiment.title_of(variant), f"C{i}")
    for i, panel in enumerate(panels):
        grid[0][i].set_title(panel.title, fontsize=10)
        grid[-1][i].set_xlabel("steps")
        if grid[0][i].lines:
            grid[0][i].legend(fontsize=7)


def band(curves: list[Curve]) -> tuple[list[float], list[float], list[float], list[float]]:
    """Curves with the same steps -> the steps, and there the lowest, mean and highest value."""
    steps = [step for step, _ in curves[0]]
    if any([step for step, _ in curve] != steps for curve in curves):
        raise ValueError("the curves were not measured at the same steps")
    values = np.array([[value for _, value in curve] for curve in curves])
    return steps, *(f(values, axis=0).tolist() for f in (np.min, np.mean, np.max))  # type: ignore


def draw_curves_of(axes: Any, curves: list, title: str, colour: str) -> None:
    steps, lowest, mean, highest = band(curves)
    axes.plot(steps, mean, color=colour, label=title, marker="." if len(steps) < 3 else None)
    axes.fill_between(steps, lowest, highest, color=colour, alpha=0.15)


def draw_charts(figure: Any, results: Results, experiment: Experiment, charts: list[Chart]) -> None:
    """The mean over seeds of each number, and a line from the lowest to the highest. Names stand at
    the left; those that are a quantity stand below."""
    grid = figure.subplots(-(-len(charts) // BESIDE), min(len(charts), BESIDE), squeeze=False)
    for axes in grid.flat[len(charts) :]:
        axes.set_axis_off()
    for axes, chart in zip(grid.flat, charts):
        names = [name for name in chart.names if results.has(name)]
        for k, number in enumerate(chart.numbers):
            title = experiment.numbers.get(number, number).replace("`", "")
            offset = (k - (len(chart.numbers) - 1) / 2) * OFFSET
            draw_points(axes, points_of(results, names, number), title, chart.joined, offset)
        places, titles = range(len(names)), [experiment.title_of(name) for name in names]
        if chart.joined:
            axes.set_xticks(places, titles, rotation=20, ha="right", fontsize=8)
        else:
            axes.set_yticks(places, titles, fontsize=8)
            axes.set_ylim(len(names) - 0.5, -0.5)  # the first is at the top
        axes.set_title(chart.title, fontsize=10, loc="left", pad=18)
        axes.grid(alpha=0.3)
        above = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0}
        look = {"fontsize": 8, "columnspacing": 1, "frameon": False}
        legend = axes.legend(ncols=len(chart.numbers), **look, **above)
        legend.set_in_layout(False)  # it may be wider than the chart, which then would shrink


def points_of(results: Results, names: list[str], number: str) -> np.ndarray:
    """[N, 4]: for each name whose runs all have this number: its place, the mean over seeds, and
    how far the lowest and the highest are from it."""
    points = []
    for i, name in enumerate(names):
        if results.knows(name, number) and None not in (xs := results.values(name, number)):
            mean = np.mean(xs)  # of equal values it is rounded: it may be below the lowest
            points.append((i, mean, max(0, mean - min(xs)), max(0, max(xs) - mean)))
    return np.array(points).reshape(-1, 4)


def draw_points(axes: Any, points: np.ndarray, title: str, joined: bool, offset: float) -> None:
    places, means, ranges = points[:, 0], points[:, 1], points[:, 2:].T
    if joined:
        axes.errorbar(places, means, ranges, label=title, marker="o", capsize=3)
    else:
        how = {"linestyle": "none", "marker": "o", "markersize": 5, "capsize": 3}
        axes.errorbar(means, places + offset, xerr=ranges, label=title, **how)

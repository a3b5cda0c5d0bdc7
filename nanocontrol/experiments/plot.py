"""An experiment's curves, with bands over the seeds, and its last values. It takes matplotlib:
pip install -e ".[experiments]"."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from nanocontrol.experiments.experiment import Chart, Experiment, Panel
from nanocontrol.experiments.numbers import band
from nanocontrol.experiments.results import Results
from nanocontrol.plumbing.files import write_atomically


def draw(results: Results, experiment: Experiment, path: Path) -> None:
    """Above the curves, below the charts, of those panels and charts that have runs of two arms to
    compare. Without matplotlib it says so."""
    panels = [p for p in experiment.panels if sum(results.has([arm]) for arm in p.arms) > 1]
    charts = [c for c in experiment.charts if any(results.has([name]) for name in c.names)]
    if not panels and not charts:
        return
    if find_spec("matplotlib") is None:
        message = f'no {path.name}: pip install -e ".[experiments]" brings matplotlib'
        print(message, file=sys.stderr)
        return
    from matplotlib.figure import Figure  # takes a second

    heights = [2.6 * len(experiment.rows)] * bool(panels) + [4.5] * bool(charts)
    size = (max(8, 5 * max(len(panels), len(charts))), sum(heights))
    figure = Figure(figsize=size, layout="constrained")
    parts = figure.subfigures(len(heights), 1, height_ratios=heights, squeeze=False)[:, 0]
    if panels:
        draw_panels(parts[0], results, experiment, panels)
    if charts:
        draw_charts(parts[-1], results, experiment, charts)
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=90))


def draw_panels(figure: Any, results: Results, experiment: Experiment, panels: list[Panel]) -> None:
    """A row for each number, a column for each panel; of each arm the mean over seeds, and between
    the lowest and the highest a band."""
    rows = experiment.rows
    grid = figure.subplots(len(rows), len(panels), sharex="col", sharey="row", squeeze=False)
    for row, (name, title) in zip(grid, rows.items()):
        row[0].set_ylabel(title)
        if name.startswith(("spread", "gradient", "control_gain")):
            row[0].set_yscale("symlog", linthresh=1e-6)
        for axes, panel in zip(row, panels):
            axes.grid(alpha=0.3)
            for i, arm in enumerate(panel.arms):
                if results.has([arm]):
                    draw_arm(axes, results, arm, name, panel.against, f"C{i}")
    for i, panel in enumerate(panels):
        grid[0][i].set_title(panel.title, fontsize=10)
        grid[-1][i].set_xlabel("steps" if panel.against == "step" else "pairs seen")
        if grid[0][i].lines:
            grid[0][i].legend(fontsize=7)


def draw_arm(axes: Any, results: Results, arm: str, name: str, against: str, colour: str) -> None:
    curves = results.curves(arm, name)
    if not curves:
        return
    steps, lowest, mean, highest = band(curves)
    pairs = results.arms[arm]["settings"]["batch_size"] if against == "pairs" else 1
    x = [step * pairs for step in steps]
    axes.plot(x, mean, color=colour, label=arm, marker="." if len(x) < 3 else None)
    axes.fill_between(x, lowest, highest, color=colour, alpha=0.15)


def draw_charts(figure: Any, results: Results, experiment: Experiment, charts: list[Chart]) -> None:
    """The mean over seeds of each number, and a line from the lowest to the highest."""
    for axes, chart in zip(figure.subplots(1, len(charts), squeeze=False)[0], charts):
        names = [name for name in chart.names if results.has([name])]
        for number in chart.numbers:
            own = [name for name in names if results.knows(name, number)]
            points = [(names.index(name), results.values(name, number)) for name in own]
            known = [(i, values) for i, values in points if None not in values]
            x, means = [i for i, _ in known], [np.mean(values) for _, values in known]
            below = [mean - min(values) for mean, (_, values) in zip(means, known)]
            above = [max(values) - mean for mean, (_, values) in zip(means, known)]
            title = experiment.numbers.get(number, number).replace("`", "")
            how = {"linestyle": "-" if chart.joined else "none", "marker": "o", "capsize": 3}
            axes.errorbar(x, means, (below, above), label=title, **how)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", fontsize=7)
        axes.set_title(chart.title, fontsize=10)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=7)

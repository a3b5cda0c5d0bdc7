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

BESIDE = 2  # charts
APART = 0.16  # numbers of one name, so that none hides another


def draw(results: Results, experiment: Experiment, path: Path) -> None:
    """Above the curves of those panels that have two arms to compare, below the charts. Without
    matplotlib it says so."""
    panels = [p for p in experiment.panels if sum(results.has([arm]) for arm in p.arms) > 1]
    charts = [c for c in experiment.charts if any(results.has([name]) for name in c.names)]
    if not panels and not charts:
        return
    if find_spec("matplotlib") is None:
        message = f'no {path.name}: pip install -e ".[experiments]" brings matplotlib'
        print(message, file=sys.stderr)
        return
    from matplotlib.figure import Figure  # takes a second

    most = max((len(chart.names) for chart in charts), default=0)
    rows_of_charts = -(-len(charts) // BESIDE) * (1.8 + 0.25 * most)
    heights = [2.6 * len(experiment.rows)] * bool(panels) + [rows_of_charts] * bool(charts)
    size = (max(13 if charts else 8, 5 * len(panels)), sum(heights))
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
                    curves = results.curves(arm, name)
                    pairs = results.arms[arm]["settings"]["batch_size"]
                    times = pairs if panel.against == "pairs" else 1
                    draw_arm(axes, curves, times, experiment.title(arm), f"C{i}")
    for i, panel in enumerate(panels):
        grid[0][i].set_title(panel.title, fontsize=10)
        grid[-1][i].set_xlabel("steps" if panel.against == "step" else "pairs seen")
        if grid[0][i].lines:
            grid[0][i].legend(fontsize=7)


def draw_arm(axes: Any, curves: list, times: int, title: str, colour: str) -> None:
    """times: what steps are multiplied by."""
    if not curves:
        return
    steps, lowest, mean, highest = band(curves)
    x = [step * times for step in steps]
    axes.plot(x, mean, color=colour, label=title, marker="." if len(x) < 3 else None)
    axes.fill_between(x, lowest, highest, color=colour, alpha=0.15)


def draw_charts(figure: Any, results: Results, experiment: Experiment, charts: list[Chart]) -> None:
    """The mean over seeds of each number, and a line from the lowest to the highest. Names stand at
    the left, but those that are a quantity below."""
    grid = figure.subplots(-(-len(charts) // BESIDE), min(len(charts), BESIDE), squeeze=False)
    for axes in grid.flat[len(charts) :]:
        axes.set_axis_off()
    for axes, chart in zip(grid.flat, charts):
        names = [name for name in chart.names if results.has([name])]
        for k, number in enumerate(chart.numbers):
            title = experiment.numbers.get(number, number).replace("`", "")
            points = points_of(results, names, number)
            if chart.joined:
                draw_joined(axes, points, title)
            else:
                draw_apart(axes, points, title, (k - (len(chart.numbers) - 1) / 2) * APART)
        places, titles = range(len(names)), [experiment.title(name) for name in names]
        if chart.joined:
            axes.set_xticks(places, titles, rotation=20, ha="right", fontsize=8)
        else:
            axes.set_yticks(places, titles, fontsize=8)
            axes.set_ylim(len(names) - 0.5, -0.5)  # (the first is above)
        axes.set_title(chart.title, fontsize=10, loc="left", pad=18)
        axes.grid(alpha=0.3)
        above = {
            "loc": "lower left",
            "bbox_to_anchor": (0, 1),
            "borderaxespad": 0,
            "frameon": False,
        }
        legend = axes.legend(fontsize=8, ncols=len(chart.numbers), columnspacing=1, **above)
        legend.set_in_layout(False)  # (it may be wider than the chart, which then would shrink)


def points_of(results: Results, names: list[str], number: str) -> np.ndarray:
    """[N, 4]: of each name whose runs all have this number its place, the mean over seeds, and how
    far the lowest and the highest are from it."""
    values = {
        i: results.values(name, number)
        for i, name in enumerate(names)
        if results.knows(name, number)
    }
    found = {i: (np.mean(xs), min(xs), max(xs)) for i, xs in values.items() if None not in xs}
    # (The mean of equal values is rounded: it may be below the lowest.)
    points = [
        (i, mean, max(0, mean - low), max(0, high - mean)) for i, (mean, low, high) in found.items()
    ]
    return np.array(points).reshape(-1, 4)


def draw_joined(axes: Any, points: np.ndarray, title: str) -> None:
    axes.errorbar(points[:, 0], points[:, 1], points[:, 2:].T, label=title, marker="o", capsize=3)


def draw_apart(axes: Any, points: np.ndarray, title: str, lower: float) -> None:
    y = points[:, 0] + lower
    how = {"linestyle": "none", "marker": "o", "markersize": 5, "capsize": 3}
    axes.errorbar(points[:, 1], y, xerr=points[:, 2:].T, label=title, **how)

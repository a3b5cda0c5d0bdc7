"""An experiment's curves, with bands over the seeds. It takes matplotlib:
pip install -e ".[experiments]"."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nanocontrol.experiments.experiment import Experiment
from nanocontrol.experiments.numbers import band
from nanocontrol.experiments.results import Results
from nanocontrol.plumbing.files import write_atomically


def draw(results: Results, experiment: Experiment, path: Path) -> None:
    """A row for each number, a column for each panel that has a run; of each arm the mean over
    seeds, and between the lowest and the highest a band. Without matplotlib it says so."""
    rows = experiment.rows
    panels = [p for p in experiment.panels if any(results.has([arm]) for arm in p.arms)]
    if not panels:
        return
    if find_spec("matplotlib") is None:
        message = f'no {path.name}: pip install -e ".[experiments]" brings matplotlib'
        print(message, file=sys.stderr)
        return
    from matplotlib.figure import Figure  # takes a second

    size = (5 * len(panels), 2.6 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(rows), len(panels), sharex="col", sharey="row", squeeze=False)
    for row, (name, title) in zip(grid, rows.items()):
        row[0].set_ylabel(title)
        if name.startswith(("spread", "gradient")):
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
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=90))


def draw_arm(axes: Any, results: Results, arm: str, name: str, against: str, colour: str) -> None:
    curves = results.curves(arm, name)
    if not curves:
        return
    steps, lowest, mean, highest = band(curves)
    pairs = results.arms[arm]["settings"]["batch_size"] if against == "pairs" else 1
    x = [step * pairs for step in steps]
    axes.plot(x, mean, color=colour, label=arm, marker="." if len(x) < 3 else None)
    axes.fill_between(x, lowest, highest, color=colour, alpha=0.15)

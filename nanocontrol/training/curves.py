"""Plots of a run's numbers over its steps. They need matplotlib: pip install -e ".[plots]"."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from nanocontrol.plumbing.files import write_atomically
from nanocontrol.training.run import measured

# One panel each: its title, and the numbers of the log that it shows.
PANELS = {
    "loss": ("loss", "held_out_loss"),
    "control gain: the loss with other pairs' hints, minus the loss with the right ones": (
        "control_gain",
    ),
    "how well held-out hints are followed (at most 1)": ("score", "follows", "iou"),
}
COLOURS = {"loss": "#b0b0b0", "follows": "#c00000", "iou": "#909090"}  # all others "#204080"
SMOOTH = 20  # steps whose losses are averaged into one point


def draw_curves(history: list[dict], path: Path, bands: dict[str, dict], note: bool) -> None:
    """Write the plots to `path`. Without matplotlib, do nothing, or print a `note`.

    history: the entries of log.jsonl; bands: for each number, its range over healthy runs with the
    same settings, as `steps`, `lowest`, `highest` and the number of `runs`.
    """
    if find_spec("matplotlib") is None:
        if note:
            print('no curves.png: pip install -e ".[plots]" brings matplotlib', file=sys.stderr)
        return
    from matplotlib.figure import Figure  # takes a second

    figure = Figure(figsize=(8, 9), layout="constrained")
    for axes, (title, names) in zip(figure.subplots(len(PANELS), sharex=True), PANELS.items()):
        axes.set_title(title, fontsize=10)
        for name in names:
            draw_number(axes, name, history, bands.get(name))
        if axes.get_legend_handles_labels()[0]:
            axes.legend(loc="best", fontsize=8)
        axes.grid(alpha=0.3)
    axes.set_xlabel("step")
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=100))


def draw_number(axes: Any, name: str, history: list[dict], usual: dict | None) -> None:
    points = measured(history, name)
    if not points or name == "loss" and len(points) < SMOOTH:
        return
    steps, values = (np.array(column) for column in zip(*points))
    colour = COLOURS.get(name, "#204080")
    if usual:
        where = usual["steps"], usual["lowest"], usual["highest"]
        axes.fill_between(*where, color=colour, alpha=0.15, label=f"{name} of {usual['runs']} runs")
    if name == "loss":  # a single step's loss depends mostly on its t, so many are averaged
        whole = len(values) // SMOOTH * SMOOTH
        steps, values = (x[:whole].reshape(-1, SMOOTH).mean(axis=1) for x in (steps, values))
    axes.plot(steps, values, color=colour, label=name, marker="." if len(values) < 3 else None)

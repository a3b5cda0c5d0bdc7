"""Run an experiment: its variants or rows, seed by seed.

    python -m nanocontrol.experiments sudden_convergence
    python -m nanocontrol.experiments sudden_convergence --quick
    python -m nanocontrol.experiments report

A stopped command continues. After each run it writes assets/experiments/NAME.json and NAME.png, and
RESULTS.md in this folder. The JSON file has a section for each base; a run changes only that of the
bundled base as it is now. --quick trains two variants with one seed for a few steps, or measures
two rows, and writes both files into runs/experiments/quick. report writes all plots and RESULTS.md
again, without training.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from nanocontrol.experiments.frame import NAMES, Experiment, experiment_of
from nanocontrol.experiments.measure import AT_END
from nanocontrol.experiments.report import write_pages, write_plots, write_report
from nanocontrol.experiments.results import ASSETS, results_in, sections_in, write_results
from nanocontrol.experiments.runs import RUNS, SEEDS, content_of, do_all, jobs_of, processes
from nanocontrol.nano.model import NANO
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.errors import one_sentence
from nanocontrol.plumbing.files import hash_of
from nanocontrol.plumbing.flags import Parser, at_least

QUICK = RUNS / "quick"


def run_experiment(
    experiment: Experiment, seeds: range, scenes: int, do: Callable, root: Path, folder: Path
) -> None:
    """scenes: of each row; do: as runs.do_all, with a pool; root: of the bases' folders, which hold
    the runs' folders; folder: of the results."""
    base, file = hash_of(NANO), folder / f"{experiment.name}.json"
    root = root / base[:8]
    once = experiment.once() if experiment.once else {}

    def write() -> None:
        sections = sections_in(file)
        sections[base] = content_of(experiment, once, root, sections.get(base))
        write_results(file, sections)
        write_plots(results_in(file), experiment, folder)
        if folder == ASSETS:
            write_pages()

    do(jobs_of(experiment, seeds, scenes, root), write)
    write()
    print(file)


def quick(experiment: Experiment, **short: int) -> Experiment:
    """Two variants that share a panel, with these settings; or two rows."""
    names = experiment.panels[-1].variants[:2] if experiment.panels else ()
    variants = tuple(
        replace(variant, settings=dict(variant.settings) | short)
        for variant in experiment.variants
        if variant.name in names
    )
    return replace(experiment, variants=variants, rows=experiment.rows[:2])


def parsed(argv: list[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("experiments", description=__doc__, formatter_class=formatter)
    parser.add_argument("name", choices=[*NAMES, "report"])
    parser.add_argument("--quick", action="store_true", help="two of them, one seed, few steps")
    seeds = "of each variant or row (default: 3)"
    up_to = range(1, len(SEEDS) + 1)
    parser.add_argument("--seeds", type=int, choices=up_to, default=3, metavar="N", help=seeds)
    first = "the first of these seeds (default: 0); none is above 9"
    parser.add_argument("--first", type=int, choices=SEEDS, default=0, metavar="SEED", help=first)
    beside = "processes of one thread each (default: 2)"
    parser.add_argument("--beside", type=at_least(1), default=2, metavar="N", help=beside)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parsed(argv)
    if args.name == "report":
        return write_report()
    machine.keep_freed_memory()
    torch.set_num_threads(1)
    with one_sentence("experiments"), processes(args.beside) as pool:
        experiment, do = experiment_of(args.name), partial(do_all, pool=pool, n=args.beside)
        if args.quick:
            short = quick(experiment, steps=100, sample_every=25)
            run_experiment(short, SEEDS[:1], 8, do, QUICK, QUICK)
        else:
            chosen = SEEDS[args.first : args.first + args.seeds]
            run_experiment(experiment, chosen, AT_END, do, RUNS, ASSETS)


if __name__ == "__main__":
    main()

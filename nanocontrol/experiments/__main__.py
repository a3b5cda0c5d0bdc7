"""Run an experiment: its arms, seed by seed.

    python -m nanocontrol.experiments sudden_convergence
    python -m nanocontrol.experiments sudden_convergence --quick

It says how long it will take, and goes on where it stopped. After each run it writes
assets/experiments/NAME.json and NAME.png, and its part of README.md in this folder. --quick trains
two arms with one seed for a few steps, or samples two rows, and writes both files into
runs/experiments/quick.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from nanocontrol.experiments import looks
from nanocontrol.experiments.arm import PLAIN, Arm, settings_of
from nanocontrol.experiments.experiment import NAMES, Experiment, experiment_of
from nanocontrol.experiments.gathered import SEEDS, content_of
from nanocontrol.experiments.plot import draw
from nanocontrol.experiments.readme import write_readme
from nanocontrol.experiments.results import ASSETS, Results, write_results
from nanocontrol.experiments.runs import RUNS, runs_of, train_all
from nanocontrol.experiments.sampled import measure_all, measurements_of
from nanocontrol.experiments.speed import measured_speed, told
from nanocontrol.plumbing.errors import one_sentence
from nanocontrol.plumbing.flags import at_least

QUICK = RUNS / "quick"
QUICK_STEPS, QUICK_SCENES = 100, 8


def run_experiment(
    experiment: Experiment, seeds: range, scenes: int, beside: int, root: Path, folder: Path
) -> None:
    """scenes: of each row that is sampled; root: of the runs' folders; folder: of the results."""
    once = experiment.once() if experiment.once else {}

    def write() -> None:
        write_all(experiment, once, root, folder)

    runs = runs_of(experiment, experiment.arms, seeds, root)
    rows = tuple(row.name for row in experiment.sampled)
    sampled = measurements_of(experiment, rows, seeds, scenes, root)
    if runs or sampled:
        speed = measured_speed(settings_of(PLAIN, 0, Path("unused")))
        print(f"{experiment.name}: {told(runs, sampled, beside, speed)}", flush=True)
    if runs:
        train_all(runs, beside, write)
    if sampled:
        measure_all(sampled, beside, write)
    write()
    print(folder / f"{experiment.name}.json")


def write_all(experiment: Experiment, once: dict, root: Path, folder: Path) -> None:
    file = folder / f"{experiment.name}.json"
    content = content_of(experiment, once, root, file)
    write_results(file, content)
    results = Results(content)
    draw(results, experiment, folder / f"{experiment.name}.png")
    if experiment.front:
        draw(results, front_of(experiment), folder / f"{experiment.name}-front.png")
    if folder == ASSETS:
        write_readme()


def front_of(experiment: Experiment) -> Experiment:
    rows = {name: experiment.rows[name] for name in experiment.front}
    return replace(experiment, panels=experiment.panels[:1], rows=rows, charts=())


def quick(experiment: Experiment) -> Experiment:
    arms = tuple(shortened(experiment.arm(name)) for name in experiment.quick)
    return replace(experiment, arms=arms, sampled=experiment.sampled[:2])


def shortened(arm: Arm) -> Arm:
    return replace(arm, settings=dict(arm.settings) | {"steps": QUICK_STEPS, "sample_every": 25})


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("experiments", description=__doc__, formatter_class=formatter)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument(
        "--quick", action="store_true", help="two arms or rows, one seed, few steps"
    )
    seeds = "of each arm (default: 3)"
    parser.add_argument(
        "--seeds", type=int, choices=range(1, len(SEEDS) + 1), default=3, metavar="N", help=seeds
    )
    first = "the first of these seeds (default: 0); none is above 9"
    parser.add_argument("--first", type=int, choices=SEEDS, default=0, metavar="SEED", help=first)
    beside = "runs beside each other, with one thread each (default: 2)"
    parser.add_argument("--beside", type=at_least(1), default=2, metavar="N", help=beside)
    args = parser.parse_args(argv)
    with one_sentence("experiments"):
        experiment = experiment_of(args.name)
        if args.quick:
            run_experiment(quick(experiment), SEEDS[:1], QUICK_SCENES, args.beside, QUICK, QUICK)
        else:
            chosen = SEEDS[args.first : args.first + args.seeds]
            run_experiment(experiment, chosen, looks.AT_END, args.beside, RUNS, ASSETS)


if __name__ == "__main__":
    main()

"""Diagnosis of a run whose ControlNet does not follow its hints.

    python -m nanocontrol.doctor RUN
        the most likely cause with its evidence, or the progress of a run that looks healthy
    python -m nanocontrol.doctor RUN --hint FILE
        a comparison of a hint for sample.py with the hints of the training

Faults are checked in this order: the hints, the captions, the base's prediction type, the learning
rate, the number of steps. Hints can be constant, shifted or scaled relative to their pictures,
mostly white, of another condition than the run's, or of other pictures. The diagnosis reads
settings.json, log.jsonl and metrics.json of the run, and at most 32 of its pairs. It computes only
losses of the base, without a ControlNet. The exit status is 0 whenever a report was printed.
"""

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from nanocontrol import DDPM, StableDiffusion
from nanocontrol.checkpoint import load_sd
from nanocontrol.commands.inputs import refuse_oblong
from nanocontrol.doctor.causes import (
    COURSE,
    NANO_COURSE,
    OWN,
    PREDICTIONS,
    Finding,
    about_captions,
    about_hints,
    about_prediction,
    about_rate,
    about_steps,
    course_of,
)
from nanocontrol.doctor.hints import TrainingHints, differences
from nanocontrol.doctor.past_run import (
    PastRun,
    SomePairs,
    base_size,
    condition_said,
    pairs_of_run,
    read_past_run,
    some_pairs,
)
from nanocontrol.nano.model import UNET
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.errors import blame, one_sentence, say
from nanocontrol.plumbing.flags import Parser, device
from nanocontrol.plumbing.pictures import picture_size, read_picture, size_to_sample
from nanocontrol.schedulers import STEPS
from nanocontrol.training.measure import mean_latents
from nanocontrol.training.pairs import Folder, held_out_of

PAIRS, PAIRS_OF_LARGE = 32, 16  # pairs to read; fewer with a base of Stable Diffusion's size


@torch.no_grad()
def losses_of_base(sd: StableDiffusion, seen: SomePairs) -> np.ndarray:
    """The base's losses without a ControlNet [2, 3, n]: for both prediction types (eps, v), and for
    each pair's own prompt, another pair's, and none. A pair's noise is always the same, and t is
    spread evenly over 0..999."""
    device, n, found = next(sd.unet.parameters()).device, len(seen.images), []
    generator = torch.Generator().manual_seed(0)
    for i in tqdm(range(n), "measuring the base", leave=False):
        x0 = mean_latents(sd, seen.images[i][None])
        noise = torch.randn(x0.shape, generator=generator)
        t = torch.tensor([STEPS * (2 * i + 1) // (2 * n)])
        x_t = DDPM("eps").add_noise(x0, noise, t).to(device)
        context = sd.encode_prompts([seen.prompts[i], other_prompt(seen.prompts, i), ""])
        output = sd.unet(x_t.expand(3, -1, -1, -1), t.expand(3).to(device), context).float().cpu()
        targets = [DDPM(name).target(x0, noise, t) for name in PREDICTIONS]
        found.append([(output - x).square().mean(dim=(1, 2, 3)).tolist() for x in targets])
    return np.moveaxis(np.array(found), 0, -1)


def other_prompt(prompts: list[str], i: int) -> str:
    """The next prompt that differs from prompt i, or prompt i itself if all are equal."""
    following = [*prompts[i + 1 :], *prompts[:i]]
    return next((prompt for prompt in following if prompt != prompts[i]), prompts[i])


def diagnose(run: PastRun, device: str) -> list[Finding]:
    """The faults found, the most likely one first, or else the run's progress."""
    with blame("--base"):
        sd = load_sd(run.settings["base"], device, prediction=run.settings["prediction"])
    is_nano = sd.unet.config == UNET
    course = NANO_COURSE if is_nano else COURSE
    pairs = pairs_of_run(run)
    if isinstance(pairs, Folder):
        run = replace(run, held_out=held_out_of(len(pairs)))
    seen = some_pairs(pairs, PAIRS if is_nano else PAIRS_OF_LARGE)
    # A ControlNet that could follow from the start has some gain even with wrong hints.
    learnt = run.follows and not run.settings.get("init_control") and run.way > course[1] / 2
    losses = losses_of_base(sd, seen)
    means = losses[:, OWN].mean(axis=-1)
    found = [
        *about_hints(seen, condition_said(run), run.source.hints == "canny", learnt),
        *about_captions(losses[means.argmin()]),
        *about_prediction(means, sd.prediction),
        *about_rate(run, means[PREDICTIONS.index(sd.prediction)], course),
        *about_steps(run, course),
    ]
    return found or [course_of(run, course)]


def about_hint(run: PastRun, file: Path) -> Finding:
    """Whether a hint for sample.py looks like the hints of the training."""
    side = base_size(run)
    with blame("--hint"):
        own = picture_size(file)
        refuse_oblong(file, own)
        size = size_to_sample(own, side, None, None)
        hint, as_it_is = read_picture(file, size), read_picture(file)
    seen = some_pairs(pairs_of_run(run), PAIRS)
    training = TrainingHints.of(seen.hints)
    found = differences(hint, training)
    height, width = seen.hints[0].shape[1:]
    beside = [f"compared with {len(seen.hints)} hints of the training, {width}x{height}"]
    if not found:
        return Finding("The picture looks like the hints of the training.", beside, "nothing")
    resized = f"it is {own[0]}x{own[1]} and is resized to {size[0]}x{size[1]}"
    if own != size and not differences(as_it_is, training):
        return Finding(
            "The picture has another size than the hints of the training.",
            [*found, f"{resized}; before that it looks like the training's hints", *beside],
            f"make the hint from a picture of {size[0]}x{size[1]}",
        )
    return Finding(
        f"The picture does not look like the hints of the training: {found[0].split(':')[0]}.",
        [*found, *([resized] if own != size else []), *beside],
        "make the hint in the same way as those of the training",
    )


def report(findings: list[Finding]) -> str:
    first, *others = findings
    lines = [first.verdict, "Evidence:", *(f"- {one}" for one in first.evidence)]
    lines.append(f"What to do: {first.advice}{'' if first.advice.endswith('?') else '.'}")
    for other in others:
        lines.append(f"Also: {other.verdict} {'; '.join(other.evidence)}.")
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = Parser("doctor", description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="folder of a run of train.py")
    add("--hint", type=Path, metavar="FILE", help="hint to compare with those of the training")
    on = "device for the base's losses; cpu leaves the GPU to a running training"
    add("--device", type=device, default=machine.default_device(), help=on)
    args = parser.parse_args(argv)
    with one_sentence("doctor"):
        run = read_past_run(args.run)
        findings = [about_hint(run, args.hint)] if args.hint else diagnose(run, args.device)
        for line in report(findings).splitlines():
            say(line)


if __name__ == "__main__":
    main()

"""How long runs will take on this machine, from a few steps that are measured."""

import time
from typing import NamedTuple

import torch

import train
from nanocontrol import DDPM
from nanocontrol.experiments import looks
from nanocontrol.experiments.runs import Run
from nanocontrol.training.batches import Batch, generator_of
from nanocontrol.training.measure import make_pictures

STEPS, PAIRS, PICTURES = 3, 8, 4  # that are measured


class Speed(NamedTuple):
    """Seconds, with one thread."""

    pair: float  # in a training step
    picture: float  # that is made to be measured

    def of(self, run: Run) -> float:
        """Of the run's steps that are left, its looks and its end."""
        settings, done = run.settings, run.steps_done
        if run.is_done:
            return 0.0
        steps = settings.steps - done
        seen = 1 + steps // settings.sample_every
        pictures = seen * looks.DURING + looks.AT_END
        pairs = settings.batch_size * (steps + seen)  # (a look has a backward pass, too)
        return self.pair * pairs + self.picture * pictures


def measured_speed(run: Run) -> Speed:
    """Of the plain training with this run's base and size."""
    torch.set_num_threads(1)
    sd, control, trained = train.models(run.settings)
    optimizer = train.optimizer_for(run.settings, trained)
    side, prompts = sd.size, [""] * PAIRS
    generator = generator_of(0, 0)
    hint = torch.rand((PAIRS, 3, side, side), generator=generator)
    latent = torch.randn((PAIRS, 4, side // 8, side // 8), generator=generator)
    with torch.no_grad():
        context, empty = sd.encode_prompts(prompts), sd.encode_prompts("")
    batch = Batch(*(x.to(run.settings.device) for x in (latent, latent.exp(), context, hint)))

    def step(number: int) -> None:
        draws = train.random_draws(0, number, PAIRS, (side, side), 0.5)
        diffusion = DDPM(sd.prediction)
        loss = train.training_loss(sd.unet, control, diffusion, 1.0, batch, draws, empty)
        optimizer.backward(loss)
        optimizer.step(loss.detach())

    step(0)  # (the first one is slower)
    began = time.monotonic()
    for number in range(STEPS):
        step(number)
    between = time.monotonic()
    make_pictures(sd, prompts[:PICTURES], control, hint[:PICTURES])
    ended = time.monotonic()
    return Speed((between - began) / STEPS / PAIRS, (ended - between) / PICTURES)


def told(runs: list[Run], beside: int, speed: Speed) -> str:
    done = sum(run.is_done for run in runs)
    hours = sum(map(speed.of, runs)) / beside / 3600
    took = f"{speed.pair:.3f} s a pair and step, {speed.picture:.2f} s a picture"
    text = f"{len(runs)} runs, {done} of them done: about {hours:.1f} hours"
    return f"{text}, with {beside} beside each other ({took})"

"""How long runs will take on this machine, from a few steps that are measured."""

import time
from collections.abc import Callable
from typing import NamedTuple

import torch

import train
from nanocontrol import DDPM, ControlNet, StableDiffusion
from nanocontrol.experiments import looks
from nanocontrol.experiments.experiment import experiment_of
from nanocontrol.experiments.runs import Run
from nanocontrol.experiments.sampled import Measurement
from nanocontrol.training.loader import Batch, generator_of
from nanocontrol.training.measure import make_pictures

STEPS, PICTURES = 3, 4  # that are measured


class Speed(NamedTuple):
    """Seconds, with one thread."""

    pair: float  # in a training step
    picture: float  # that is made to be measured

    def of(self, run: Run) -> float:
        """Of what is left of it: training, and what is measured afterwards."""
        afterwards = run.afterwards.pictures * looks.AT_END if run.afterwards else 0
        training = 0.0 if run.is_trained else self.of_training(run)
        return 0.0 if run.is_done else training + self.picture * afterwards

    def of_training(self, run: Run) -> float:
        """Of the run's steps that are left, its looks and its end."""
        settings, done = run.settings, run.steps_done
        steps = settings.steps - done
        seen = 1 + steps // settings.sample_every
        pictures = seen * looks.DURING + looks.AT_END
        pairs = settings.batch_size * (steps + seen)  # (a look has a backward pass, too)
        return self.pair * pairs + self.picture * pictures

    def of_row(self, one: Measurement) -> float:
        pictures = experiment_of(one.experiment).row(one.row).pictures * one.scenes
        return 0.0 if one.file.exists() else self.picture * pictures


def stepping(settings: train.Settings) -> tuple[StableDiffusion, ControlNet, Callable[[], None]]:
    """The networks of a training with these settings, and a function that makes its next step, on
    random pairs that are encoded."""
    sd, control, trained = train.models(settings)
    optimizer, n = train.optimizer_for(settings, trained), settings.batch_size
    side, diffusion, generator = sd.size, DDPM(sd.prediction), generator_of(0, 0)
    hint = torch.rand((n, 3, side, side), generator=generator)
    latent = torch.randn((n, 4, side // 8, side // 8), generator=generator)
    with torch.no_grad():
        context, empty = sd.encode_prompts([""] * n), sd.encode_prompts("")
    batch = Batch(*(x.to(settings.device) for x in (latent, latent.exp(), context, hint)))
    draws = train.random_draws(0, 0, n, (side, side), settings.drop_prompt)

    def step() -> None:
        loss = train.training_loss(sd.unet, control, diffusion, 1.0, batch, draws, empty)
        optimizer.backward(loss)
        optimizer.step(loss.detach()).item()  # (which waits for a GPU)

    return sd, control, step


def measured_speed(settings: train.Settings) -> Speed:
    """Of the training with these settings."""
    torch.set_num_threads(1)
    sd, control, step = stepping(settings)
    step()  # (the first one is slower)
    began = time.monotonic()
    for _ in range(STEPS):
        step()
    between = time.monotonic()
    make_pictures(sd, [""] * PICTURES, control, torch.ones(PICTURES, 3, sd.size, sd.size))
    ended = time.monotonic()
    pairs = STEPS * settings.batch_size
    return Speed((between - began) / pairs, (ended - between) / PICTURES)


def told(runs: list[Run], sampled: list[Measurement], beside: int, speed: Speed) -> str:
    done = sum(run.is_done for run in runs) + sum(one.file.exists() for one in sampled)
    hours = (sum(map(speed.of, runs)) + sum(map(speed.of_row, sampled))) / beside / 3600
    took = f"{speed.pair:.3f} s a pair and step, {speed.picture:.2f} s a picture"
    what = f"{len(runs)} runs" if runs else f"{len(sampled)} measurements"
    text = f"{what}, {done} of them done: about {hours:.1f} hours"
    return f"{text}, with {beside} beside each other ({took})"

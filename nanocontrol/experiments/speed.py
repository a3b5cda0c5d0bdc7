"""How long runs will take on this machine, from a few steps that are measured."""

import time
from typing import NamedTuple

import torch

import train
from nanocontrol import DDPM
from nanocontrol.experiments import looks
from nanocontrol.experiments.experiment import experiment_of
from nanocontrol.experiments.runs import Run
from nanocontrol.experiments.sampled import Measurement
from nanocontrol.training.batches import Batch, generator_of
from nanocontrol.training.measure import make_pictures

STEPS, PAIRS, PICTURES = 3, 8, 4  # that are measured


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


def measured_speed(settings: train.Settings) -> Speed:
    """Of the training with these settings."""
    torch.set_num_threads(1)
    sd, control, trained = train.models(settings)
    optimizer = train.optimizer_for(settings, trained)
    side, prompts = sd.size, [""] * PAIRS
    generator = generator_of(0, 0)
    hint = torch.rand((PAIRS, 3, side, side), generator=generator)
    latent = torch.randn((PAIRS, 4, side // 8, side // 8), generator=generator)
    with torch.no_grad():
        context, empty = sd.encode_prompts(prompts), sd.encode_prompts("")
    batch = Batch(*(x.to(settings.device) for x in (latent, latent.exp(), context, hint)))

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


def told(runs: list[Run], sampled: list[Measurement], beside: int, speed: Speed) -> str:
    done = sum(run.is_done for run in runs) + sum(one.file.exists() for one in sampled)
    hours = (sum(map(speed.of, runs)) + sum(map(speed.of_row, sampled))) / beside / 3600
    took = f"{speed.pair:.3f} s a pair and step, {speed.picture:.2f} s a picture"
    what = f"{len(runs)} runs" if runs else f"{len(sampled)} measurements"
    text = f"{what}, {done} of them done: about {hours:.1f} hours"
    return f"{text}, with {beside} beside each other ({took})"

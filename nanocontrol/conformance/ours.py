"""The adapter for nanocontrol's own classes. It calls the functions that train.py calls."""

from copy import deepcopy
from typing import Any

import torch
from numpy import ndarray as Array
from torch import Tensor, nn

from nanocontrol.conformance.adapter import SamplingRun, TrainingBatch
from nanocontrol.conformance.cases import Config
from nanocontrol.conformance.in_torch import TorchAdapter
from nanocontrol.controlnet import ControlNet
from nanocontrol.plumbing.machine import default_device
from nanocontrol.sampling import initial_noise, sample
from nanocontrol.schedulers import DDIM, DDPM
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.batches import Batch, Draws
from nanocontrol.training.optimizer import Optimizer
from nanocontrol.unet import UNet
from train import training_loss


class Ours(TorchAdapter):
    """nanocontrol on a CPU."""

    dtype = "float32"  # or "float64"
    scheduler: type[DDIM] = DDIM
    devices = tuple(dict.fromkeys(("cpu", default_device())))
    unet: UNet
    control: ControlNet

    def make(self, config: Config) -> None:
        torch.manual_seed(0)
        self.unet = UNet(config).requires_grad_(False).to(getattr(torch, self.dtype))
        self.control = ControlNet.from_unet(self.unet)
        self.prediction = config.prediction
        self.trained = Optimizer({"control": self.control}, 1e-3, "cpu")
        self.control.input_hint_block.register_forward_hook(self.count)

    def losses(self, batch: TrainingBatch) -> Tensor:
        """train.py's loss of each pair. The latents are exact, so their deviation is zero."""
        x0, noise, t, hint, context, empty, dropped = self.inputs(*vars(batch).values())
        pairs = Batch(x0, torch.zeros_like(x0), context, hint)
        draws = Draws(torch.zeros_like(x0), noise, t, dropped)
        networks = self.unet, self.control, DDPM(self.prediction)
        return training_loss(*networks, 1.0, pairs, draws, empty)

    def train_step(self, batch: TrainingBatch) -> None:
        loss = self.losses(batch).mean()
        self.trained.backward(loss)
        self.trained.step(loss.detach())

    def sample(self, run: SamplingRun) -> Array:
        self.hints_encoded = 0
        *arrays, steps, scale, guess = vars(run).values()
        *given, hint = self.inputs(*arrays)
        unused: Any = nn.Identity()  # sampling between latents needs no VAE and no text encoder
        sd = StableDiffusion(self.unet, unused, unused, self.prediction)
        controls, scheduler = [(self.control, hint, 1.0)], self.scheduler(self.prediction)
        return sample(sd, *given, controls, steps, scale, scheduler, guess=guess).numpy()

    def saved(self) -> Any:
        return deepcopy(self.trained.state())

    def resume(self, saved: Any) -> None:
        self.trained.restore(deepcopy(saved))

    def initial_noise(self, seed: int, device: str) -> Array:
        generator = torch.Generator().manual_seed(seed)
        return initial_noise(1, 64, 64, generator).to(device).cpu().numpy()

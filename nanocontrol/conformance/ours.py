"""The adapter for nanocontrol's own classes. It calls the functions that train.py calls."""

from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array
from torch import Tensor, nn

from nanocontrol.conformance.adapter import Adapter, Arrays, TrainingBatch
from nanocontrol.conformance.cases import BASE, CONTROL, Config
from nanocontrol.controlnet import ControlNet
from nanocontrol.plumbing.machine import default_device
from nanocontrol.sampling import initial_noise, sample
from nanocontrol.schedulers import DDIM, DDPM
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.training.batches import Draws
from nanocontrol.training.loader import Batch
from nanocontrol.training.optimizer import Optimizer
from nanocontrol.unet import UNet
from train import training_loss


def as_tensor(array: Array, like: Tensor | None = None) -> Tensor:
    """An array as a tensor, of a weight's precision. It shares memory where it can."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if like is None else tensor.to(like)


def copied_state(state: Any) -> Any:
    """A copy of nested dicts and lists of tensors."""
    if isinstance(state, dict):
        return {name: copied_state(value) for name, value in state.items()}
    return state.clone() if isinstance(state, Tensor) else state


class Ours(Adapter):
    scheduler: type[DDIM] = DDIM
    devices = tuple(dict.fromkeys(("cpu", default_device())))

    def __init__(self, dtype: str = "float32"):
        self.dtype = dtype

    def make(self, config: Config) -> None:
        torch.manual_seed(0)
        unet = UNet(config.unet).requires_grad_(False).to(getattr(torch, self.dtype))
        self.control = ControlNet.from_unet(unet, config.hint_channels)
        self.sd = StableDiffusion(unet, nn.Identity(), nn.Identity(), config.prediction)  # type: ignore[arg-type]
        self.optimizer = Optimizer({"control": self.control}, 1e-3, "cpu")
        self.control.input_hint_block.register_forward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.hints_encoded = (self.hints_encoded or 0) + 1

    @property
    def weight(self) -> Tensor:
        return next(self.sd.unet.parameters())

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        networks = (BASE, self.sd.unet), (CONTROL, self.control)
        base, control = (
            {prefix + name: weight for name, weight in network.named_parameters()}
            for prefix, network in networks
        )
        return base, control  # type: ignore[return-value]

    @torch.no_grad()
    def load(self, tensors: Arrays) -> None:
        base, control = self.tensors()
        own = base | control
        for name, array in tensors.items():
            own[name].copy_(as_tensor(np.array(array)))

    def inputs(self, *arrays: Array) -> list[Tensor]:
        return [as_tensor(array, self.weight) for array in arrays]

    @torch.no_grad()
    def base(self, x: Array, t: Array, context: Array) -> Array:
        latent, prompts = self.inputs(x, context)
        return self.sd.unet(latent, as_tensor(t), prompts).numpy()

    @torch.no_grad()
    def residuals(self, x: Array, hint: Array, t: Array, context: Array) -> list[Array]:
        latent, picture, prompts = self.inputs(x, hint, context)
        return [r.numpy() for r in self.control(latent, picture, as_tensor(t), prompts)]

    @torch.no_grad()
    def predict(self, x: Array, t: Array, context: Array, residuals: list[Array]) -> Array:
        latent, prompts, *added = self.inputs(x, context, *residuals)
        return self.sd.unet(latent, as_tensor(t), prompts, added).numpy()

    def parameters(self) -> tuple[Arrays, Arrays]:
        base, control = ({k: v.detach().numpy() for k, v in p.items()} for p in self.tensors())
        return base, control

    def losses(self, batch: TrainingBatch) -> Tensor:
        """train.py's loss of each pair. The latents are exact, so their deviation is zero."""
        x0, noise, hint, context, empty = self.inputs(
            batch.x0, batch.noise, batch.hint, batch.context, batch.empty
        )
        pairs = Batch(x0, torch.zeros_like(x0), context, hint)
        draws = Draws(torch.zeros_like(x0), noise, as_tensor(batch.t), as_tensor(batch.dropped))
        networks = self.sd.unet, self.control, DDPM(self.sd.prediction)
        return training_loss(*networks, 1.0, pairs, draws, empty)

    @torch.no_grad()
    def loss(self, batch: TrainingBatch) -> float:
        return self.losses(batch).mean().item()

    def gradients(self, batch: TrainingBatch) -> Arrays:
        self.losses(batch).mean().backward()
        base, control = self.tensors()
        tensors = base | control
        found = {k: v.grad.numpy().copy() for k, v in tensors.items() if v.grad is not None}
        for tensor in tensors.values():
            tensor.grad = None
        return found

    def train_step(self, batch: TrainingBatch) -> None:
        loss = self.losses(batch).mean()
        self.optimizer.backward(loss)
        self.optimizer.step(loss.detach())

    def sample(
        self,
        noise: Array,
        context: Array,
        uncond: Array,
        hint: Array,
        steps: int,
        scale: float,
        guess: bool = False,
    ) -> Array:
        self.hints_encoded = 0
        latent, prompts, negative, picture = self.inputs(noise, context, uncond, hint)
        networks = self.sd, latent, prompts, negative, [(self.control, picture, 1.0)]
        how = steps, scale, self.scheduler(self.sd.prediction)
        return sample(*networks, *how, guess=guess).numpy()

    def saved(self) -> Any:
        return copied_state(self.optimizer.state())

    def resume(self, saved: Any) -> None:
        self.optimizer.restore(copied_state(saved))

    def initial_noise(self, seed: int, device: str) -> Array:
        generator = torch.Generator().manual_seed(seed)
        return initial_noise(1, 64, 64, generator).to(device).cpu().numpy()

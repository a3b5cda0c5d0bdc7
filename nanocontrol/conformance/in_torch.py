"""Adapters of PyTorch code have this in common.

A subclass sets `unet`, `control` and `optimizer` in `make`, `names` if the tensors have other
names, and `run_unet` and `run_control` if the networks are called in another way. `losses` brings
`loss`, `gradients` and `train_step`.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from numpy import ndarray as Array
from torch import Tensor, nn

from nanocontrol.conformance.adapter import Arrays, TrainingBatch
from nanocontrol.conformance.cases import BASE, CONTROL
from nanocontrol.formats.diffusers_names import renamed

Residuals = list[Tensor] | None


class TorchAdapter:
    names: Mapping[str, str] = {}  # names or their beginnings: the original's -> one's own
    unet: nn.Module
    control: nn.Module
    optimizer: torch.optim.Optimizer
    losses: Callable[[TrainingBatch], Tensor]  # the loss of each pair [B], for autograd; optional

    def run_unet(self, x: Tensor, t: Tensor, context: Tensor, residuals: Residuals) -> Tensor:
        """The base's output, with these residuals added; None for no control."""
        return self.unet(x, t, context, residuals)

    def run_control(self, x: Tensor, hint: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
        """The ControlNet's residuals, the shallowest first, the middle block's last."""
        return self.control(x, hint, t, context)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors of the base and of the ControlNet under the original's names. One that is not
        in `names` has its own name after the prefix."""
        found: dict[str, Tensor] = {}
        for prefix, network in ((BASE, self.unet), (CONTROL, self.control)):
            names = {own: name for name, own in self.names.items() if name.startswith(prefix)}
            found |= renamed(dict(network.named_parameters()), names | {"": prefix})
        return found

    def inputs(self, *arrays: Array) -> list[Tensor]:
        """Arrays as tensors on the base's device, floating-point numbers in its precision. They
        share memory where they can."""
        weight = next(self.unet.parameters())
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        return [x.to(weight if x.is_floating_point() else weight.device) for x in tensors]

    def count(self, *_: Any) -> None:
        """A forward hook for the condition encoder, which counts its runs."""
        self.hints_encoded = getattr(self, "hints_encoded", 0) + 1

    @torch.no_grad()
    def load(self, tensors: Arrays) -> None:
        own = self.tensors()
        for name, array in tensors.items():
            own[name].copy_(torch.from_numpy(np.array(array)))

    @torch.no_grad()
    def base(self, x: Array, t: Array, context: Array) -> Array:
        latent, time, prompts = self.inputs(x, t, context)
        return self.run_unet(latent, time, prompts, None).cpu().numpy()

    @torch.no_grad()
    def residuals(self, x: Array, hint: Array, t: Array, context: Array) -> list[Array]:
        return [r.cpu().numpy() for r in self.run_control(*self.inputs(x, hint, t, context))]

    @torch.no_grad()
    def predict(self, x: Array, t: Array, context: Array, residuals: list[Array]) -> Array:
        latent, time, prompts, *added = self.inputs(x, t, context, *residuals)
        return self.run_unet(latent, time, prompts, added).cpu().numpy()

    def parameters(self) -> tuple[Arrays, Arrays]:
        arrays = to_arrays(self.tensors())
        base = {name: array for name, array in arrays.items() if name.startswith(BASE)}
        return base, {name: array for name, array in arrays.items() if name not in base}

    @torch.no_grad()
    def loss(self, batch: TrainingBatch) -> float:
        return self.losses(batch).mean().item()

    def gradients(self, batch: TrainingBatch) -> Arrays:
        trained = {name: x for name, x in self.tensors().items() if x.requires_grad}
        loss = self.losses(batch).mean()
        found = torch.autograd.grad(loss, [*trained.values()], materialize_grads=True)
        return to_arrays(dict(zip(trained, found)))

    def train_step(self, batch: TrainingBatch) -> None:
        self.optimizer.zero_grad()
        self.losses(batch).mean().backward()
        self.optimizer.step()


def to_arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

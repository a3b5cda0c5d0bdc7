"""Adapters of PyTorch code have this in common.

A subclass sets `unet`, `control` and `optimizer` in `make`, `names` if the tensors have other
names, and defines `losses`, `base`, `residuals` and `predict`.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy import ndarray as Array
from torch import Tensor, nn

from nanocontrol.conformance.adapter import Adapter, Arrays, TrainingBatch
from nanocontrol.conformance.cases import BASE, CONTROL, shapes


def to_torch(array: Array, like: Tensor | None = None) -> Tensor:
    """An array as a tensor, of a weight's precision and device. It shares memory where it can."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor if like is None else tensor.to(like)


class TorchAdapter(Adapter):
    names: Mapping[str, str] | None = None  # the original's name -> one's own, without prefixes
    unet: nn.Module
    control: nn.Module
    optimizer: torch.optim.Optimizer

    def tensors(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """All tensors of the base and of the ControlNet under the original's names."""
        found = []
        for prefix, network in ((BASE, self.unet), (CONTROL, self.control)):
            own, names = dict(network.named_parameters()), self.names or {}
            every = [name for name in shapes() if name.startswith(prefix)]
            found.append({n: own[names.get(n, n.removeprefix(prefix))] for n in every})
        return found[0], found[1]  # type: ignore[return-value]

    def losses(self, batch: TrainingBatch) -> Tensor:
        """The loss of each pair [B], for autograd."""
        raise NotImplementedError("loss")

    @torch.no_grad()
    def load(self, tensors: Arrays) -> None:
        base, control = self.tensors()
        own = base | control
        for name, array in tensors.items():
            if own[name].shape != array.shape:
                raise ValueError(f"{name} is {tuple(own[name].shape)}, expected {array.shape}")
            own[name].copy_(torch.from_numpy(np.array(array)))

    def inputs(self, *arrays: Array) -> list[Tensor]:
        weight = next(self.unet.parameters())
        return [to_torch(array, weight) for array in arrays]

    def parameters(self) -> tuple[Arrays, Arrays]:
        base, control = self.tensors()
        return to_arrays(base), to_arrays(control)

    @torch.no_grad()
    def loss(self, batch: TrainingBatch) -> float:
        return self.losses(batch).mean().item()

    def gradients(self, batch: TrainingBatch) -> Arrays:
        self.losses(batch).mean().backward()
        base, control = self.tensors()
        tensors = base | control
        found = {k: v.grad.clone() for k, v in tensors.items() if v.grad is not None}
        for tensor in tensors.values():
            tensor.grad = None
        return to_arrays(found)

    def train_step(self, batch: TrainingBatch) -> None:
        self.losses(batch).mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()


def to_arrays(tensors: Mapping[str, Tensor]) -> Arrays:
    return {name: tensor.detach().cpu().numpy() for name, tensor in tensors.items()}

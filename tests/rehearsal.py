"""Sampling and training on the simulated GPU of fake_gpu.py, in a process of its own:

    python tests/rehearsal.py sampling|training [--base FILE]

It prints counts of operations, and the errors that planted mistakes cause, as JSON.
"""

import argparse
import json
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from unittest import mock

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[1]))  # the folder of train.py

import sample
import train
from conftest import small, write_pairs
from fake_gpu import FakeGPU, rehearsed
from in_float64 import no_pictures
from nanocontrol import ControlNet, load_sd, sampling, save_sd, unet
from nanocontrol.plumbing import machine
from nanocontrol.plumbing.flags import absolute
from nanocontrol.training import batches
from nanocontrol.training.optimizer import Optimizer

# ------------------------------------------------------------------------------- planted mistakes

embedding, encode_hint = unet.timestep_embedding, ControlNet.encode_hint
sum_of_residuals = sampling.sum_of_residuals


def on_the_cpu(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def changed(*given) -> Tensor:
        return torch.zeros(function(*given).shape)

    return changed


def with_an_item(*given) -> list[Tensor] | None:
    residuals = sum_of_residuals(*given)
    return residuals and [r * r.mean().item() for r in residuals]


def with_a_cpu_tensor(*given) -> list[Tensor] | None:
    residuals = sum_of_residuals(*given)
    return residuals and [r * torch.ones(1).to(r) for r in residuals]


PLANTED = {
    "mixed devices": (unet, "timestep_embedding", on_the_cpu(embedding)),
    "an item()": (sampling, "sum_of_residuals", with_an_item),
    "a copy from the CPU": (sampling, "sum_of_residuals", with_a_cpu_tensor),
    "a hint left on the CPU": (ControlNet, "encode_hint", on_the_cpu(encode_hint)),
}


# ------------------------------------------------------------------------------------ rehearsals


def rehearse_sampling(gpu: FakeGPU, base: str) -> dict:
    """Sample four pictures, then one with each mistake.

    The second picture reuses the graph of the first. The third has another strength and needs a new
    graph. Before the fourth the graph is dropped.
    """
    sd = load_sd(base, "cuda", torch.bfloat16)
    made = dict(gpu.made_of)
    control = ControlNet(sd.unet.config).to("cuda", torch.bfloat16)
    hint, counted = torch.zeros(1, 3, sd.size, sd.size), []
    picture = partial(sample.generate, sd, "a red ball", controls=[(control, hint, 1.0)], n=1)
    weaker = partial(sample.generate, sd, "a red ball", controls=[(control, hint, 0.5)], n=1)

    def count(call: Callable) -> None:
        gpu.launches.clear()
        call(steps=4)
        counted.append({"launches": gpu.launches.total(), "graphs": len(gpu.recorded)})

    for call in picture, picture, weaker:
        count(call)
    machine.forget_recorded()
    count(weaker)
    found = {}
    for name, plant in PLANTED.items():
        machine.forget_recorded()
        with mock.patch.object(*plant):
            found[name] = error_of(partial(picture, steps=2))
    return {
        "made_while_loading": made,
        "pictures": counted,
        "launches_of_a_step": gpu.recorded[0],
        "mistakes": found,
    }


def error_of(call: Callable) -> str:
    try:
        call()
    except RuntimeError as error:
        return str(error)
    return ""


def rehearse_training(gpu: FakeGPU, base: str) -> dict:
    """Count the operations of a training's third step, with and without a mistake.

    --low-memory is not covered: here gradient checkpointing would recompute a block once for each
    tensor that it saved.
    """
    pairs, found = str(write_pairs(Path("pairs"), n=20)), {}
    flags = ["--base", base, "--data", pairs, "--size", "64", "--device", "cuda", "--steps", "6"]
    for name, more, loss in (
        ("bf16", [], train.training_loss),
        ("fp16", ["--dtype", "fp16"], train.training_loss),
        ("mistake", [], partial(loss_and_wait, train.training_loss)),
    ):
        with counting_steps(gpu, loss) as (counting, steps):
            train.main([*flags, *more, "--out", name], loss=counting)
        (waits, launches), (waits_after, launches_after) = steps[2:4]
        found[name] = {
            "waits": dict(waits_after - waits),
            "launches": (launches_after - launches).total(),
        }
    with counting_steps(gpu, train.training_loss):
        train.main([*flags, "--graph", "--out", "graph"])
    found["graphs"] = gpu.recorded
    found["scale_on"] = str(optimizer_with_cpu_weights().scaler._scale.device)
    return found


def optimizer_with_cpu_weights() -> Optimizer:
    network = nn.Linear(4, 4)
    optimizer = Optimizer({"network": network}, 1e-3, "cuda", "fp16", on_cpu=True)
    loss = network(torch.zeros(1, 4, device="cuda", dtype=torch.float16)).float().sum()
    optimizer.backward(loss)
    optimizer.step(loss.detach())
    return optimizer


def loss_and_wait(loss: Callable[..., Tensor], *given) -> Tensor:
    value = loss(*given)
    value.mean().item()
    return value


@contextmanager
def counting_steps(gpu: FakeGPU, loss: Callable[..., Tensor]) -> Iterator[tuple[Callable, list]]:
    """A loss function, and the list of counts that it extends in every step."""
    counted: list = []

    def counting(*given) -> Tensor:
        counted.append((gpu.waits.copy(), gpu.launches.copy()))
        return loss(*given)

    with (
        no_pictures(),
        mock.patch.object(batches, "readers", lambda _: 0),
        mock.patch.object(torch, "save", lambda _, file: Path(file).touch()),
    ):
        yield counting, counted


def small_base() -> str:
    save_sd(small("sd1"), "base.safetensors")
    return "base.safetensors"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=["sampling", "training"])
    parser.add_argument("--base", type=absolute, help="base model (default: a small random one)")
    args = parser.parse_args()
    with TemporaryDirectory() as folder, chdir(folder), rehearsed() as gpu:
        rehearse = {"sampling": rehearse_sampling, "training": rehearse_training}[args.what]
        print(json.dumps(rehearse(gpu, args.base or small_base())))


if __name__ == "__main__":
    main()

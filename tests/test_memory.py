"""Memory does not grow in long runs. Each run is a process of its own:

python tests/test_memory.py training|sampling NUMBER
"""

import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest import mock

import pytest

TESTS = Path(__file__).parent
WARM_UP = 1 / 3  # share of the calls in which allocators and caches still fill

if __name__ == "__main__":
    sys.path[:0] = [str(TESTS.parent), str(TESTS)]


def memory() -> int:
    """Resident memory of this process, in bytes."""
    status = Path("/proc/self/status").read_text()
    return 1024 * int(re.search(r"VmRSS:\s+(\d+)", status)[1])


def counted(call: Callable, number: int) -> Callable:
    """Wrap a function to print the memory after its warm-up and after its last call."""
    calls = 0

    def with_count(*args, **kwargs):
        nonlocal calls
        result, calls = call(*args, **kwargs), calls + 1
        if calls in (round(WARM_UP * number), number):
            print("memory", memory(), flush=True)
        return result

    return with_count


def training(number: int) -> None:
    """Training steps, with an evaluation and a save every 50 steps."""
    import train
    from in_float64 import hasty_pictures
    from nanocontrol.training.watch import Watch

    flags = ["--steps", number, "--batch-size", 2, "--scenes", 64, "--device", "cpu"]
    flags += ["--sample-every", 50, "--save-every", 50, "--dtype", "fp32"]
    with hasty_pictures(), mock.patch.object(Watch, "done", counted(Watch.done, number)):
        train.main([str(flag) for flag in flags])


def sampling(number: int) -> None:
    import torch

    from nanocontrol import load_control, load_sd
    from nanocontrol.plumbing.machine import keep_freed_memory
    from sample import generate

    keep_freed_memory()
    weights = TESTS.parent / "weights"
    sd = load_sd(weights / "nano.safetensors")
    control = load_control(weights / "nano-control-canny.safetensors", sd.unet)
    controls = [(control, torch.zeros(1, 3, sd.size, sd.size), 1.0)]
    call = counted(generate, number)
    for seed in range(number):
        call(sd, "a red ball", controls=controls, n=1, seed=seed, steps=2)


@pytest.mark.long
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads memory from /proc")
@pytest.mark.parametrize(("what", "number"), [("training", 1500), ("sampling", 300)])
def test_memory_does_not_grow(what, number, tmp_path):
    command = [sys.executable, __file__, what, str(number)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    early, late = (int(held) for held in re.findall(r"memory (\d+)", done.stdout))
    assert late < 1.01 * early


if __name__ == "__main__":
    {"training": training, "sampling": sampling}[sys.argv[1]](int(sys.argv[2]))

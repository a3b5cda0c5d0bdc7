"""A seed gives bitwise equal results on one machine, whatever ran before in the process. Other CPU
instruction sets give nearly equal pictures."""

import ast
import os
import platform
import random
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from test_house import FILES

import sample
import train
from conftest import NANO, ROOT, opened, write_pairs
from nanocontrol.nano import data as nano_data
from nanocontrol.nano import train as nano_train
from nanocontrol.nano.scenes import Scenes
from nanocontrol.training import batches

TRAIN = ["--steps", "3", "--batch-size", "2", "--device", "cpu", "--dtype", "fp32", "--save-every"]
TRAIN += ["3", "--sample-every", "9"]


@pytest.fixture
def default_dtype() -> Iterator[None]:
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def pairs(tmp_path_factory) -> str:
    return str(write_pairs(tmp_path_factory.mktemp("pairs"), n=6))  # two are held out


def unrelated_work(pairs: str) -> None:
    """Unrelated work: draw from every global generator, train another model, sample pictures."""
    torch.manual_seed(1234)
    random.seed(5), np.random.seed(6)
    torch.rand(7), random.random(), np.random.rand(8)
    train.main(
        [
            *TRAIN,
            "--steps",
            "1",
            "--seed",
            "9",
            "--base",
            NANO,
            "--data",
            pairs,
            "--size",
            "64",
            "--out",
            "something",
        ]
    )
    sample.main(["--steps", "1", "--n", "1", "--seed", "3", "--out", "something-else"])


def saved_state(folder: str) -> dict[str, torch.Tensor]:
    """Saved weights, moments and counters by name."""
    state = torch.load(Path(folder) / "state.pt")
    found = {f"{net} {k}": v for net, w in state["weights"].items() for k, v in w.items()}
    for i, moments in state["optimizer"]["state"].items():
        found |= {f"{i} {k}": v for k, v in moments.items()}
    return found


def assert_same_run(a: str, b: str) -> None:
    ours, theirs = saved_state(a), saved_state(b)
    assert ours.keys() == theirs.keys() and len(ours) > 50
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert Path(a, "log.jsonl").read_bytes() == Path(b, "log.jsonl").read_bytes()


# ------------------------------------------------------------------- earlier work in the process


@pytest.mark.slow
def test_pictures_do_not_depend_on_what_ran_before(pairs, blind, default_dtype):
    def pictures(folder: str, *flags: str) -> np.ndarray:
        flags += "--steps", "2", "--n", "1", "--device", "cpu", "--out"
        sample.main([*flags, f"{folder}/ddim"])
        sample.main(["--sampler", "ddpm", *flags, f"{folder}/ddpm"])
        files = f"{folder}/ddim/sheet.png", f"{folder}/ddpm/sheet.png"
        return np.stack([np.asarray(opened(file)) for file in files])

    before = pictures("before")
    unrelated_work(pairs)
    torch.set_default_dtype(torch.float64)
    assert (before == pictures("after")).all()
    assert (before != pictures("other", "--seed", "1")).any()


@pytest.mark.slow
def test_a_training_does_not_depend_on_what_ran_before(pairs, blind):
    flags = [*TRAIN, "--base", NANO, "--data", pairs, "--size", "64"]
    train.main([*flags, "--out", "before"])
    unrelated_work(pairs)
    train.main([*flags, "--out", "after"])
    assert_same_run("before", "after")


@pytest.mark.slow
@pytest.mark.parametrize("part", ["vae", "base", "decoder", "detector"])
def test_a_training_of_nano_does_not_depend_on_what_ran_before(part, pairs, blind):
    flags = [
        part,
        *TRAIN,
        "--scenes",
        "8",
        *(["--base", NANO] if part in ("base", "decoder") else []),
    ]
    nano_train.main([*flags, "--out", "before"])
    unrelated_work(pairs)
    nano_train.main([*flags, "--out", "after"])
    assert_same_run("before", "after")


@pytest.mark.slow
@pytest.mark.parametrize("data", ["pairs", "pairs, encoded once", "scenes"])
def test_reader_processes_do_not_change_the_result(data, pairs, blind, monkeypatch):
    class Small(Scenes):
        def __init__(self, *which, n, size):
            super().__init__(*which, n=8, size=64)

    monkeypatch.setattr(nano_data, "Scenes", Small)
    flags = TRAIN if data == "scenes" else [*TRAIN, "--base", NANO]
    flags += [] if data == "scenes" else ["--data", pairs, "--size", "64"]
    for readers in (0, 2):
        monkeypatch.setattr(batches, "readers", lambda device: readers)
        cached = ["--cache", f"cache-{readers}"] if "once" in data else ["--no-cache"]
        train.main([*flags, *cached, "--out", f"{readers} readers"])
    assert_same_run("0 readers", "2 readers")


# --------------------------------------------------------------------------------- random draws

DRAWS = r"torch\.(rand|randn|randint|randperm|normal|bernoulli|multinomial)(_like)?"
DRAWS += r"|(?!nn\.init).*\.(normal|uniform|random|bernoulli|exponential)_|(F|nn)\.[dD]ropout.*"
INITIALISATION = "new_nano"  # draws on the CPU after torch.manual_seed, as PyTorch's layers do


def test_noise_is_drawn_on_the_cpu_with_explicit_generators():
    """Noise is then equal on every device. Checked in the source, without other devices."""
    found = []
    for file in FILES:
        functions = [
            f for f in ast.walk(ast.parse(file.read_text())) if isinstance(f, ast.FunctionDef)
        ]
        functions = [function for function in functions if function.name != INITIALISATION]
        for call in (c for f in functions for c in ast.walk(f) if isinstance(c, ast.Call)):
            name, where = ast.unparse(call.func), f"{file.name}: {ast.unparse(call)}"
            given = {keyword.arg for keyword in call.keywords}
            if name.endswith("Generator"):
                assert where.endswith(("Generator()", "Generator('cpu')")), where
            elif re.fullmatch(DRAWS, name):
                assert "generator" in given and "device" not in given, where
                found.append(where)
    assert len(found) > 10


# ------------------------------------------------------------------------- CPU instruction sets

PROGRAM = "import sample, torch; sample.main(); print(torch.backends.cpu.get_cpu_capability())"


def sheet(folder: str, *flags: str, **environment: str) -> tuple[np.ndarray, str]:
    """The sheet that sample.py makes in a process of its own, and the output of the process."""
    command = [sys.executable, "-c", PROGRAM, "--device", "cpu", "--out", folder, *flags]
    environment |= {"PYTHONPATH": str(ROOT), "ONEDNN_VERBOSE": "1"}
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return np.asarray(opened(f"{folder}/sheet.png")).astype(int), done.stdout


@pytest.mark.slow
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="needs an x86 processor")
def test_other_instruction_sets_change_no_byte_of_a_picture_by_more_than_two():
    own, _ = sheet("own")
    again, _ = sheet("again")
    assert (own == again).all()
    different, _ = sheet("other", "--seed", "1")
    assert abs(own - different).max() > 100
    for environment, says in [
        ({"ATEN_CPU_CAPABILITY": "default"}, "DEFAULT"),
        ({"ATEN_CPU_CAPABILITY": "avx2"}, "AVX2"),
        ({"ONEDNN_MAX_CPU_ISA": "AVX2"}, "isa:Intel AVX2"),
    ]:
        made, said = sheet(says, **environment)
        assert says in said, said[-300:]
        assert abs(made - own).max() <= 2, environment

"""The commands in bench/ run from end to end, on a CPU and with nano."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from conftest import NANO, ROOT
from nanocontrol import load_sd

pytestmark = pytest.mark.slow
BENCH = ROOT / "tests" / "bench"


def called(script: str, *flags: str) -> subprocess.CompletedProcess:
    command = [sys.executable, str(BENCH / script), *flags]
    return subprocess.run(command, capture_output=True, text=True)


def test_every_row_for_a_gpu_is_measured_or_says_why_not():
    done = called("gpu.py", "--device", "cpu", "--minutes", "0.7", "--out", "found")
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in Path("found/rows.jsonl").read_text().splitlines()]
    assert lines[0]["row"] == "machine" and len(lines) > 25
    for line in lines[1:]:
        assert ("seconds" in line) + ("skipped" in line) + ("failed" in line) == 1, line
    failed = {line["failed"] for line in lines if "failed" in line}
    assert failed <= {"it did not end in time"}  # beside other work the last one may not
    first = lines[1]
    assert first["row"] == "training: ours, 1" and first["pairs_per_second"] > 0
    assert first["tflop_per_second"] > 0


def test_readers_are_measured_before_and_now():
    flags = ["--size", "64", "--pairs", "16", "--batch-size", "4", "--seconds", "0.3"]
    done = called("readers.py", *flags, "--rounds", "1")
    assert done.returncode == 0, done.stderr
    rows = json.loads(Path("readers.json").read_text())
    for name, bits in ("--hints canny", 64 * 64), ("hint files", 0):
        row = rows[name]
        assert row["before"] > 0 and row["now"] > 0 and f"| {name} |" in done.stdout
        assert row["before_cpu"] > 0 and row["now_cpu"] > 0
        # bf16 latents, two numbers, edges; then contexts. A key has 32 bytes, a header under 4 KB.
        keys = 32 * (3 if bits else 2)
        each, context = 2 * 2 * 4 * 8 * 8 + 16 + bits / 8 + keys, 2 * 77 * 768
        assert each + context < row["bytes"] < each + context + 256
        assert each + context / 16 < row["bytes_with_equal_prompts"] < each + context / 16 + 256


def test_second_starts_open_no_picture():
    done = called("starts.py", "--pairs", "300", "--files", "20")
    assert done.returncode == 0, done.stderr
    rows = json.loads(Path("starts.json").read_text())
    opened = [row["opened_before_the_batch"] for name, row in rows.items() if name != "machine"]
    assert opened == [40, 0, 0, 0] and all(f"| {name} |" in done.stdout for name in [*rows][:4])


def test_a_base_is_trained_for_some_seconds_and_comes_in_parts():
    flags = ["--base", NANO, "--size", "64", "--scenes", "64", "--batch-size", "4"]
    flags += ["--device", "cpu", "--minutes", "0.4", "--out", "trained"]
    done = called("train_base.py", *flags)
    assert done.returncode == 0, done.stderr
    parts = sorted(Path("trained/weights").iterdir())
    assert len(parts) > 1 and max(part.stat().st_size for part in parts) < 16 * 2**20
    last = json.loads(Path("trained/log.jsonl").read_text().splitlines()[-1])
    assert last["step"] > 0 and last["held_out_loss"] < 1 and Path("trained/sheet.png").exists()

    join = ["--join", "trained/weights", "--out", "joined.safetensors"]
    assert called("train_base.py", *join).returncode == 0
    old, new = load_sd(NANO), load_sd("joined.safetensors")
    assert new.size == 64 and new.scale_factor == old.scale_factor
    for name, same in {"vae": True, "unet": False, "text_encoder": False}.items():
        ours, theirs = (getattr(sd, name).state_dict() for sd in (old, new))
        assert all(torch.equal(ours[key], theirs[key]) for key in ours) == same, name
    parts[-1].unlink()
    refused = called("train_base.py", *join)
    assert refused.returncode == 2 and "does not have all parts" in refused.stderr

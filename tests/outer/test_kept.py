"""The weights that a run keeps are read by sample.py and by the tools."""

from pathlib import Path

import pytest
from safetensors.torch import load_file

import sample
import train
from conftest import NANO, write_pairs
from nanocontrol.tools.to_diffusers import main as export
from nanocontrol.tools.transfer import main as transfer


@pytest.mark.slow
def test_kept_weights_are_sampled_exported_and_transferred(hasty):
    pairs = str(write_pairs(Path("pairs"), n=6))
    flags = ["--data", pairs, "--size", "64", "--steps", "3", "--batch-size", "2", "--lr", "1e-3"]
    flags += ["--sample-every", "1", "--keep", "2", "--unlock", "decoder", "--device", "cpu"]
    train.main([*flags, "--out", "run"])
    run = Path("run")
    kept = [("best", run / "control-best.safetensors", run / "base-best.safetensors")]
    for control in sorted(run.glob("weights/control-*")):
        kept.append(
            (control.stem, control, control.with_name(control.name.replace("control", "base")))
        )
    assert len(kept) == 3
    for name, control, base in kept:
        with_them = ["--control", str(control), "--base", str(base), "--hint", f"{pairs}/hint0.png"]
        sample.main(
            [*with_them, "--prompt", "", "--steps", "1", "--n", "1", "--out", f"{name}-out"]
        )
        assert Path(f"{name}-out/sheet.png").exists()
        export(["--control", str(control), "--out", f"{name}-diffusers"])
        tensors = load_file(control)
        assert len(load_file(f"{name}-diffusers/diffusion_pytorch_model.safetensors")) == len(
            tensors
        )
        out = f"{name}-moved.safetensors"
        transfer(["--control", str(control), "--from", NANO, "--to", str(base), "--out", out])
        assert load_file(out).keys() == tensors.keys()

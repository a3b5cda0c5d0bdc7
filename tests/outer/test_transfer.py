"""`nanocontrol.tools.transfer`: move a ControlNet from one base to another."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import CONFIGS, randomise, refusal
from nanocontrol import ControlNet, load_control, load_sd, save_control, save_sd
from nanocontrol.tools.transfer import main as transfer


@pytest.fixture
def style() -> str:
    """One style is enough: only names matter here."""
    return "sd1"


@pytest.fixture
def bases(sd, tmp_path) -> tuple[Path, Path]:
    """Files of two base models with equal architectures."""
    save_sd(sd, tmp_path / "a.safetensors")
    randomise(sd.unet, seed=7), randomise(sd.vae, seed=8)
    save_sd(sd, tmp_path / "b.safetensors")
    return tmp_path / "a.safetensors", tmp_path / "b.safetensors"


def transferred(control: Path, a: Path, b: Path) -> dict[str, torch.Tensor]:
    out = control.parent / f"{control.stem}-to-{b.stem}.safetensors"
    transfer([*f"--control {control} --from {a} --to {b} --out {out}".split()])
    return load_file(out)


def test_transfer_adds_the_difference_of_the_bases(bases, trained_control, tmp_path):
    save_control(trained_control, tmp_path / "c.safetensors")
    c, (a, b) = load_file(tmp_path / "c.safetensors"), map(load_file, bases)
    new = transferred(tmp_path / "c.safetensors", *bases)
    assert new.keys() == c.keys()
    moved = 0
    for name, tensor in new.items():
        base_name = name.replace("control_model.", "model.diffusion_model.")
        if base_name in a:  # the original's formula, in its order of operations
            expected = c[name] + b[base_name] - a[base_name]
            torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
            moved += not torch.equal(tensor, c[name])
        else:
            assert torch.equal(tensor, c[name])
            assert any(part in name for part in ("zero_convs", "hint", "middle_block_out"))
    assert moved > 50
    unet = load_sd(bases[1]).unet
    assert load_control(tmp_path / "c-to-b.safetensors", unet).config == trained_control.config


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_transfer_to_the_same_base_changes_nothing(bases, trained_control, tmp_path, dtype):
    save_control(trained_control.to(dtype), tmp_path / "c.safetensors")
    new = transferred(tmp_path / "c.safetensors", bases[0], bases[0])
    c = load_file(tmp_path / "c.safetensors")
    assert all(torch.equal(new[name], c[name]) and new[name].dtype == c[name].dtype for name in c)


@pytest.mark.slow
def test_transfer_of_a_whole_model_keeps_its_decoders_difference(bases, trained_control, tmp_path):
    """ControlNet 1.0's files include a decoder, which may differ from the base's."""
    a, b = map(load_file, bases)
    own = trained_control.state_dict().items()
    c = a | {f"control_model.{name}": tensor for name, tensor in own}
    out = "model.diffusion_model.out.2.bias"
    c[out] = c[out] + 1
    save_file(c, tmp_path / "c.safetensors")
    new = transferred(tmp_path / "c.safetensors", *bases)
    assert new.keys() == c.keys()
    torch.testing.assert_close(new[out], b[out] + 1)
    assert all(torch.equal(new[name], b[name]) for name in b if "diffusion_model" not in name)


@pytest.mark.slow
def test_transfer_refuses_bad_input(bases, tmp_path, capsys):
    save_control(ControlNet(CONFIGS["sd2"]), tmp_path / "c.safetensors")
    save_file({"x": torch.zeros(1)}, tmp_path / "exists.safetensors")
    before = (tmp_path / "exists.safetensors").read_bytes()
    tensors = load_file(bases[0])
    del tensors["model.diffusion_model.time_embed.0.weight"]
    save_file(tensors, tmp_path / "cut.safetensors")
    for control, base, out, words in [
        ("c", "a", "new", "c.safetensors is for"),
        ("c", "cut", "new", "--from"),
        ("missing", "a", "new", "--control"),
        ("a", "a", "new", "--control"),
        ("c", "a", "exists", "--out"),
        ("c", "a", "nowhere/new", "--out"),
    ]:
        files = {"--from": tmp_path / f"{base}.safetensors", "--to": bases[1]}
        files |= {"--control": tmp_path / f"{control}.safetensors"}
        files |= {"--out": tmp_path / f"{out}.safetensors"}
        flags = [str(part) for flag in files.items() for part in flag]
        assert words in refusal(transfer, capsys, *flags)
    assert not (tmp_path / "new.safetensors").exists()
    assert (tmp_path / "exists.safetensors").read_bytes() == before


def test_weights_that_would_leave_float16_are_refused(bases, trained_control, tmp_path, capsys):
    save_control(trained_control.half(), tmp_path / "c.safetensors")
    far = load_file(bases[1])
    far["model.diffusion_model.input_blocks.1.0.in_layers.2.bias"][0] = 1e5
    with safe_open(bases[1], "pt") as file:
        save_file(far, tmp_path / "far.safetensors", file.metadata())
    flags = ["--control", tmp_path / "c.safetensors", "--from", bases[0]]
    flags += ["--to", tmp_path / "far.safetensors", "--out", tmp_path / "out.safetensors"]
    message = refusal(transfer, capsys, *map(str, flags))
    assert f"--control {tmp_path / 'c.safetensors'}: input_blocks.1.0.in_layers.2.bias" in message
    assert "would leave float16's range; expected float32" in message
    assert not (tmp_path / "out.safetensors").exists()

"""diffusers' layout, the transfer to other bases, and what tools.explain says."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import CONFIGS, randomise, refusal
from nanocontrol import ControlNet, InputError, UNet, load_control, load_sd, save_control, save_sd
from nanocontrol.controlnet import HINT_LAYERS
from nanocontrol.formats import tensors
from nanocontrol.formats.diffusers_names import from_diffusers, to_diffusers
from nanocontrol.nano.model import name_of
from nanocontrol.tools import explain as explain_module
from nanocontrol.tools.explain import explain
from nanocontrol.tools.explain import main as explain_command
from nanocontrol.tools.to_diffusers import config_of
from nanocontrol.tools.to_diffusers import main as export
from nanocontrol.tools.transfer import main as transfer
from nanocontrol.unet import SD1, SD2

# The names that diffusers 0.42.1's own `convert_controlnet_checkpoint` gives to the original's, the
# same for Stable Diffusion 1 and 2.
NAMES = json.loads((Path(__file__).parent / "fixtures" / "diffusers_names.json").read_text())
WEIGHTS = Path(__file__).parents[1] / "weights"
NANO, CONTROL = WEIGHTS / "nano.safetensors", WEIGHTS / "nano-control-canny.safetensors"
LAYERS = len(HINT_LAYERS)


@pytest.fixture
def style() -> str:
    """One is enough here: it is about names."""
    return "sd1"


@pytest.mark.parametrize("config", [SD1, SD2])
def test_names_are_diffusers(config):
    with torch.device("meta"):
        ours = ControlNet(config).state_dict()
    theirs = to_diffusers(ours, len(config.channel_mult), config.num_res_blocks, LAYERS)
    assert len(theirs) == len(NAMES) == 340
    assert all(theirs[NAMES[name]] is tensor for name, tensor in ours.items())
    back = from_diffusers(theirs, LAYERS)
    assert back.keys() == ours.keys() and all(back[name] is ours[name] for name in ours)


def test_round_trip_to_the_bit(tmp_path, capsys):
    folder = tmp_path / "for-diffusers"
    export(["--control", str(CONTROL), "--out", str(folder)])
    file = folder / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    assert "controlnet_mid_block.weight" in tensors and len(tensors) == len(load_file(CONTROL))
    unet = load_sd(NANO).unet
    ours, theirs = load_control(CONTROL, unet).state_dict(), load_control(file, unet).state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    config = json.loads((folder / "config.json").read_text())
    assert config["block_out_channels"] == [32, 64, 128] and config["norm_num_groups"] == 4
    del tensors["controlnet_mid_block.bias"]
    save_file(tensors, cut := tmp_path / "cut.safetensors")
    for file, out, word in [(CONTROL, folder, "--out"), (cut, tmp_path / "new", "--control")]:
        with pytest.raises(SystemExit) as end:
            export(["--control", str(file), "--out", str(out)])
        assert end.value.code == 2 and word in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_a_tensor_of_diffusers_without_a_place_is_refused(tmp_path):
    """As the larger models have them."""
    with safe_open(CONTROL, "pt") as file:
        metadata, unet = file.metadata(), load_sd(NANO).unet
    tensors = to_diffusers(load_file_without_prefix(CONTROL), 3, 1, LAYERS)
    save_file(tensors, tmp_path / "c.safetensors", metadata)
    load_control(tmp_path / "c.safetensors", unet)
    tensors["add_embedding.linear_1.weight"] = torch.zeros(1)
    save_file(tensors, tmp_path / "c.safetensors", metadata)
    with pytest.raises(InputError, match="holds 1 tensors without a place: add_embedding"):
        load_control(tmp_path / "c.safetensors", unet)


def test_what_diffusers_is_told_of_the_architecture():
    sd1 = {
        "block_out_channels": [320, 640, 1280, 1280],
        "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
        "layers_per_block": 2,
        "cross_attention_dim": 768,
        "attention_head_dim": [8, 8, 8, 8],
        "use_linear_projection": False,
        "norm_num_groups": 32,
        "conditioning_embedding_out_channels": [16, 32, 96, 256],
        "_class_name": "ControlNetModel",
    }
    sd2 = {"cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20]}
    with torch.device("meta"):
        assert config_of(ControlNet(SD1)) == sd1
        assert config_of(ControlNet(SD2)) == sd1 | sd2 | {"use_linear_projection": True}
        narrow = {"conditioning_embedding_out_channels": [8, 16, 32, 64]}
        assert config_of(ControlNet(SD1, (8, 16, 32, 64))) == sd1 | narrow


def load_file_without_prefix(path: Path) -> dict[str, torch.Tensor]:
    return {n.removeprefix("control_model."): tensor for n, tensor in load_file(path).items()}


# ----------------------------------------------------------------------------------- transfer


@pytest.fixture
def bases(sd, tmp_path) -> tuple[Path, Path]:
    """Two base models of one architecture."""
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
        if base_name in a:  # the original's formula, in its order
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
def test_transfer_of_a_whole_model(bases, trained_control, tmp_path):
    """As the files of ControlNet 1.0, whose decoder may differ from its base's."""
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
def test_transfer_refuses(bases, tmp_path, capsys):
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
        with pytest.raises(SystemExit) as end:
            transfer([str(part) for flag in files.items() for part in flag])
        assert end.value.code == 2 and words in capsys.readouterr().err
    assert not (tmp_path / "new.safetensors").exists()
    assert (tmp_path / "exists.safetensors").read_bytes() == before


# ------------------------------------------------------------------------------------ explain


def facts(path: Path) -> dict[str, str]:
    return {k: v.strip() for k, v in (line.split(":", 1) for line in explain(path).splitlines())}


def test_explain_says_what_was_checked(tmp_path, monkeypatch):
    weights = load_file(CONTROL)
    torch.save(weights, old := tmp_path / "a.pth")
    assert facts(Path(CONTROL))["checked"].endswith("finite; it has no checksum")
    assert "checksums are right" in facts(old)["checked"]
    weights["control_model.middle_block_out.0.bias"][0] = math.nan
    save_file(weights, bad := tmp_path / "bad.safetensors")
    monkeypatch.setattr(explain_module, "SMALL", 1000)
    monkeypatch.setattr(tensors, "SMALL", 1000)  # so all files are large ones
    assert "--check" in facts(bad)["checked"]
    with pytest.raises(InputError, match="bad.safetensors: control_model.+ holds NaN"):
        explain(bad, check=True)
    data = bytearray(old.read_bytes())
    data[len(data) // 2] ^= 1
    old.write_bytes(data)
    assert "--check" in facts(old)["checked"]
    with pytest.raises(InputError, match="a.pth"):
        explain(old, check=True)


def test_explain_is_a_command(tmp_path, capsys):
    for flags in ([str(CONTROL)], [str(CONTROL), "--check"]):
        explain_command(flags)
        assert capsys.readouterr().out == explain(CONTROL) + "\n"
    (text := tmp_path / "text.png").write_text("no weights")
    assert refusal(explain_command, capsys, str(text)).startswith(f"explain: {text}: expected a .s")


def test_explain_a_base_and_a_controlnet():
    base, control = facts(NANO), facts(CONTROL)
    assert base["holds"].startswith("a base") and base["base"] == "nano, predicts eps"
    assert base["precision"] == "float16 (624 tensors)" and base["tensors"].startswith("624,")
    assert '"size' in base["metadata"] and base["layout"] == "the original's"
    assert control["holds"] == "a ControlNet" and control["control"] == "for nano"
    assert control["prefixes"] == "control_model." and "--init-control" in control["use as"]
    assert name_of(SD1) == "Stable Diffusion 1" and name_of(SD2) == "Stable Diffusion 2"


def test_explain_other_layouts_and_what_is_refused(tmp_path):
    tensors = load_file_without_prefix(CONTROL)
    save_file(tensors, tmp_path / "bare.safetensors")  # without our metadata: 8 heads, 32 groups
    bare = facts(tmp_path / "bare.safetensors")
    assert bare["prefixes"] == "none" and bare["metadata"] == "{}"
    assert "32 channels" in bare["control"]
    save_file(to_diffusers(tensors, 3, 1, LAYERS), tmp_path / "d.safetensors")
    assert facts(tmp_path / "d.safetensors")["layout"] == "diffusers'"
    save_file({"lora_up": torch.zeros(1)}, tmp_path / "lora.safetensors")
    lora = facts(tmp_path / "lora.safetensors")
    assert lora["use as"].startswith("nothing") and "lora_up" in lora["layout"]
    with pytest.raises(InputError, match="expected a .safetensors"):
        explain(Path(__file__))


def test_explain_a_base_and_a_controlnet_in_one_file(sd, trained_control, tmp_path):
    save_sd(sd, tmp_path / "base.safetensors")
    own = trained_control.state_dict().items()
    whole = load_file(tmp_path / "base.safetensors")
    whole |= {f"control_model.{name}": tensor for name, tensor in own}
    torch.save(whole, tmp_path / "whole.pth")
    both = facts(tmp_path / "whole.pth")
    assert both["holds"] == "a base model (U-Net, VAE and text encoder) and a ControlNet"
    assert "base inside" in both["use as"] and both["metadata"].startswith("none")
    del whole["control_model.middle_block_out.0.bias"]
    save_file(whole, tmp_path / "cut.safetensors")
    assert "lacks 1 tensors" in facts(tmp_path / "cut.safetensors")["use as"]


def test_the_table_is_for_any_number_of_levels():
    for config in CONFIGS.values():
        with torch.device("meta"):
            ours, unet = ControlNet(config).state_dict(), UNet(config).state_dict()
        theirs = to_diffusers(ours, len(config.channel_mult), config.num_res_blocks, LAYERS)
        assert from_diffusers(theirs, LAYERS).keys() == ours.keys()
        assert not theirs.keys() & unet.keys()  # every name is another one

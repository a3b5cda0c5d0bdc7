"""`nanocontrol.tools.explain`: its description of a file."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import CONTROL, NANO, refusal
from nanocontrol import InputError, save_sd
from nanocontrol.controlnet import HINT_LAYERS
from nanocontrol.formats import tensors
from nanocontrol.formats.diffusers_names import to_diffusers
from nanocontrol.nano.model import name_of
from nanocontrol.tools import explain as explain_module
from nanocontrol.tools.explain import explain
from nanocontrol.tools.explain import main as explain_command
from nanocontrol.unet import SD1, SD2
from strange.harness import WEIGHTS, Case, Process, can_try, complaint
from strange.names import NUMBER, STRANGE_NAMES, saved

LAYERS = len(HINT_LAYERS)


@pytest.fixture
def style() -> str:
    """One style is enough: only names matter here."""
    return "sd1"


def facts(path: str | Path) -> dict[str, str]:
    return {
        k: v.strip() for k, v in (line.split(":", 1) for line in explain(Path(path)).splitlines())
    }


def test_explain_says_what_was_checked(tmp_path, monkeypatch):
    weights = load_file(CONTROL)
    torch.save(weights, old := tmp_path / "a.pth")
    assert facts(CONTROL)["checked"].endswith("finite; it has no checksum")
    assert "checksums are right" in facts(old)["checked"]
    weights["control_model.middle_block_out.0.bias"][0] = math.nan
    save_file(weights, bad := tmp_path / "bad.safetensors")
    monkeypatch.setattr(explain_module, "SMALL", 1000)
    monkeypatch.setattr(tensors, "SMALL", 1000)  # so every file counts as large
    assert "--check" in facts(bad)["checked"]
    with pytest.raises(InputError, match="bad.safetensors: control_model.+ holds NaN"):
        explain(bad, check=True)
    data = bytearray(old.read_bytes())
    data[len(data) // 2] ^= 1
    old.write_bytes(data)
    assert "--check" in facts(old)["checked"]
    with pytest.raises(InputError, match="a.pth"):
        explain(old, check=True)


def test_explain_prints_as_a_command(tmp_path, capsys):
    for flags in ([str(CONTROL)], [str(CONTROL), "--check"]):
        explain_command(flags)
        assert capsys.readouterr().out == explain(Path(CONTROL)) + "\n"
    (text := tmp_path / "text.png").write_text("no weights")
    assert f"explain: {text} is cut off or not a" in refusal(explain_command, capsys, str(text))


def test_a_base_and_a_controlnet_are_explained():
    base, control = facts(NANO), facts(CONTROL)
    assert base["holds"].startswith("a base") and base["base"] == "nano, predicts eps"
    assert base["precision"] == "float16 (624 tensors)" and base["tensors"].startswith("624,")
    assert '"size' in base["metadata"] and base["layout"] == "the original's"
    assert control["holds"] == "a ControlNet" and control["control"] == "for nano"
    assert control["prefixes"] == "control_model." and "--init-control" in control["use as"]
    assert name_of(SD1) == "Stable Diffusion 1" and name_of(SD2) == "Stable Diffusion 2"


def test_other_layouts_are_explained_and_other_files_refused(tmp_path):
    tensors = {n.removeprefix("control_model."): x for n, x in load_file(CONTROL).items()}
    save_file(tensors, tmp_path / "bare.safetensors")  # without metadata: 8 heads, 32 groups
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


def test_a_file_of_a_base_and_a_controlnet_is_explained(sd, trained_control, tmp_path):
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


def test_parts_that_a_base_lacks_are_named(tmp_path):
    tensors = load_file(NANO)
    for gone, words in (
        ("first_stage_model.", "a U-Net without VAE"),
        ("cond_stage_model.", "a U-Net without text encoder"),
        (("first_stage_model.", "cond_stage_model."), "a U-Net without VAE and text encoder"),
    ):
        some = {name: x for name, x in tensors.items() if not name.startswith(gone)}
        save_file(some, tmp_path / "a.safetensors")
        found = facts(tmp_path / "a.safetensors")
        assert found["holds"] == words and "has no " in found["use as"]


def test_other_kinds_of_models_are_named(tmp_path):
    save_file({"lora_unet_x.alpha": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert facts(tmp_path / "a.safetensors")["holds"] == "a LoRA"


# ------------------------------------------------------------------------------- untrusted text


def read_explained(path: Path) -> dict[str, Tensor]:
    lines = explain(path).splitlines()
    assert all(line.isprintable() and len(line) < 1000 for line in lines), lines
    return {}


def a_file_of_strange_names(folder: Path) -> Path:
    names = [name for name in STRANGE_NAMES.values() if len(name) < 100]
    return saved({name: NUMBER.clone() for name in names}, folder)


def a_file_of_strange_metadata(folder: Path) -> Path:
    return saved(WEIGHTS, folder, {"title": "\x1b[2J" * 100_000})


@pytest.mark.skipif(not can_try(), reason="needs Linux, which reports peak memory")
@pytest.mark.filterwarnings("ignore:.*fork")  # the forked process reads a file and ends
@pytest.mark.parametrize("write", [a_file_of_strange_names, a_file_of_strange_metadata])
def test_a_strange_file_is_explained_in_printable_lines(write, tmp_path):
    """Time and memory are bounded as for the files in tests/strange."""
    case = Case(write.__name__, write, "loads", read_explained, {}, "", False)
    process = Process(lambda _: complaint(case, case.write(tmp_path)))
    said = process.ask("")
    process.end()
    assert said == ""

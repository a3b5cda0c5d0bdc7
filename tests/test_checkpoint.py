"""Checkpoint files: published layouts, supported formats, and files that are refused."""

import json
import pickle
import re
import struct
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from conftest import CONFIGS, randomise
from nanocontrol import (
    VAE,
    ControlNet,
    InputError,
    UNet,
    VAEConfig,
    load_control,
    load_sd,
    sample,
    save_control,
    save_sd,
)
from nanocontrol import controlnet as controlnet_module
from nanocontrol.checkpoint import guess_prediction
from nanocontrol.clip import CLIPTextEncoder, OpenCLIPTextEncoder, TextConfig
from nanocontrol.formats.original_names import IGNORED
from nanocontrol.unet import SD1, SD2

FIXTURES = Path(__file__).parent / "fixtures"
BYTES = {"F32": 4, "F16": 2, "I64": 8, "I32": 4}


def published(name: str) -> dict[str, tuple[str, list[int]]]:
    """name -> (dtype, shape) of every tensor in a published file."""
    return json.loads((FIXTURES / f"{name}.json").read_text())


def write_sparse_file(path: Path, tensors: dict[str, tuple[str, list[int]]]) -> Path:
    """Write a safetensors file of zeros with the published layout. It is sparse on disk."""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, (dtype, shape) in sorted(tensors.items()):
        begin, end = end, end + BYTES[dtype] * int(np.prod(shape, dtype=np.int64))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    text = json.dumps(header, separators=(",", ":")).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + end)
    return path


def memory_in_use() -> int:
    """Anonymous memory of this process in bytes, without mapped files. 0 where /proc is missing."""
    status = Path("/proc/self/status")
    found = status.exists() and re.search(r"RssAnon:\s+(\d+)", status.read_text())
    return 1024 * int(found[1]) if found else 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, config, text, size",
    [
        ("sd15", SD1, TextConfig(), 4_265_146_304),
        ("sd21", SD2, TextConfig(width=1024, layers=24), 5_214_604_494),
    ],
)
def test_published_layouts_load(tmp_path, name, config, text, size):
    path = write_sparse_file(tmp_path / "model.safetensors", published(name))
    assert path.stat().st_size == size  # size of the file on the model hub
    before = memory_in_use()
    sd = load_sd(path, prediction="eps")
    assert memory_in_use() - before < 0.1 * size  # the file is mapped, no tensor is copied
    assert sd.unet.config == config and sd.text_encoder.config == text
    assert (sd.scale_factor, sd.guidance) == (0.18215, 9.0)
    control = write_sparse_file(tmp_path / "control.safetensors", published("control_" + name))
    assert len(load_control(control, sd.unet).zero_convs) == 12
    parameters = [*sd.unet.parameters(), *sd.vae.parameters(), *sd.text_encoder.parameters()]
    assert {p.dtype for p in parameters} == {torch.float32}
    assert not any(p.requires_grad for p in parameters)


@pytest.mark.parametrize("name, config", [("control_sd15", SD1), ("control_sd21", SD2)])
def test_a_new_controlnet_has_the_published_names_and_shapes(name, config):
    with torch.device("meta"):
        control = ControlNet(config)
    own = {"control_model." + key: ["F32", [*t.shape]] for key, t in control.state_dict().items()}
    assert own == {key: value for key, value in published(name).items()}
    assert len(own) == 340


@pytest.mark.parametrize(
    "name, config, text_encoder, text_keys",
    [
        ("sd15", SD1, CLIPTextEncoder, "cond_stage_model.transformer."),
        ("sd21", SD2, OpenCLIPTextEncoder, "cond_stage_model.model."),
    ],
)
def test_the_networks_have_the_published_names_and_shapes(name, config, text_encoder, text_keys):
    with torch.device("meta"):
        parts = {
            "model.diffusion_model.": UNet(config),
            "first_stage_model.": VAE(),
            text_keys: text_encoder(),
        }
    own = {
        prefix + key: ["F32", [*tensor.shape]]
        for prefix, network in parts.items()
        for key, tensor in network.state_dict().items()
    }
    theirs = published(name)
    assert own == {key: theirs[key] for key in theirs if not IGNORED.fullmatch(key)}


def test_only_listed_keys_are_ignored():
    keys = published("sd15").keys() | published("sd21").keys()
    ignored = {key for key in keys if IGNORED.fullmatch(key)}
    assert len(ignored) == 12 + 2 + 3  # the schedule; model_ema; position_ids, projection, scale
    assert not IGNORED.fullmatch("model.diffusion_model.betas")


# ------------------------------------------------------------------------------------- formats


def contents(sd, path: Path) -> dict[str, torch.Tensor]:
    """Save a small base model -> the tensors in its file."""
    save_sd(sd, path)
    return load_file(path)


def same(a: torch.nn.Module, b: torch.nn.Module, dtype=torch.float32) -> bool:
    theirs = b.state_dict()
    return all(torch.equal(t, theirs[name].to(dtype).float()) for name, t in a.state_dict().items())


def test_saving_and_loading_a_base_is_exact(sd, tmp_path):
    sd.scale_factor, sd.guidance, sd.size, sd.prediction = 0.25, 3.0, 64, "v"
    save_sd(sd, tmp_path / "a.safetensors")
    again = load_sd(tmp_path / "a.safetensors")
    assert again.unet.config == sd.unet.config
    assert (again.scale_factor, again.guidance, again.size) == (0.25, 3.0, 64)
    assert again.prediction == "v"
    for part in ("unet", "vae", "text_encoder"):
        assert same(getattr(again, part), getattr(sd, part))
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        expected = {"num_heads", "norm_groups", "scale_factor", "guidance"}
        assert expected <= json.loads(file.metadata()["nanocontrol"]).keys()


def test_the_condition_encoder_may_have_other_widths(unet, tmp_path):
    """Nano's encoder is narrower than the released one. Shapes in the file determine the widths."""
    narrow = randomise(ControlNet(unet.config, hint_channels=(4, 8, 8, 16)))
    save_control(narrow, path := tmp_path / "a.safetensors")
    assert same(load_control(path, unet), narrow)
    tensors = load_file(path)
    for name, tensor, words in [
        ("input_hint_block.0.weight", torch.zeros(0, 3, 3, 3), "0.bias has the shape [4]"),
        ("input_hint_block.4.weight", torch.zeros(()), "unknown architecture"),
        ("input_hint_block.8.weight", torch.zeros(9, 8, 3, 3), "10.bias has the shape [8]"),
    ]:
        save_file(tensors | {"control_model." + name: tensor}, path)
        assert words in refused(path, unet)


# Three convolutions of stride 2, alone and followed by two of stride 1.
@pytest.mark.parametrize(
    "layers", [((0, 2), (1, 2), (2, 2)), ((0, 2), (1, 2), (2, 2), (2, 1), (3, 1))]
)
@pytest.mark.parametrize("style", ["sd1"])
def test_a_condition_encoder_of_another_layout_is_saved_and_loaded(
    sd, unet, inputs, tmp_path, monkeypatch, layers
):
    """The layout is defined in controlnet.py only."""
    x, t, context, hint, noise = inputs
    released = ControlNet(unet.config).state_dict()
    monkeypatch.setattr(controlnet_module, "HINT_LAYERS", layers)
    control = randomise(ControlNet(unet.config, (4, 8, 12, 16)), seed=1)
    assert len(control.input_hint_block) == 2 * len(layers) + 1
    save_control(control, path := tmp_path / "a.safetensors")
    again = load_control(path, unet)
    assert again.input_hint_block[0].out_channels == 4
    with torch.no_grad():
        ours, theirs = control(x, hint, t, context), again(x, hint, t, context)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))
        ours, theirs = (
            sample(sd, noise, context, context, [(net, hint, 1.0)], steps=2)
            for net in (control, again)
        )
    assert torch.equal(ours, theirs)
    # Files with the released encoder are refused now.
    save_file({"control_model." + name: tensor for name, tensor in released.items()}, path)
    assert "input_hint_block" in refused(path, unet)


@pytest.mark.parametrize("style", ["sd1"])
def test_half_precision_files_load_in_the_requested_precision(sd, tmp_path):
    tensors = {k: t.half() for k, t in contents(sd, tmp_path / "a.safetensors").items()}
    save_file(tensors, tmp_path / "half.safetensors")
    widened = load_sd(tmp_path / "half.safetensors", prediction="eps")
    assert same(widened.unet, sd.unet, torch.float16)
    kept = load_sd(tmp_path / "half.safetensors", dtype=torch.float16, prediction="eps")
    assert next(kept.unet.parameters()).dtype == torch.float16


@pytest.mark.slow
@pytest.mark.parametrize("ending", [".ckpt", ".pth"])
@pytest.mark.parametrize("wraps", [0, 1, 2])
@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("style", ["sd1"])
def test_nested_and_old_pickles_load(sd, tmp_path, ending, wraps, zipped):
    tensors = contents(sd, tmp_path / "a.safetensors")
    tensors["model_ema.decay"], tensors["betas"] = torch.tensor(0.9), torch.zeros(1000)
    for _ in range(wraps):
        tensors = {"state_dict": tensors, "global_step": 470000}
    torch.save(tensors, tmp_path / f"a{ending}", _use_new_zipfile_serialization=zipped)
    assert same(load_sd(tmp_path / f"a{ending}", prediction="eps").unet, sd.unet)


def test_projections_may_be_linear_or_convolutions(sd, tmp_path):
    tensors = contents(sd, tmp_path / "a.safetensors")
    for name, tensor in tensors.items():
        if re.search(r"proj_in\.weight|proj_out\.weight|attn_1\.[qkv]\.weight", name):
            other = tensor[..., 0, 0] if tensor.dim() == 4 else tensor[..., None, None]
            tensors[name] = other.contiguous()
    save_file(tensors, tmp_path / "b.safetensors")
    again = load_sd(tmp_path / "b.safetensors", prediction="eps")
    assert same(again.unet, sd.unet) and same(again.vae, sd.vae)


@pytest.mark.parametrize("style", ["sd1"])
def test_merged_models_without_text_model_and_with_wrong_position_ids_load(sd, tmp_path):
    tensors = contents(sd, tmp_path / "a.safetensors")
    merged = {name.replace(".text_model.", "."): tensor for name, tensor in tensors.items()}
    assert merged.keys() != tensors.keys()
    merged["cond_stage_model.transformer.embeddings.position_ids"] = torch.full((1, 77), 1.5)
    save_file(merged, tmp_path / "b.safetensors")
    assert same(load_sd(tmp_path / "b.safetensors").text_encoder, sd.text_encoder)


@pytest.mark.slow
def test_controlnets_load_with_prefix_without_and_from_a_whole_model(sd, trained_control, tmp_path):
    whole = contents(sd, tmp_path / "a.safetensors")
    save_control(trained_control, tmp_path / "control.safetensors")
    prefixed = load_file(tmp_path / "control.safetensors")
    assert all(name.startswith("control_model.") for name in prefixed)
    plain = {name.removeprefix("control_model."): tensor for name, tensor in prefixed.items()}
    torch.save(plain, tmp_path / "plain.pth")
    torch.save(whole | prefixed, tmp_path / "v1.0.pth")
    for file in ("control.safetensors", "plain.pth", "v1.0.pth"):
        assert same(load_control(tmp_path / file, sd.unet), trained_control)
    assert same(load_sd(tmp_path / "v1.0.pth", prediction="eps").unet, sd.unet)


@pytest.mark.parametrize("style", ["sd2"])
@pytest.mark.parametrize("bias, prediction", [(0.5, "eps"), (-1.0, "v")])
def test_the_prediction_type_is_found_by_running_the_unet(unet, bias, prediction):
    torch.nn.init.zeros_(unet.out[2].weight)
    torch.nn.init.constant_(unet.out[2].bias, bias)  # returns x, or roughly -x_0
    assert guess_prediction(unet) == prediction


# ----------------------------------------------------------- pickles with more than tensors


def lightning_checkpoint(tensors: dict, path: Path, monkeypatch, numpy_1: bool) -> None:
    """Write a file as pytorch_lightning 1.4 did: its callbacks have a class and numpy scalars."""
    name = "pytorch_lightning.callbacks.model_checkpoint"
    for i in range(1, 4):
        module = types.ModuleType(".".join(name.split(".")[:i]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    ModelCheckpoint = type("ModelCheckpoint", (), {"__module__": name})
    module.ModelCheckpoint = ModelCheckpoint
    state = {"best_model_score": np.float64(0.5), "best_model_path": "x.ckpt"}
    torch.save({"state_dict": tensors, "callbacks": {ModelCheckpoint: state}}, path)
    for module in [m for m in sys.modules if m.startswith("pytorch_lightning")]:
        monkeypatch.delitem(sys.modules, module)
    if numpy_1:
        rewrite_pickle(path, b"numpy._core.multiarray", b"numpy.core.multiarray")


def rewrite_pickle(path: Path, old: bytes, new: bytes) -> None:
    with zipfile.ZipFile(path) as file:
        parts = {info.filename: file.read(info) for info in file.infolist()}
    assert any(old in data for name, data in parts.items() if name.endswith("data.pkl"))
    with zipfile.ZipFile(path, "w") as file:
        for name, data in parts.items():
            file.writestr(name, data.replace(old, new) if name.endswith("data.pkl") else data)


@pytest.mark.parametrize("numpy_1", [True, False])
@pytest.mark.parametrize("style", ["sd1"])
def test_lightning_checkpoints_load(sd, tmp_path, monkeypatch, numpy_1):
    tensors = contents(sd, tmp_path / "a.safetensors")
    lightning_checkpoint(tensors, tmp_path / "a.ckpt", monkeypatch, numpy_1)
    with pytest.raises(pickle.UnpicklingError):  # it holds more than torch allows
        torch.load(tmp_path / "a.ckpt", weights_only=True)
    assert same(load_sd(tmp_path / "a.ckpt").unet, sd.unet)


class Hostile:
    def __init__(self, function, *args):
        self.call = (function, args)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_hostile_pickles_are_refused_by_name_and_never_run(tmp_path, zipped):
    import os

    trace = tmp_path / "it-ran"
    for function, arguments, name in [
        (os.system, (f"touch {trace}",), "system"),
        (eval, (f"open({str(trace)!r}, 'w')",), "eval"),
        (os.mkdir, (str(trace),), "mkdir"),
    ]:
        content = {"state_dict": {"w": torch.zeros(2)}, "extra": Hostile(function, *arguments)}
        torch.save(content, tmp_path / "a.ckpt", _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match=name):
            load_sd(tmp_path / "a.ckpt")
        assert not trace.exists()


# ------------------------------------------------------------------------------------- refusals


def refused(path, unet=None) -> str:
    with pytest.raises(InputError) as error:
        load_control(path, unet) if unet is not None else load_sd(path, prediction="eps")
    message = str(error.value)
    assert path.name in message and "\n" not in message
    return message


@pytest.mark.parametrize("style", ["sd1"])
def test_missing_files_and_files_of_other_formats_are_refused(tmp_path, sd):
    assert "does not exist" in refused(tmp_path / "missing.safetensors")
    (tmp_path / "text.txt").write_text("hello")
    assert ".safetensors" in refused(tmp_path / "text.txt")
    for name in ("a.safetensors", "a.ckpt", "a.pth"):
        (tmp_path / name).write_bytes(b"no checkpoint at all, just some words")
        assert "cut off or no" in refused(tmp_path / name)
        (tmp_path / name).write_bytes(b"")
        assert "cut off or no" in refused(tmp_path / name)


@pytest.mark.parametrize("style", ["sd1"])
def test_truncated_files_are_refused(sd, tmp_path):
    tensors = contents(sd, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "b.ckpt")
    torch.save(tensors, tmp_path / "c.ckpt", _use_new_zipfile_serialization=False)
    for name in ("a.safetensors", "b.ckpt", "c.ckpt"):
        data = (tmp_path / name).read_bytes()
        for share in (0.999, 0.5, 0.01):
            (tmp_path / name).write_bytes(data[: int(share * len(data))])
            assert "cut off" in refused(tmp_path / name)


@pytest.mark.parametrize("style", ["sd1"])
def test_missing_extra_and_misshaped_tensors_are_reported(sd, tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = contents(sd, path)
    name = "model.diffusion_model.out.2.bias"
    save_file({k: t for k, t in tensors.items() if k != name}, path)
    assert "lacks" in refused(path) and "out.2.bias" in refused(path)
    save_file(tensors | {"model.diffusion_model.lora": torch.zeros(1)}, path)
    assert "lora" in refused(path)
    save_file(tensors | {"somebody.elses": torch.zeros(1)}, path)
    assert "somebody.elses" in refused(path)
    save_file(tensors | {name: torch.zeros(5)}, path)
    assert "out.2.bias" in refused(path) and "[5]" in refused(path)
    for gone, part in (("first_stage_model.", "VAE"), ("cond_stage_model.", "text encoder")):
        save_file({k: t for k, t in tensors.items() if not k.startswith(gone)}, path)
        assert f"has no {part};" in refused(path)


@pytest.mark.parametrize("style", ["sd1"])
def test_models_of_other_kinds_are_refused(sd, unet, trained_control, tmp_path):
    path = tmp_path / "a.safetensors"
    tensors = contents(sd, path)
    first = "model.diffusion_model.input_blocks.0.0.weight"
    inpainting = torch.zeros(tensors[first].shape[0], 9, 3, 3)
    save_file(tensors | {first: inpainting}, path)
    assert "inpainting" in refused(path)

    save_control(trained_control, path)
    control = load_file(path)
    assert "only a ControlNet" in refused(path)
    save_file(control | {"difference": torch.zeros(1)}, path)
    assert "difference" in refused(path, unet)
    save_control(trained_control, tmp_path / "control_v11e_sd15_shuffle.safetensors")
    assert "shuffle" in refused(tmp_path / "control_v11e_sd15_shuffle.safetensors", unet)
    save_file({k: t for k, t in control.items() if "hint_block.2." not in k}, path)
    assert "input_hint_block.2.bias" in refused(path, unet)
    save_file(tensors, path)
    assert "expected a ControlNet" in refused(path, unet)
    save_file(control | {"control_model.input_blocks.0.0.weight": torch.zeros(4)}, path)
    assert "architecture" in refused(path, unet)
    save_file(tensors, path, {"nanocontrol": "[1]"})
    assert "a.safetensors" in refused(path)


def test_a_controlnet_for_another_base_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_control(ControlNet(CONFIGS["sd1"]), path)
    assert "64 wide" in refused(path, UNet(CONFIGS["sd2"]))


def test_a_failed_save_keeps_the_previous_file(trained_control, tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_control(trained_control, path)
    before = path.read_bytes()

    def full(tensors, file, metadata):
        Path(file).write_bytes(b"half a fi")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("nanocontrol.formats.tensors.save_file", full)
    with pytest.raises(InputError, match="No space left"):
        save_control(trained_control, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.safetensors"]


def test_the_size_of_a_vae_is_read_from_its_shapes(sd, tmp_path):
    save_sd(sd, tmp_path / "a.safetensors")
    vae = load_sd(tmp_path / "a.safetensors", prediction="eps").vae
    config = VAEConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)
    assert vae.state_dict().keys() == randomise(type(vae)(config)).state_dict().keys()

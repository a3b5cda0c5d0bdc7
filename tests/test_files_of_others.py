"""Checkpoints as other programs write them, and models of other kinds."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from conftest import CONTROL, NANO
from nanocontrol import InputError, load_control, load_sd
from nanocontrol.controlnet import HINT_LAYERS
from nanocontrol.formats.diffusers_names import to_diffusers
from nanocontrol.formats.tensors import read_tensors
from nanocontrol.training.place import checked

HEADER = read_tensors(Path(NANO))[1]


@pytest.fixture(scope="module")
def nano() -> dict[str, Tensor]:
    return load_file(NANO)


def saved(tensors: dict[str, Tensor], path: Path, **texts: str) -> Path:
    save_file(tensors, path, {"nanocontrol": json.dumps(HEADER)} | texts)
    return path


def without_prediction() -> str:
    return json.dumps({name: x for name, x in HEADER.items() if name != "prediction"})


# ----------------------------------------------------------------------------------- bases


@pytest.mark.parametrize(
    "more",
    [
        {"ztsnr": torch.zeros(0)},
        {"cond_stage_model.logit_scale": torch.tensor(4.6)},
        {"cond_stage_model.text_projection": torch.eye(64)},
        {"cond_stage_model.transformer.logit_scale": torch.tensor(4.6)},
        {"cond_stage_model.transformer.text_projection.weight": torch.eye(64)},
        {"cond_stage_model.transformer.text_model.text_projection.weight": torch.eye(64)},
        {"cond_stage_model.model.text_projection": torch.eye(64)},
        {
            "alphas_cumprod": torch.full((3,), torch.nan),
            "posterior_variance": torch.tensor([1e999]),
        },
        {"model_ema.decay": torch.tensor(torch.nan)},
    ],
    ids=lambda more: next(iter(more)),
)
def test_tensors_that_nothing_uses_are_passed_over(more, nano, tmp_path):
    sd = load_sd(saved(nano | more, tmp_path / "a.safetensors"))
    plain = load_sd(NANO)
    for name in ("unet", "vae", "text_encoder"):
        theirs = getattr(plain, name).state_dict()
        for key, weight in getattr(sd, name).state_dict().items():
            assert torch.equal(weight, theirs[key]), key
    assert sd.prediction == plain.prediction


@pytest.mark.parametrize(
    "more, texts, expected",
    [
        ({}, {}, "eps"),
        ({"v_pred": torch.zeros(0)}, {}, "v"),
        ({}, {"modelspec.prediction_type": "v"}, "v"),
        ({}, {"modelspec.prediction_type": "epsilon"}, "eps"),
        ({}, {"modelspec.prediction_type": "something"}, "eps"),
    ],
)
def test_files_may_say_what_they_predict(more, texts, expected, nano, tmp_path):
    path = saved(nano | more, tmp_path / "a.safetensors", nanocontrol=without_prediction(), **texts)
    assert load_sd(path).prediction == expected
    assert load_sd(path, prediction="eps").prediction == "eps"
    ours = saved(nano | more, tmp_path / "b.safetensors", **texts)
    assert load_sd(ours).prediction == HEADER["prediction"] == "eps"  # our own word counts


@pytest.mark.parametrize("part", ["unet", "vae", "text_encoder"])
def test_a_base_with_nan_is_named_before_training(part):
    """Files above 1 GB are not checked when they are read."""
    sd = load_sd(NANO)
    assert checked(sd, "big.safetensors") is sd
    next(getattr(sd, part).parameters()).data.view(-1)[0] = torch.nan
    with pytest.raises(InputError, match="big.safetensors holds NaN or infinity"):
        checked(sd, "big.safetensors")


# ------------------------------------------------------------------------------- ControlNets


@pytest.mark.parametrize("name", ["a.sft", "a.SAFETENSORS", "a.weights", "a"])
def test_the_first_bytes_decide_not_the_ending(name, tmp_path):
    unet = load_sd(NANO).unet
    true = load_control(CONTROL, unet).state_dict()
    path = Path(shutil.copy(CONTROL, tmp_path / name))
    torch.save(load_file(CONTROL), old := tmp_path / f"{name}.PTH")
    torch.save(load_file(CONTROL), wrong := tmp_path / "b.safetensors")
    torch.save(load_file(CONTROL), new := tmp_path / "c.safetensors", pickle_protocol=4)
    for file in (path, old, wrong, new):
        # Only our own file has the number of heads, which the base gives too.
        found = load_control(file, unet).state_dict()
        assert all(torch.equal(found[key], true[key]) for key in true)


def test_a_folder_of_diffusers_is_taken_for_its_file(tmp_path):
    unet = load_sd(NANO).unet
    control = load_control(CONTROL, unet)
    tensors = to_diffusers(control.state_dict(), 3, 1, len(HINT_LAYERS))
    with safe_open(CONTROL, "pt") as file:
        metadata = file.metadata()
    folder = tmp_path / "control"
    folder.mkdir()
    with pytest.raises(InputError, match="control: expected a file, or a folder with one .+ none"):
        load_control(folder, unet)
    save_file(tensors, folder / "diffusion_pytorch_model.fp16.safetensors", metadata)
    (folder / "config.json").write_text("{}")
    found = load_control(folder, unet).state_dict()
    assert all(torch.equal(found[key], weight) for key, weight in control.state_dict().items())
    with pytest.raises(InputError, match="holds only a ControlNet"):
        load_sd(folder)
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors", metadata)
    with pytest.raises(InputError, match="found diffusion_pytorch_model.fp16.safetensors, diff"):
        load_control(folder, unet)


@pytest.mark.parametrize(
    "name, config, text, pooled",
    [
        ("control_v11e_sd15_shuffle.safetensors", None, "", True),
        ("control_v11e_sd15_shuffle_fp16.safetensors", None, "", True),
        ("my_shuffle_of_cards.safetensors", None, "", False),
        ("a.safetensors", "config.json", '{"global_pool_conditions": true}', True),
        ("a.safetensors", "config.json", '{"global_pool_conditions": false}', False),
        ("control_v11e_sd15_shuffle.safetensors", "config.json", "{}", True),
        (
            "control_v11e_sd15_shuffle.safetensors",
            "config.json",
            '{"global_pool_conditions":false}',
            False,
        ),
        ("control_v11e_sd15_shuffle.fp16.safetensors", None, "", True),
        ("a.safetensors", "config.json", '{"global_pool_conditions": 1}', True),
        ("a.safetensors", "a.yaml", "# global_average_pooling: True\n", False),
        ("a.safetensors", "a.yaml", "params:\n  global_average_pooling: True\n", True),
        ("a.safetensors", "b.yaml", "params:\n  global_average_pooling: True\n", False),
    ],
)
def test_pooling_is_what_the_configuration_says(name, config, text, pooled, tmp_path):
    path = shutil.copy(CONTROL, tmp_path / name)
    if config:
        (tmp_path / config).write_text(text)
    unet = load_sd(NANO).unet
    if pooled:
        with pytest.raises(InputError, match="needs a pooling, like the shuffle model"):
            load_control(path, unet)
    else:
        load_control(path, unet)


@pytest.mark.parametrize(
    "kind, names",
    [
        ("a Control-LoRA", ["lora_controlnet", "input_blocks.0.0.weight"]),
        ("a ControlNet-LLLite", ["lllite_unet_input_blocks_4_1_attn1_to_q.down.0.weight"]),
        ("a LoRA", ["lora_unet_mid_block_attentions_0_proj_in.alpha"]),
        ("a LoRA", ["unet.down_blocks.0.attentions.0.to_q.lora_A.weight"]),
        ("a T2I-Adapter", ["style_embedding", "transformer_layes.0.attn.in_proj_weight"]),
        ("an IP-Adapter", ["image_proj.proj.weight", "ip_adapter.1.to_k_ip.weight"]),
        ("a T2I-Adapter", ["adapter.body.0.resnets.0.block1.weight"]),
        ("a T2I-Adapter", ["body.0.block1.weight", "conv_in.weight"]),
        ("a ControlNet-Union", ["task_embedding", "controlnet_down_blocks.0.weight"]),
        ("a ControlNet-Union", ["control_add_embedding.linear_1.bias", "add_embedding.linear_1.w"]),
        ("for Flux", ["double_blocks.0.img_attn.proj.weight", "controlnet_blocks.0.weight"]),
        ("for Flux", ["controlnet_x_embedder.weight", "controlnet_blocks.0.weight"]),
        ("for Flux", ["model.diffusion_model.double_blocks.0.img_attn.proj.weight"]),
        ("for Stable Diffusion 3", ["pos_embed_input.proj.weight", "controlnet_blocks.0.weight"]),
        (
            "for Stable Diffusion 3",
            ["model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight"],
        ),
        ("for a transformer", ["controlnet_blocks.0.weight", "transformer_blocks.0.attn.to_q"]),
        ("for Stable Diffusion XL", ["conditioner.embedders.0.a", "model.diffusion_model.out.0.b"]),
        ("for Stable Diffusion XL", ["add_embedding.linear_1.bias", "controlnet_mid_block.bias"]),
        ("for Stable Diffusion XL", ["control_model.label_emb.0.0.weight"]),
    ],
)
def test_models_of_other_kinds_are_named(kind, names, tmp_path):
    save_file({name: torch.zeros(1) for name in names}, path := tmp_path / "a.safetensors")
    unet = load_sd(NANO).unet
    for load in (lambda: load_sd(path), lambda: load_control(path, unet)):
        with pytest.raises(InputError, match=f"a.safetensors is {kind}.*; expected a file for"):
            load()


def test_an_ip_adapter_of_two_dictionaries_is_named(tmp_path):
    parts = {"image_proj": {"proj.weight": torch.zeros(1)}, "ip_adapter": {"1.w": torch.zeros(1)}}
    torch.save(parts, tmp_path / "ip-adapter.bin")
    with pytest.raises(InputError, match="is an IP-Adapter"):
        load_control(tmp_path / "ip-adapter.bin", load_sd(NANO).unet)

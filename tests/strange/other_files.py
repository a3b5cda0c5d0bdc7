"""Other models, other formats, links and devices, and files that change while they are read."""

import json
import os
import socket
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load, save, save_file
from torch import Tensor

from nanocontrol.controlnet import HINT_LAYERS
from nanocontrol.formats import tensors as reading
from nanocontrol.formats.diffusers_names import to_diffusers
from nanocontrol.formats.original_names import OPEN_CLIP_KEYS
from nanocontrol.formats.tensors import open_tensors
from strange.harness import WEIGHTS, loads, read_file, refused
from strange.networks import (
    BASE_FILE,
    CONFIG,
    CONTROL,
    CONTROL_FILE,
    UNET,
    below,
    read_base_file,
    read_control_file,
)

LEVELS, RES_BLOCKS = len(CONFIG.channel_mult), CONFIG.num_res_blocks
DIFFUSERS = to_diffusers(CONTROL, LEVELS, RES_BLOCKS, len(HINT_LAYERS))

control_loads = partial(loads, read=read_control_file, weights=CONTROL)
control_refused = partial(refused, read=read_control_file)
base_loads = partial(loads, read=read_base_file, weights=UNET)
base_refused = partial(refused, read=read_base_file)

ZERO = torch.zeros(1)


def saved(tensors: dict[str, Tensor], folder: Path, name: str = "a.safetensors") -> Path:
    save_file({key: tensor.clone() for key, tensor in tensors.items()}, folder / name)
    return folder / name


def written(content: bytes, folder: Path, name: str = "a.safetensors") -> Path:
    (folder / name).write_bytes(content)
    return folder / name


# ------------------------------------------------------------------------- models of other kinds

LORA = {
    "lora_unet_input_blocks_1_1_proj_in.lora_down.weight": torch.zeros(4, 32),
    "lora_unet_input_blocks_1_1_proj_in.lora_up.weight": torch.zeros(32, 4),
}


@control_refused(says="is a LoRA")
def a_lora_as_a_controlnet(folder: Path) -> Path:
    return saved(LORA, folder)


@base_refused(says="is a LoRA")
def a_lora_as_a_base(folder: Path) -> Path:
    return saved(LORA, folder)


@base_refused(says="is for Stable Diffusion XL")
def a_stable_diffusion_xl(folder: Path) -> Path:
    names = ("conditioner.embedders.0.x", "conditioner.embedders.1.x")
    xl = {name: tensor for name, tensor in BASE_FILE.items() if "cond_stage" not in name}
    return saved(xl | dict.fromkeys(names, ZERO), folder)


@control_refused(says="is for Stable Diffusion XL")
def a_controlnet_for_stable_diffusion_xl(folder: Path) -> Path:
    return saved(DIFFUSERS | {"add_embedding.linear_1.weight": ZERO}, folder)


@control_loads
def a_controlnet_of_diffusers(folder: Path) -> Path:
    return saved(DIFFUSERS, folder)


@control_refused(says="architecture")
def a_controlnet_that_has_a_tensor_under_both_names(folder: Path) -> Path:
    return saved(DIFFUSERS | {"input_blocks.0.0.bias": torch.zeros(32)}, folder)


@control_refused(says="'difference'")
def a_controlnet_saved_as_a_difference(folder: Path) -> Path:
    return saved(CONTROL_FILE | {"difference": ZERO}, folder)


@base_refused(says="(inpainting: 9)")
def a_base_for_inpainting(folder: Path) -> Path:
    conv = "model.diffusion_model.input_blocks.0.0.weight"
    return saved(BASE_FILE | {conv: torch.zeros(32, 9, 3, 3)}, folder)


@base_refused(says="holds only model_ema")
def ema_weights_alone(folder: Path) -> Path:
    flat = {"model_ema." + n.replace(".", ""): t for n, t in BASE_FILE.items() if "diffusion" in n}
    return saved(flat, folder)


@base_loads
def ema_weights_next_to_the_weights(folder: Path) -> Path:
    return saved(BASE_FILE | {"model_ema.diffusion_modelout2bias": ZERO}, folder)


@base_refused(says="only a ControlNet")
def a_controlnet_as_a_base(folder: Path) -> Path:
    return saved(CONTROL_FILE, folder)


@control_refused(says="expected a ControlNet")
def a_base_as_a_controlnet(folder: Path) -> Path:
    return saved(BASE_FILE, folder)


@control_refused(says="expected a ControlNet")
def a_vae_alone(folder: Path) -> Path:
    vae = {name: tensor for name, tensor in BASE_FILE.items() if "first_stage" in name}
    return saved(vae, folder)


@base_refused(says="holds two text encoders")
def a_base_with_two_text_encoders(folder: Path) -> Path:
    other = {"token_embedding.weight": torch.zeros(64, 64)}
    return saved(BASE_FILE | below(OPEN_CLIP_KEYS, other), folder)


@base_refused(says="holds two text encoders")
def a_base_with_a_text_encoder_under_two_names(folder: Path) -> Path:
    again = {n.replace("text_model.", ""): torch.zeros_like(t) for n, t in BASE_FILE.items()}
    return saved(BASE_FILE | again, folder)


@control_loads
def a_controlnet_next_to_its_base(folder: Path) -> Path:
    return saved(BASE_FILE | CONTROL_FILE, folder)


@base_loads
def a_base_next_to_its_controlnet(folder: Path) -> Path:
    return saved(BASE_FILE | CONTROL_FILE, folder)


@control_loads
def a_controlnet_with_a_schedule(folder: Path) -> Path:
    return saved(CONTROL_FILE | {"betas": torch.zeros(1000)}, folder)


@control_refused(says="without a place: somebody.elses")
def a_controlnet_next_to_its_base_and_something_else(folder: Path) -> Path:
    return saved(BASE_FILE | CONTROL_FILE | {"somebody.elses": ZERO}, folder)


@control_refused(says="without a place: first_stage_model.x")
def a_controlnet_next_to_a_piece_of_a_base(folder: Path) -> Path:
    return saved(CONTROL_FILE | {"first_stage_model.x": ZERO}, folder)


@control_refused(says="without a place: zero_convs.0.0.bias")
def a_controlnet_with_and_without_its_prefix(folder: Path) -> Path:
    return saved(CONTROL_FILE | {"zero_convs.0.0.bias": torch.zeros(32)}, folder)


@control_refused(says="shuffle")
def a_controlnet_that_shuffles(folder: Path) -> Path:
    return saved(CONTROL_FILE, folder, "control_v11e_sd15_shuffle.safetensors")


@control_refused(says="architecture")
def a_controlnet_of_10_000_blocks(folder: Path) -> Path:
    blocks = {f"control_model.input_blocks.{i}.0.op.weight": ZERO for i in range(1, 10_000)}
    return saved(CONTROL_FILE | blocks, folder)


@base_refused(says="architecture")
def a_base_whose_channels_do_not_divide_by_8_heads(folder: Path) -> Path:
    """It has 36 channels and 4 heads, and no metadata."""
    narrow = {
        name: torch.zeros([36 if n == 32 else n for n in t.shape]) for name, t in UNET.items()
    }
    return saved(BASE_FILE | below("model.diffusion_model.", narrow), folder)


# ----------------------------------------------------------------------------- other formats


@loads
def safetensors_named_pth(folder: Path) -> Path:
    return saved(WEIGHTS, folder, "a.pth")


@loads
def a_torch_zip_named_safetensors(folder: Path) -> Path:
    torch.save(WEIGHTS, folder / "a.safetensors")
    return folder / "a.safetensors"


@loads
def a_pickle_named_safetensors(folder: Path) -> Path:
    path = folder / "a.safetensors"
    torch.save(WEIGHTS, path, _use_new_zipfile_serialization=False)
    return path


POINTER = (
    b"version https://git-lfs.github.com/spec/v1\n"
    b"oid sha256:4d7a214614ab2935c943f9e0ff69d22eadbb8f32b1258daaa5e2ca24d17e2393\n"
    b"size 4265146304\n"
)
PAGE = b"\n<!DOCTYPE html>\n<html lang='en'><head><title>404</title></head></html>"
ENDINGS = ("safetensors", "pth", "ckpt", "bin")
for ending in ENDINGS:

    def pointer(folder: Path, ending: str = ending) -> Path:
        return written(POINTER, folder, f"a.{ending}")

    def page(folder: Path, ending: str = ending) -> Path:
        return written(PAGE, folder, f"a.{ending}")

    pointer.__name__ = f"a_pointer_of_git_lfs_that_is_called_{ending}"
    refused(pointer, says="is a Git LFS pointer, not the file itself: run git lfs pull")
    page.__name__ = f"a_web_page_that_is_called_{ending}"
    refused(page, says="is a web page, not a checkpoint")


@refused(says="is a web page")
def a_web_page_with_a_byte_order_mark(folder: Path) -> Path:
    return written(b"\xef\xbb\xbf<html>", folder)


@refused(says="is a web page")
def an_xml_error_page(folder: Path) -> Path:
    return written(b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", folder)


@refused(says="is cut off or not")
def a_json_error_message(folder: Path) -> Path:
    return written(json.dumps({"error": "Repository not found"}).encode(), folder)


@refused(says="is cut off or not")
def a_picture(folder: Path) -> Path:
    return written(b"\x89PNG\r\n\x1a\n" + b"\0" * 1000, folder)


@refused(says="is cut off or not")
def a_gzip(folder: Path) -> Path:
    return written(b"\x1f\x8b\x08" + bytes(range(256)), folder, "a.pth")


@refused(says="is cut off or not")
def a_gguf(folder: Path) -> Path:
    return written(b"GGUF\x03\0\0\0" + b"\0" * 1000, folder)


@refused(says="is cut off or not")
def a_hundred_kilobytes_of_zeros(folder: Path) -> Path:
    return written(bytes(100_000), folder)


@refused(says="is cut off or not")
def a_hundred_kilobytes_of_zeros_named_pth(folder: Path) -> Path:
    return written(bytes(100_000), folder, "a.pth")


@refused(says="is cut off or not")
def a_partial_download_padded_with_zeros(folder: Path) -> Path:
    """Some programs create a file at its final size."""
    whole = save(WEIGHTS)
    return written(whole[:100] + bytes(len(whole) - 100), folder)


# --------------------------------------------------------------- special and unreadable files


@refused(says="expected a file, or a folder with one diffusion_pytorch_model")
def a_folder(folder: Path) -> Path:
    (folder / "a.safetensors").mkdir()
    return folder / "a.safetensors"


@control_loads
def a_folder_of_diffusers(folder: Path) -> Path:
    saved(CONTROL_FILE, folder, "diffusion_pytorch_model.safetensors")
    return folder


@refused(says="does not exist or is not a file")
def a_pipe_that_nobody_writes_to(folder: Path) -> Path:
    os.mkfifo(folder / "a.safetensors")
    return folder / "a.safetensors"


@refused(says="does not exist or is not a file")
def a_pipe_named_pth(folder: Path) -> Path:
    os.mkfifo(folder / "a.pth")
    return folder / "a.pth"


@refused(says="does not exist or is not a file")
def a_socket(folder: Path) -> Path:
    os.chdir(folder)  # paths of sockets must be short
    socket.socket(socket.AF_UNIX).bind("a.pth")
    return folder / "a.pth"


def linked(target: Path | str, folder: Path) -> Path:
    (folder / "a.safetensors").symlink_to(target)
    return folder / "a.safetensors"


@refused(says="does not exist or is not a file")
def an_endless_device(folder: Path) -> Path:
    return linked("/dev/zero", folder)


@refused(says="does not exist or is not a file")
def a_link_to_nothing(folder: Path) -> Path:
    return linked("nothing", folder)


@refused(says="does not exist or is not a file")
def a_link_to_itself(folder: Path) -> Path:
    return linked("a.safetensors", folder)


@loads
def a_link_to_a_model(folder: Path) -> Path:
    return linked(saved(WEIGHTS, folder, "b.safetensors"), folder)


@refused(says="cannot be read: Input/output error")
def a_file_that_fails_when_it_is_read(folder: Path) -> Path:
    return linked("/proc/self/mem", folder)


def read_as_nobody(path: Path) -> dict[str, Tensor]:
    os.chdir(path.parent)  # parent folders may be closed to others
    user = os.geteuid()
    if user == 0:  # root may read everything
        os.seteuid(65534)
    try:
        return read_file(Path(path.name))
    finally:
        os.seteuid(user)


@refused(read=read_as_nobody, says="cannot be read: Permission denied")
def a_file_that_nobody_may_read(folder: Path) -> Path:
    path = saved(WEIGHTS, folder)
    path.chmod(0)
    folder.chmod(0o711)
    return path


# ------------------------------------------------------------------- files that change


def read_then(change):
    """A reader that changes the file while its tensors are held, then uses them."""

    def read(path: Path) -> dict[str, Tensor]:
        tensors = open_tensors(path).tensors
        change(path)
        return {name: tensor + 0 for name, tensor in tensors.items()}

    return read


def cut(path: Path) -> None:
    """Reading a mapped page past the new end would kill the process."""
    os.truncate(path, 1)


def overwrite(path: Path) -> None:
    size = path.stat().st_size
    with open(path, "r+b") as file:
        file.write(b"\xff" * size)


def replace(path: Path) -> None:
    other = path.with_name("other")
    other.write_bytes(b"another file")
    other.replace(path)


for change in (cut, overwrite, replace, os.unlink):
    for form in ("safetensors", "pth", "ckpt"):

        def changing(folder: Path, form: str = form) -> Path:
            if form == "safetensors":
                return saved(WEIGHTS, folder)
            torch.save(WEIGHTS, folder / f"a.{form}", _use_new_zipfile_serialization=form == "pth")
            return folder / f"a.{form}"

        changing.__name__ = f"a_{form}_file_in_use_after_{change.__name__}"
        loads(changing, read=read_then(change))


def read_while(change):
    """A reader of a file that changes after its first bytes were read."""

    def read(path: Path) -> dict[str, Tensor]:
        original = reading.beginning_of

        def beginning_of(path: Path) -> bytes:
            first = original(path)
            change(path)
            return first

        with mock.patch.object(reading, "beginning_of", beginning_of):
            return read_file(path)

    return read


def touch(path: Path) -> None:
    os.utime(path, ns=(0, 0))


def replace_by_zeros(path: Path) -> None:
    """Replace the file by another one of equal length."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load(path.read_bytes()).items()}
    saved(zeros, path.parent, "other").replace(path)


for change in (cut, overwrite, replace, os.unlink):

    def changed(folder: Path) -> Path:
        return saved(WEIGHTS, folder)

    changed.__name__ = f"a_file_being_read_{change.__name__}"
    refused(changed, read=read_while(change))


@refused(read=read_while(touch), says="was changed while it was read")
def a_file_that_is_written_while_it_is_read(folder: Path) -> Path:
    return saved(WEIGHTS, folder)


@refused(read=read_while(replace_by_zeros), says="was changed while it was read")
def a_file_that_is_replaced_while_it_is_read(folder: Path) -> Path:
    return saved(WEIGHTS, folder)


LARGE = 1_500_000_000


def read_large(path: Path) -> dict[str, Tensor]:
    file = open_tensors(path)
    replace(path)  # the mapping keeps the old file alive
    return {name: tensor[-4:] + 0 for name, tensor in file.tensors.items()}


@loads(read=read_large, weights={"large": torch.zeros(4)})
def a_large_file_that_is_replaced_while_it_is_used(folder: Path) -> Path:
    entry = {"dtype": "F32", "shape": [LARGE // 4], "data_offsets": [0, LARGE]}
    header = json.dumps({"large": entry}).encode()
    path = written(len(header).to_bytes(8, "little") + header, folder)
    os.truncate(path, 8 + len(header) + LARGE)  # a sparse file of zeros
    return path

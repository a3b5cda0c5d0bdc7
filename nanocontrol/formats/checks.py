"""Checks of the contents of a stranger's file: it is not plainly another kind of file, its tensors
are plain ones, and its metadata makes sense."""

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from nanocontrol.plumbing.errors import InputError, one_line

# Precisions of weights: PyTorch converts between these by rounding once. Float8 and integers are
# refused: such files also hold scales, which every program applies in its own way.
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)

# Names in a Stable Diffusion file that nothing here uses: what follows from the schedule, running
# averages (`model_ema`; the U-Net proper is read), parts of the text encoders that Stable Diffusion
# does not use, and ComfyUI's marks of v-models. position_ids is always 0..76, and wrong in some
# merged files.
UNUSED = re.compile(
    r"betas|(sqrt_|log_)?(one_minus_)?(recipm?1?_)?alphas_cumprod(_prev)?|posterior_\w+|logvar"
    r"|scale_factor|model_ema\..+|v_pred|ztsnr"
    r"|cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids"
    r"|cond_stage_model\.((transformer|model)\.)?(text_model\.)?"
    r"(text_projection(\.weight)?|logit_scale|attn_mask)"
)

WEB_PAGES = (b"<!doctype html", b"<html", b"<head", b"<?xml")
SOMETHING_ELSE = {
    b"version https://git-lfs": "is a Git LFS pointer, not the file itself: run git lfs pull",
    **{beginning: "is a web page, not a checkpoint: download it again" for beginning in WEB_PAGES},
}


def beginning_of(path: Path) -> bytes:
    """A file's first bytes. Raises InputError, naming it, if it cannot be read or is plainly no
    checkpoint."""
    try:
        with open(path, "rb") as file:
            first = file.read(512)
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror}") from None
    if not first:
        raise InputError(f"{path} is empty: it is cut off or not a checkpoint")
    text = first.removeprefix(b"\xef\xbb\xbf").lstrip().lower()
    for beginning, what in SOMETHING_ELSE.items():
        if text.startswith(beginning):
            raise InputError(f"{path} {what}")
    return first


# ------------------------------------------------------------------------------------- tensors


def plain_tensors(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors as bare ones, without gradients, conjugated or negated where they are only marked
    so. Refuse what is not dense, not in the CPU's memory, or larger than what the file holds for
    it."""
    for name, tensor in tensors.items():
        if kind := strangeness(tensor):
            raise InputError(f"{path}: {printable(name)} is {kind}; expected plain tensors")
    # Tensors can overlap, and a single number can be repeated without end.
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in tensors.values()}
    held = sum(storage.nbytes() for storage in storages.values())
    if sum(tensor.nbytes for tensor in tensors.values()) > 4 * held:
        raise InputError(f"{path}: its tensors are over four times as large as what it holds")
    return {name: tensor.detach().resolve_conj().resolve_neg() for name, tensor in tensors.items()}


def strangeness(tensor: Tensor) -> str:
    """A reason why a tensor is not plain; "" if it is."""
    if type(tensor) not in (Tensor, Parameter):
        return f"a {type(tensor).__name__}"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_quantized:
        return "quantized"
    if tensor.device.type != "cpu":
        return f"without numbers (on the device {tensor.device})"
    return "" if tensor.untyped_storage().nbytes() >= tensor.nbytes else "repeated numbers"


def check_weights(path: Path, tensors: dict[str, Tensor]) -> None:
    """Refuse weights that are not floating."""
    for name, tensor in tensors.items():
        if tensor.dtype not in FLOATS:
            kind = str(tensor.dtype).removeprefix("torch.")
            expected = "expected float16, bfloat16, float32 or float64"
            raise InputError(f"{path}: {printable(name)} is of type {kind}; {expected}")


def check_none(path: Path, what: str, names: Iterable[str]) -> None:
    """Refuse a file that holds such tensors."""
    if names := list(names):
        raise InputError(f"{path} holds {len(names)} tensors {what}: {first_three(names)}")


def first_three(names: Iterable[str]) -> str:
    return ", ".join(map(printable, sorted(names)[:3]))


def printable(name: str) -> str:
    """A name from a file in a form that can be printed."""
    return one_line(name, 60) or "''"


# ------------------------------------------------------------------------------------ metadata


def whole(value: Any) -> bool:
    return type(value) is int  # true and false are integers too, of a kind of their own


def number(value: Any) -> bool:
    """One whose size makes sense: 1e999 is infinite, 1e-50 becomes zero."""
    return type(value) in (int, float) and -1e6 < value < 1e6


# Entries of our own metadata: a test, and the expected values in words.
METADATA: dict[str, tuple[Callable[[Any], bool], str]] = {
    "num_heads": (lambda v: whole(v) and v > 0, "a whole number above 0"),
    "norm_groups": (lambda v: whole(v) and v > 0, "a whole number above 0"),
    "scale_factor": (lambda v: number(v) and v > 1e-6, "a number above 0"),
    "guidance": (number, "a number"),
    "size": (lambda v: whole(v) and v in range(64, 8193, 64), "a multiple of 64 up to 8192"),
    "prediction": (lambda v: v in ("eps", "v"), "'eps' or 'v'"),
    "condition": (lambda v: isinstance(v, str), "a word"),
}


def check_metadata(path: Path, metadata: Any) -> dict:
    """Our own metadata, if every entry that is known makes sense."""
    if not isinstance(metadata, dict):
        raise InputError(f"{path}: its metadata is no JSON object; expected one under nanocontrol")
    for name, (makes_sense, expected) in METADATA.items():
        if name in metadata and not makes_sense(metadata[name]):
            value = printable(repr(metadata[name]))
            raise InputError(f"{path}: {name} is {value} in its metadata; expected {expected}")
    return metadata

"""The names of tensors in the original Stable Diffusion and ControlNet files: which network each
belongs to, and which files are refused for what they hold."""

import os
import re
from pathlib import Path

from nanocontrol.formats.checks import UNUSED, check_none, first_three
from nanocontrol.formats.diffusers_names import is_diffusers
from nanocontrol.formats.tensors import TensorFile, Tensors, below
from nanocontrol.plumbing.errors import InputError

# The beginning of a tensor's name is its network.
UNET_KEYS, VAE_KEYS, CONTROL_KEYS = "model.diffusion_model.", "first_stage_model.", "control_model."
CLIP_KEYS, OPEN_CLIP_KEYS = "cond_stage_model.transformer.", "cond_stage_model.model."
BASE_KEYS = (UNET_KEYS, VAE_KEYS, CLIP_KEYS, OPEN_CLIP_KEYS)

# The only names in a Stable Diffusion file that are passed over. It may hold a ControlNet too.
IGNORED = re.compile(rf"{UNUSED.pattern}|control_model\..+")

# Beginnings of names that only other kinds of models have. The first that fits decides.
OTHER_KINDS = (
    (r"lora_controlnet", "a Control-LoRA"),
    (r"lllite_", "a ControlNet-LLLite"),
    (r"lora_(unet|te)|.+\.lora_[AB]\b", "a LoRA"),
    (r"(image_proj|ip_adapter)\b", "an IP-Adapter"),
    (r"(adapter\.)?body\.\d|style_embedding", "a T2I-Adapter"),
    (r"task_embedding|control_add_embedding\.", "a ControlNet-Union"),
    (r"(model\.diffusion_model\.)?double_blocks\.|controlnet_x_embedder\.", "for Flux"),
    (r"(model\.diffusion_model\.)?joint_blocks\.|pos_embed_input\.", "for Stable Diffusion 3"),
    (r"controlnet_blocks\.|(single_)?transformer_blocks\.\d", "for a transformer, like Flux"),
    (r"conditioner\.|add_embedding\.", "for Stable Diffusion XL"),
    (r"((control_model|model\.diffusion_model)\.)?label_emb\.", "for Stable Diffusion XL"),
)
POOLING = r"^[^#\n]*global_(pool_\w+|average_\w+)\W+(true|yes|1|false|no|0)\b"  # in configurations
# ControlNets whose residuals have to be averaged over the picture, by their published names.
SHUFFLE = re.compile(r"control_v11e_sd15_shuffle\b.*|control_v11e_sd15_shuffle_fp16", re.IGNORECASE)


def holds_base(tensors: Tensors) -> bool:
    """Whether there is a U-Net. Files of ControlNet 1.0 hold one too."""
    return any(name.startswith(UNET_KEYS) for name in tensors)


def holds_control(tensors: Tensors) -> bool:
    """Whether there is a ControlNet, under the original's names or diffusers'."""
    names = (CONTROL_KEYS, "zero_convs.")
    return is_diffusers(tensors) or any(name.startswith(names) for name in tensors)


def base_tensors(file: TensorFile) -> Tensors:
    """The tensors of a base model's networks. Raises InputError, naming the file, if it holds no
    base model or a tensor without a place."""
    path, tensors, _ = file
    if kind := other_kind(tensors):
        raise InputError(f"{path} is {kind}; expected a file for Stable Diffusion 1 or 2")
    if not holds_base(tensors):
        what = "only a ControlNet" if holds_control(tensors) else f"only {first_three(tensors)} ..."
        raise InputError(f"{path} holds {what}; expected a whole Stable Diffusion checkpoint")
    check_places(file, BASE_KEYS)
    if missing := missing_parts(tensors):
        whole = "expected a whole Stable Diffusion checkpoint"
        raise InputError(f"{path} has no {' and no '.join(missing)}; {whole}")
    return {name: tensor for name, tensor in tensors.items() if not IGNORED.fullmatch(name)}


def missing_parts(tensors: Tensors) -> list[str]:
    """Which parts a base model lacks besides its U-Net."""
    parts = {"VAE": (VAE_KEYS,), "text encoder": (CLIP_KEYS, OPEN_CLIP_KEYS)}
    return [part for part, keys in parts.items() if not any(n.startswith(keys) for n in tensors)]


def control_tensors(file: TensorFile) -> Tensors:
    """A ControlNet's tensors, without the prefix `control_model.`. Raises InputError, naming the
    file, if it holds none, one of another kind, or a tensor without a place."""
    path, tensors, _ = file
    if kind := other_kind(tensors):
        raise InputError(f"{path} is {kind}; expected a file for Stable Diffusion 1 or 2")
    if any(name.endswith("difference") for name in tensors):
        raise InputError(f"{path} is a 'difference' to be added to a base; expected a full one")
    if needs_pooling(path):
        raise InputError(f"{path} needs a pooling, like the shuffle model; expected another")
    if not holds_control(tensors):
        raise InputError(f"{path} holds only {first_three(tensors)} ...; expected a ControlNet")
    if not (own := below(CONTROL_KEYS, tensors)):
        return tensors
    check_places(file, BASE_KEYS if holds_base(tensors) else ())
    return own


def other_kind(tensors: Tensors) -> str:
    """The kind of a model that nothing here reads; "" for others."""
    for pattern, kind in OTHER_KINDS:
        if any(re.match(pattern, name) for name in tensors):
            return kind
    return ""


def needs_pooling(path: Path) -> bool:
    """Whether a ControlNet's residuals have to be averaged over the picture: as the configuration
    next to the file says, diffusers' or the original's, else by the published names."""
    for config in (path.with_name("config.json"), path.with_suffix(".yaml")):
        text = config.read_text(errors="replace") if os.path.isfile(config) else ""
        if found := re.search(POOLING, text, re.IGNORECASE | re.MULTILINE):
            return found[2].lower() in ("true", "yes", "1")
    return any(SHUFFLE.fullmatch(name) for name in (path.stem, path.absolute().parent.name))


def check_places(file: TensorFile, places: tuple[str, ...]) -> None:
    """Refuse a file with tensors that neither belong to these networks nor are passed over."""
    extra = [name for name in file.tensors if not name.startswith(places)]
    check_none(file.path, "without a place", [n for n in extra if not IGNORED.fullmatch(n)])

"""The names of tensors in the original Stable Diffusion and ControlNet files: which network each
belongs to, and which files are refused for what they hold."""

import re

from nanocontrol.formats.checks import check_none, first_three
from nanocontrol.formats.diffusers_names import is_diffusers
from nanocontrol.formats.tensors import TensorFile, Tensors, below
from nanocontrol.plumbing.errors import InputError

# The beginning of a tensor's name is its network.
UNET_KEYS, VAE_KEYS, CONTROL_KEYS = "model.diffusion_model.", "first_stage_model.", "control_model."
CLIP_KEYS, OPEN_CLIP_KEYS = "cond_stage_model.transformer.", "cond_stage_model.model."
BASE_KEYS = (UNET_KEYS, VAE_KEYS, CLIP_KEYS, OPEN_CLIP_KEYS)

# The only names in a Stable Diffusion file that are passed over: what follows from the schedule,
# running averages (`model_ema`; the U-Net proper is read), parts of the text encoders that Stable
# Diffusion does not use, and a ControlNet in the same file. position_ids is always 0..76, and wrong
# in some merged files.
IGNORED = re.compile(
    r"betas|(sqrt_|log_)?(one_minus_)?(recipm?1?_)?alphas_cumprod(_prev)?|posterior_\w+|logvar"
    r"|scale_factor|model_ema\..+|control_model\..+"
    r"|cond_stage_model\.transformer\.(text_model\.)?embeddings\.position_ids"
    r"|cond_stage_model\.model\.(text_projection|logit_scale|attn_mask)"
)


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
    if not holds_base(tensors):
        what = "only a ControlNet" if holds_control(tensors) else f"only {first_three(tensors)} ..."
        raise InputError(f"{path} holds {what}; expected a whole Stable Diffusion checkpoint")
    check_places(file, BASE_KEYS)
    return {name: tensor for name, tensor in tensors.items() if not IGNORED.fullmatch(name)}


def control_tensors(file: TensorFile) -> Tensors:
    """A ControlNet's tensors, without the prefix `control_model.`. Raises InputError, naming the
    file, if it holds none, one of another kind, or a tensor without a place."""
    path, tensors, _ = file
    if any(name.endswith("difference") for name in tensors):
        raise InputError(f"{path} is a 'difference' to be added to a base; expected a full one")
    if "shuffle" in path.stem:
        raise InputError(f"{path} is the shuffle model, which needs a pooling; expected another")
    if not holds_control(tensors):
        raise InputError(f"{path} holds only {first_three(tensors)} ...; expected a ControlNet")
    if not (own := below(CONTROL_KEYS, tensors)):
        return tensors
    check_places(file, BASE_KEYS if holds_base(tensors) else ())
    return own


def check_places(file: TensorFile, places: tuple[str, ...]) -> None:
    """Refuse a file with tensors that neither belong to these networks nor are passed over."""
    extra = [name for name in file.tensors if not name.startswith(places)]
    check_none(file.path, "without a place", [n for n in extra if not IGNORED.fullmatch(n)])

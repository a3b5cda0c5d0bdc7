"""Reading and writing checkpoints: the original Stable Diffusion and ControlNet files, and our own.

Attribute names are the original's keys, so files are loaded part by part, strictly, without a table
of names. Networks are built without memory, then the file's tensors are put in their places. They
are mapped from disk: only what changes device or precision is copied.
"""

import re
from pathlib import Path

import torch

from nanocontrol.clip import CLIPTextEncoder, OpenCLIPTextEncoder, TextConfig
from nanocontrol.controlnet import ControlNet
from nanocontrol.formats.checks import check_none, first_three
from nanocontrol.formats.diffusers_names import from_diffusers, is_diffusers
from nanocontrol.formats.tensors import (
    TensorFile,
    Tensors,
    below,
    count,
    load_weights,
    open_tensors,
    reading_shapes_of,
    without_weights,
    write_tensors,
)
from nanocontrol.plumbing.errors import InputError
from nanocontrol.stable_diffusion import StableDiffusion, TextEncoder
from nanocontrol.unet import SD1, SD2, UNet, UNetConfig
from nanocontrol.vae import VAE, VAEConfig

# Which network a tensor belongs to, by the beginning of its name.
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

# What a StableDiffusion knows beside its networks, as our files' metadata has it.
OWN_METADATA = ("scale_factor", "guidance", "size")


# ------------------------------------------------------------ architectures, read off the shapes


def unet_config(file: TensorFile, tensors: Tensors, base: UNetConfig | None = None) -> UNetConfig:
    """The configuration of a U-Net or ControlNet in a file, with these tensors.

    What the shapes cannot tell, heads and groups, is in our own files' metadata. Where it is not, a
    ControlNet has it from the base that it is loaded for, anything else from Stable Diffusion.
    """
    width, inputs = tensors["input_blocks.0.0.weight"].shape[:2]
    if inputs != 4:
        raise InputError(f"{file.path}: expected 4 input channels, not {inputs} (inpainting: 9)")
    levels: list[list[int]] = [[]]  # the output channels of every block, by resolution
    attention_levels, context_dim = set(), 0
    for i in range(1, count(tensors, "input_blocks.{}.0.")):
        if f"input_blocks.{i}.0.op.weight" in tensors:
            levels.append([])
            continue
        levels[-1].append(tensors[f"input_blocks.{i}.0.out_layers.3.weight"].shape[0])
        to_k = tensors.get(f"input_blocks.{i}.1.transformer_blocks.0.attn2.to_k.weight")
        if to_k is not None:
            attention_levels.add(len(levels) - 1)
            context_dim = to_k.shape[1]
    if base is None or base.context_dim != context_dim:
        base = SD2 if context_dim == SD2.context_dim else SD1
    return UNetConfig(
        model_channels=width,
        channel_mult=tuple(channels[0] // width for channels in levels),
        num_res_blocks=len(levels[0]),
        attention_levels=tuple(sorted(attention_levels)),
        context_dim=context_dim,
        num_heads=file.metadata.get("num_heads", base.num_heads),
        head_dim=base.head_dim,
        linear_proj=base.linear_proj,
        norm_groups=file.metadata.get("norm_groups", base.norm_groups),
    )


def hint_channels(tensors: Tensors) -> tuple[int, ...]:
    """Of a ControlNet's condition encoder: its first convolution's, and of those that halve."""
    return tuple(tensors[f"input_hint_block.{i}.weight"].shape[0] for i in (0, 4, 8, 12))


def vae_config(tensors: Tensors, metadata: dict) -> VAEConfig:
    """The configuration of a VAE."""
    ch = tensors["encoder.conv_in.weight"].shape[0]
    mult = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // ch for i in range(4)]
    blocks = count(tensors, "encoder.down.0.block.{}.")
    return VAEConfig(ch, tuple(mult), blocks, metadata.get("norm_groups", 32))


def text_encoder_for(tensors: Tensors) -> tuple[TextEncoder, Tensors]:
    """The text encoder that a base model's file holds, without weights, and its tensors."""
    if text := below(OPEN_CLIP_KEYS, tensors):
        vocabulary, width = text["token_embedding.weight"].shape
        layers = count(text, "transformer.resblocks.{}.")
        return OpenCLIPTextEncoder(TextConfig(width, layers, vocabulary)), text
    # Some merged files leave `text_model.` out.
    text = {name.removeprefix("text_model."): t for name, t in below(CLIP_KEYS, tensors).items()}
    text = {"text_model." + name: tensor for name, tensor in text.items()}
    vocabulary, width = text["text_model.embeddings.token_embedding.weight"].shape
    layers = count(text, "text_model.encoder.layers.{}.")
    return CLIPTextEncoder(TextConfig(width, layers, vocabulary)), text


# ---------------------------------------------------------------------------------- loading


def check_places(file: TensorFile, places: tuple[str, ...]) -> None:
    """Refuse a file with tensors that neither belong to these networks nor are passed over."""
    extra = [name for name in file.tensors if not name.startswith(places)]
    check_none(file.path, "without a place", [n for n in extra if not IGNORED.fullmatch(n)])


def read_base(file: str | Path | TensorFile) -> tuple[TensorFile, UNetConfig]:
    """A base model's file, of its tensors those that belong to a network, and the configuration of
    its U-Net. No weight is read: that happens when a tensor is used."""
    file = open_tensors(file)
    path, tensors = file.path, file.tensors
    if not holds_base(tensors):
        what = "only a ControlNet" if holds_control(tensors) else f"only {first_three(tensors)} ..."
        raise InputError(f"{path} holds {what}; expected a whole Stable Diffusion checkpoint")
    check_places(file, BASE_KEYS)
    tensors = {name: t for name, t in tensors.items() if not IGNORED.fullmatch(name)}
    with reading_shapes_of(path):
        return file._replace(tensors=tensors), unet_config(file, below(UNET_KEYS, tensors))


def load_sd(
    path: str | Path | TensorFile,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction: str = "auto",
) -> StableDiffusion:
    """A base model from any original file of Stable Diffusion 1.x or 2.x, or from our own.

    path: of the file, which may be open already;
    dtype: of the weights; with float16 the VAE's stay float32;
    prediction: "eps" or "v", what the U-Net was trained to predict; "auto" finds out (from our
    metadata, or by trying).
    The networks come locked: no parameter asks for a gradient.
    Raises InputError, naming the file, if it holds no such model or not all of it.
    """
    (path, tensors, metadata), config = read_base(path)
    unet_tensors, vae_tensors = below(UNET_KEYS, tensors), below(VAE_KEYS, tensors)
    with reading_shapes_of(path), without_weights():
        unet = UNet(config)
        vae = VAE(vae_config(vae_tensors, metadata))
        text_encoder, text_tensors = text_encoder_for(tensors)
    networks = (unet, unet_tensors), (vae, vae_tensors), (text_encoder, text_tensors)
    if sum(len(its_tensors) for _, its_tensors in networks) < len(tensors):
        raise InputError(f"{path} holds two text encoders; expected one")
    for network, its_tensors in networks:
        # (The VAE's values can leave float16's range, and pictures become black.)
        own_dtype = torch.float32 if network is vae and dtype == torch.float16 else dtype
        load_weights(network, its_tensors, path).requires_grad_(False).to(device, own_dtype)
    if prediction == "auto":
        prediction = metadata.get("prediction") or guess_prediction(unet)
    own = {name: metadata[name] for name in OWN_METADATA if name in metadata}
    return StableDiffusion(unet, vae, text_encoder, prediction, **own)


@torch.no_grad()
def guess_prediction(unet: UNet) -> str:
    """Ask it: at the noisiest step x is noise, which an eps-model gives back and a v-model does not
    (it gives about -x_0). Only Stable Diffusion 2 comes in both kinds. (AUTOMATIC1111's test.)"""
    if unet.config.context_dim != 1024:
        return "eps"
    weight = next(unet.parameters())
    x, context = weight.new_full((1, 4, 8, 8), 0.5), weight.new_full((1, 2, 1024), 0.5)
    output = unet(x, torch.tensor([999], device=weight.device), context)
    # Here x = 0.07 x_0 + noise. An eps-model answers with a noise between x itself and 0 (where x_0
    # explains all of x): the difference is 0 to -0.5. A v-model answers 0.07 noise - x_0, so about
    # 0.03 - x_0: the difference is below -1 if x_0 is above 0.5. It is by far, since noise is never
    # 0.5 everywhere, and x_0 would have to be 7 to explain it. (Reasoned, not measured here.)
    return "v" if (output - x).mean() < -1 else "eps"


def holds_base(tensors: Tensors) -> bool:
    """Whether there is a U-Net. ControlNet v1.0 files hold one too."""
    return any(name.startswith(UNET_KEYS) for name in tensors)


def holds_control(tensors: Tensors) -> bool:
    names = (CONTROL_KEYS, "zero_convs.")
    return is_diffusers(tensors) or any(name.startswith(names) for name in tensors)


def read_control(file: str | Path | TensorFile, base: UNetConfig | None = None) -> ControlNet:
    """The ControlNet in a file, in the file's precision. As in `read_base`, no weight is read, but
    every tensor is in its place: it is whole.

    base: what it is loaded for, from which it takes what its file does not say (`unet_config`).
    Raises InputError, naming the file, if there is none or not all of it.
    """
    file = open_tensors(file)
    path, tensors = file.path, file.tensors
    if any(name.endswith("difference") for name in tensors):
        raise InputError(f"{path} is a 'difference' to be added to a base; expected a full one")
    if "shuffle" in path.stem:
        raise InputError(f"{path} is the shuffle model, which needs a pooling; expected another")
    if not holds_control(tensors):
        raise InputError(f"{path} holds only {first_three(tensors)} ...; expected a ControlNet")
    if own := below(CONTROL_KEYS, tensors):  # else every tensor is a ControlNet's
        check_places(file, BASE_KEYS if holds_base(tensors) else ())
        tensors = own
    with reading_shapes_of(path), without_weights():
        if is_diffusers(tensors):
            tensors = from_diffusers(tensors)
        control = ControlNet(unet_config(file, tensors, base), hint_channels(tensors))
    return load_weights(control, tensors, path)


def load_control(path: str | Path | TensorFile, unet: UNet) -> ControlNet:
    """A ControlNet for this U-Net, on its device and in its precision, from any original file that
    holds one, from diffusers' or from our own. path: of the file, which may be open already.

    Raises InputError, naming the file, if it holds none, not all of it, or one for another base.
    """
    file = open_tensors(path)
    control = read_control(file, unet.config)
    if control.config != unet.config:
        made_for, base = described(control.config), described(unet.config)
        raise InputError(f"{file.path} is a ControlNet for {made_for}, expected one for {base}")
    return control.to(next(unet.parameters()))


def described(config: UNetConfig) -> str:
    if config in (SD1, SD2):
        return "Stable Diffusion 1" if config == SD1 else "Stable Diffusion 2"
    mult, heads = "-".join(map(str, config.channel_mult)), config.num_heads
    return (
        f"a base of {config.model_channels} channels times {mult}, {heads} heads, "
        f"{config.norm_groups} groups and prompts {config.context_dim} wide"
    )


# ---------------------------------------------------------------------------------- saving


def save_control(control: ControlNet, path: str | Path, condition: str | None = None) -> None:
    """Write the ControlNet alone, as safetensors under the original's names, atomically. What it
    follows, if that is one of the drawn world's conditions, is noted in the metadata.

    Raises InputError if the file cannot be written; an older one of that name then stays.
    """
    tensors = {CONTROL_KEYS + name: tensor for name, tensor in control.state_dict().items()}
    write_tensors(Path(path), tensors, metadata_of(control.config, condition))


def save_sd(sd: StableDiffusion, path: str | Path) -> None:
    """The same for a base model."""
    text_keys = CLIP_KEYS if isinstance(sd.text_encoder, CLIPTextEncoder) else OPEN_CLIP_KEYS
    tensors: Tensors = {}
    for keys, network in (UNET_KEYS, sd.unet), (VAE_KEYS, sd.vae), (text_keys, sd.text_encoder):
        tensors |= {keys + name: tensor for name, tensor in network.state_dict().items()}
    own = {name: getattr(sd, name) for name in OWN_METADATA} | {"prediction": sd.prediction}
    write_tensors(Path(path), tensors, metadata_of(sd.unet.config) | own)


def metadata_of(config: UNetConfig, condition: str | None = None) -> dict:
    note = {"condition": condition} if condition else {}
    return {"num_heads": config.num_heads, "norm_groups": config.norm_groups} | note

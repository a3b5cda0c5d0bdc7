"""Reading and writing checkpoints: the original Stable Diffusion and ControlNet files, and our own.

Attribute names are the original's keys, so files are loaded strictly, network by network, without a
table of names. Networks are built without memory, then the file's tensors become their weights.
These are mapped from disk: only what changes device or precision is copied.
"""

from pathlib import Path

import torch

from nanocontrol.clip import CLIPTextEncoder, OpenCLIPTextEncoder, TextConfig
from nanocontrol.controlnet import HINT_LAYERS, ControlNet, read_hint_channels
from nanocontrol.formats.diffusers_names import from_diffusers, is_diffusers
from nanocontrol.formats.original_names import (
    CLIP_KEYS,
    CONTROL_KEYS,
    OPEN_CLIP_KEYS,
    UNET_KEYS,
    VAE_KEYS,
    base_tensors,
    control_tensors,
)
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

# The attributes of StableDiffusion that our own files have in their metadata.
OWN_METADATA = ("scale_factor", "guidance", "size")


# ------------------------------------------------------------ architectures, read off the shapes


def unet_config(file: TensorFile, tensors: Tensors, base: UNetConfig | None = None) -> UNetConfig:
    """The configuration of a U-Net or ControlNet with these tensors.

    Shapes do not show the numbers of heads and groups. Our own files have them in their metadata.
    For other files they are taken from the base that a ControlNet is loaded for, else from Stable
    Diffusion's.
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


def vae_config(tensors: Tensors, metadata: dict) -> VAEConfig:
    """The configuration of a VAE with these tensors."""
    ch = tensors["encoder.conv_in.weight"].shape[0]
    mult = [tensors[f"encoder.down.{i}.block.0.conv1.weight"].shape[0] // ch for i in range(4)]
    blocks = count(tensors, "encoder.down.0.block.{}.")
    return VAEConfig(ch, tuple(mult), blocks, metadata.get("norm_groups", 32))


def text_encoder_for(tensors: Tensors) -> tuple[TextEncoder, Tensors]:
    """A base model's text encoder, without weights, and its tensors."""
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


def read_base(file: str | Path | TensorFile) -> tuple[TensorFile, UNetConfig]:
    """A base model's file with its networks' tensors only, and the configuration of its U-Net. No
    weight is read: that happens when a tensor is used."""
    file = open_tensors(file)
    tensors = base_tensors(file)
    with reading_shapes_of(file.path):
        return file._replace(tensors=tensors), unet_config(file, below(UNET_KEYS, tensors))


def load_sd(
    path: str | Path | TensorFile,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    prediction: str = "auto",
) -> StableDiffusion:
    """A base model from any original file of Stable Diffusion 1.x or 2.x, or from our own.

    path: of the file, which may be open already;
    dtype: of the weights; with float16 the VAE's are float32;
    prediction: "eps" or "v", what the U-Net was trained to predict; "auto" takes it from our
    metadata, or tries the U-Net.
    The networks are locked: no parameter requires a gradient.
    Raises InputError, naming the file, if it holds no such model or lacks a part of it.
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
        # The VAE's values can leave float16's range, and pictures become black.
        own_dtype = torch.float32 if network is vae and dtype == torch.float16 else dtype
        load_weights(network, its_tensors, path).requires_grad_(False).to(device, own_dtype)
    if prediction == "auto":
        prediction = metadata.get("prediction") or guess_prediction(unet)
    own = {name: metadata[name] for name in OWN_METADATA if name in metadata}
    return StableDiffusion(unet, vae, text_encoder, prediction, **own)


@torch.no_grad()
def guess_prediction(unet: UNet) -> str:
    """Try the U-Net at the noisiest step, where x is noise: an eps-model returns x, a v-model about
    -x_0. Only Stable Diffusion 2 comes in both kinds. (AUTOMATIC1111's test.)"""
    if unet.config.context_dim != 1024:
        return "eps"
    weight = next(unet.parameters())
    x, context = weight.new_full((1, 4, 8, 8), 0.5), weight.new_full((1, 2, 1024), 0.5)
    output = unet(x, torch.tensor([999], device=weight.device), context)
    # Here x = 0.07 x_0 + noise. An eps-model's output is between x and 0 (0 if x_0 explains all of
    # x): the difference is 0 to -0.5. A v-model's output is 0.07 noise - x_0, about 0.03 - x_0: the
    # difference is below -1 if x_0 is above 0.5. It is far above: noise is never 0.5 everywhere,
    # and x_0 would have to be 7 to explain x.
    return "v" if (output - x).mean() < -1 else "eps"


def read_control(file: str | Path | TensorFile, base: UNetConfig | None = None) -> ControlNet:
    """The ControlNet in a file, in the file's precision. No weight is read, as in `read_base`, but
    every tensor is in its place.

    base: the configuration of the base that it is loaded for; see `unet_config`.
    Raises InputError, naming the file, if it holds none or lacks a part of it.
    """
    file = open_tensors(file)
    tensors = control_tensors(file)
    with reading_shapes_of(file.path), without_weights():
        if is_diffusers(tensors):
            tensors = from_diffusers(tensors, len(HINT_LAYERS))
        control = ControlNet(unet_config(file, tensors, base), read_hint_channels(tensors))
    return load_weights(control, tensors, file.path)


def load_control(path: str | Path | TensorFile, unet: UNet) -> ControlNet:
    """A ControlNet for this U-Net, on its device and in its precision, from any original file that
    holds one, from diffusers' or from our own. path: of the file, which may be open already.

    Raises InputError, naming the file, if it holds none, lacks a part, or is for another base.
    """
    file = open_tensors(path)
    control = read_control(file, unet.config)
    if control.config != unet.config:
        made_for, base = architecture(control.config), architecture(unet.config)
        raise InputError(f"{file.path} is a ControlNet for {made_for}, expected one for {base}")
    return control.to(next(unet.parameters()))


def architecture(config: UNetConfig) -> str:
    """The name or description of a base with this configuration, for messages."""
    if config in (SD1, SD2):
        return "Stable Diffusion 1" if config == SD1 else "Stable Diffusion 2"
    mult, heads = "-".join(map(str, config.channel_mult)), config.num_heads
    return (
        f"a base of {config.model_channels} channels times {mult}, {heads} heads, "
        f"{config.norm_groups} groups and prompts {config.context_dim} wide"
    )


# ---------------------------------------------------------------------------------- saving


def save_control(control: ControlNet, path: str | Path, condition: str | None = None) -> None:
    """Write a ControlNet as safetensors under the original's names, atomically.

    condition: the drawn world's condition that it was trained on, for the metadata.
    Raises InputError if the file cannot be written; an older file of that name is then unchanged.
    """
    tensors = {CONTROL_KEYS + name: tensor for name, tensor in control.state_dict().items()}
    write_tensors(Path(path), tensors, metadata_of(control.config, condition))


def save_sd(sd: StableDiffusion, path: str | Path) -> None:
    """Write a base model, as `save_control` writes a ControlNet."""
    text_keys = CLIP_KEYS if isinstance(sd.text_encoder, CLIPTextEncoder) else OPEN_CLIP_KEYS
    tensors: Tensors = {}
    for keys, network in (UNET_KEYS, sd.unet), (VAE_KEYS, sd.vae), (text_keys, sd.text_encoder):
        tensors |= {keys + name: tensor for name, tensor in network.state_dict().items()}
    own = {name: getattr(sd, name) for name in OWN_METADATA} | {"prediction": sd.prediction}
    write_tensors(Path(path), tensors, metadata_of(sd.unet.config) | own)


def metadata_of(config: UNetConfig, condition: str | None = None) -> dict:
    """Our own metadata: everything about a network that its shapes do not show."""
    note = {"condition": condition} if condition else {}
    return {"num_heads": config.num_heads, "norm_groups": config.norm_groups} | note

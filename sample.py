"""Make pictures with ControlNets: the whole method is in `generate`.

    python sample.py
        the bundled small model, its ControlNet, and drawn edges to follow
    python sample.py --base weights/v1-5-pruned-emaonly.safetensors --hint edges.png \\
                     --control weights/control_v11p_sd15_canny.pth --prompt "a red sports car"

nanocontrol/commands/README.md lists the flags, nanocontrol/tools/README.md has examples.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from nanocontrol import DDIM, DDPM, StableDiffusion, load_sd, sample
from nanocontrol.commands.flags import parse_flags
from nanocontrol.commands.inputs import Inputs, read_inputs, refuse_nan
from nanocontrol.plumbing.errors import blame, one_sentence, say
from nanocontrol.plumbing.files import make_folder
from nanocontrol.plumbing.machine import for_sampling, is_gpu, keep_freed_memory
from nanocontrol.plumbing.pictures import save_picture, to_bytes, to_pixels
from nanocontrol.sampling import Control, initial_noise

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@torch.no_grad()
def generate(
    sd: StableDiffusion,
    prompt: str,
    negative: str = "",
    controls: Sequence[Control] = (),
    n: int = 4,
    height: int | None = None,
    width: int | None = None,
    seed: int = 0,
    steps: int = 20,
    scale: float | None = None,
    scheduler: DDPM | None = None,
    image: Tensor | None = None,
    mask: Tensor | None = None,
    **options,
) -> list[np.ndarray]:
    """Make n pictures [H, W, 3], uint8.

    sd and the networks in controls are on one device, in any precision. A control is a network, its
    hint [1, 3, H, W], RGB in [0, 1], and its strength (see sampling.py).
    height, width: multiples of 64, those of the hints and the image (default: the base's size);
    scale: of guidance (default: the base's own); scheduler: DDIM by default;
    image [3, H, W], RGB in [0, 1]; mask [H, W], bool: True where the image is repainted;
    options: guess, resolution_weighting, control_from, control_to and noised, as in `sample`.
    Raises ValueError as `sample` does, and InputError if the latents become NaN or infinite.
    """
    # Noise and prompts. The generator is on the CPU, so a seed gives the same noise on any device.
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = initial_noise(n, height or sd.size, width or sd.size, generator)
    context, uncond = sd.encode_prompts(prompt), sd.encode_prompts(negative)
    scale = sd.guidance if scale is None else scale

    # A picture to begin with or to repaint. A latent is repainted if one of its pixels is.
    latent_image = latent_mask = None
    if image is not None:
        mean, _ = sd.encode(image[None] * 2 - 1)
        latent_image = sd.scale_factor * mean.float()
    if mask is not None:
        latent_mask = F.max_pool2d(mask[None, None].float(), 8).bool()

    # From noise to latents, step by step, and from latents to pictures.
    options |= {"progress": True, "image": latent_image, "mask": latent_mask}
    latents = sample(
        sd, noise, context, uncond, controls, steps, scale, scheduler, generator, **options
    )
    refuse_nan(latents)
    pictures = [to_pixels(refuse_nan(sd.decode(z[None]))[0]) for z in tqdm(latents, "decoding")]
    if mask is not None and image is not None:
        # The other pixels are the input's to the bit, not what the VAE makes of them.
        pictures = [np.where(mask[..., None], p, to_bytes(image)) for p in pictures]
    return pictures


def load(
    inputs: Inputs, device: str, dtype: torch.dtype, prediction: str
) -> tuple[StableDiffusion, list[Control]]:
    """The locked base model, and the ControlNets with their hints and strengths."""
    with blame("--base"):
        sd = load_sd(inputs.base, device, dtype, prediction)
    nets = [net.to(next(sd.unet.parameters())) for net in inputs.controls]
    if is_gpu(device):
        for_sampling()
        for network in (sd.unet, sd.vae, *nets):  # a GPU's fastest order for convolutions
            network.to(memory_format=torch.channels_last)
    hints = [hint[None] for hint in inputs.hints]
    return sd, list(zip(nets, hints, inputs.strengths, strict=True))


def save(pictures: list[np.ndarray], inputs: Inputs, settings: dict, out: Path) -> None:
    """Write every picture with its settings in its metadata, and a sheet of hints, image and
    pictures."""
    for i, picture in enumerate(pictures):
        text = PngInfo()
        text.add_itxt("prompt", inputs.prompt)
        text.add_itxt("seed", str(settings["seed"]))
        text.add_itxt("settings", json.dumps(settings | {"picture": i}, default=str))
        save_picture(Image.fromarray(picture), out / f"{i:03d}.png", text)
    given = [to_bytes(p) for p in (*inputs.hints, inputs.image) if p is not None]
    save_picture(Image.fromarray(np.concatenate(given + pictures, axis=1)), out / "sheet.png")
    say(f"{out / 'sheet.png'}: {inputs.prompt or 'no prompt'}, seed {settings['seed']}")


def run(args: argparse.Namespace) -> None:
    """From flags to files. Bad input is refused before anything slow."""
    inputs = read_inputs(args)
    make_folder("--out", args.out)
    sd, controls = load(inputs, args.device, DTYPES[args.dtype], args.prediction)
    scheduler = DDIM(sd.prediction, args.eta) if args.sampler == "ddim" else DDPM(sd.prediction)
    scale = sd.guidance if args.scale is None else args.scale
    pictures = generate(
        sd,
        inputs.prompt,
        args.negative,
        controls,
        n=args.n,
        height=inputs.height,
        width=inputs.width,
        seed=args.seed,
        steps=args.steps,
        scale=scale,
        scheduler=scheduler,
        image=inputs.image,
        mask=inputs.mask,
        guess=args.guess,
        resolution_weighting=args.resolution_weighting,
        control_from=args.control_from,
        control_to=args.control_to,
        noised=inputs.noised,
    )
    save(pictures, inputs, vars(args) | inputs.settings() | {"scale": scale}, args.out)


def main(argv: list[str] | None = None) -> None:
    args = parse_flags(argv, __doc__)
    keep_freed_memory()
    with one_sentence("sample.py", when_memory_is_full="try a lower --n or --width"):
        run(args)


if __name__ == "__main__":
    main()

"""Make pictures with ControlNets: the whole method is in `generate`.

    python sample.py
        the bundled small model, its ControlNet, and drawn edges to follow
    python sample.py --base weights/v1-5-pruned-emaonly.safetensors --hint edges.png \\
                     --control weights/control_v11p_sd15_canny.pth --prompt "a red sports car"

nanocontrol/tools/README.md shows every way to apply a ControlNet.
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

from nanocontrol import DDIM, DDPM, StableDiffusion, load_control, load_sd, sample
from nanocontrol.commands.flags import parse
from nanocontrol.commands.inputs import Inputs, read_inputs
from nanocontrol.plumbing.errors import blame, one_sentence
from nanocontrol.plumbing.files import make_folder
from nanocontrol.plumbing.machine import for_sampling, is_gpu, keep_freed_memory
from nanocontrol.plumbing.pictures import save_picture, to_bytes, to_pixels
from nanocontrol.sampling import Control, initial_noise
from nanocontrol.tools.explain import explain

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
    """n pictures [H, W, 3], bytes.

    sd and the networks in controls: on one device, in any precision; each control is a network,
    its hint [1, 3, H, W], RGB in [0, 1], and its strength (see sampling.py).
    height, width: multiples of 64, those of the hints and the image (None: as the base likes it).
    scale: of guidance (None: the base's own); scheduler: None is DDIM.
    image [3, H, W], RGB in [0, 1]; mask [H, W], bool: what is painted anew of it.
    options: guess, resolution_weighting, control_from, control_to and noised, as in `sample`.
    Raises ValueError for what does not go together.
    """
    # Noise and prompts. (The generator is the CPU's: one seed, one noise, on every device.)
    generator = torch.Generator("cpu").manual_seed(seed)
    noise = initial_noise(n, height or sd.size, width or sd.size, generator)
    context, uncond = sd.encode_prompts(prompt), sd.encode_prompts(negative)
    scale = sd.guidance if scale is None else scale

    # A picture to begin with or to keep parts of. (A latent is new if one of its pixels is.)
    latent_image = latent_mask = None
    if image is not None:
        mean, _ = sd.encode(image[None] * 2 - 1)
        latent_image = sd.scale_factor * mean.float()
    if mask is not None:
        latent_mask = F.max_pool2d(mask[None, None].float(), 8).bool()

    # From noise to latents, step by step; the decoder makes pictures of them.
    options |= {"progress": True, "image": latent_image, "mask": latent_mask}
    latents = sample(
        sd, noise, context, uncond, controls, steps, scale, scheduler, generator, **options
    )
    pictures = [to_pixels(sd.decode(z[None])[0]) for z in tqdm(latents, "decoding")]
    if mask is not None and image is not None:
        # The rest is the input's to the bit: not even the VAE changes it.
        pictures = [np.where(mask[..., None], p, to_bytes(image)) for p in pictures]
    return pictures


def load(
    inputs: Inputs, device: str, dtype: torch.dtype, prediction: str
) -> tuple[StableDiffusion, list[Control]]:
    """The locked base model, and beside it the ControlNets with their hints and strengths."""
    with blame("--base"):
        sd = load_sd(inputs.base, device, dtype, prediction)
    with blame("--control"):
        nets = [load_control(file, sd.unet) for file in inputs.controls]
    if is_gpu(device):
        for_sampling()
        for network in (sd.unet, sd.vae, *nets):  # convolutions are fastest with it there
            network.to(memory_format=torch.channels_last)
    hints = [hint[None] for hint in inputs.hints]
    return sd, list(zip(nets, hints, inputs.strengths, strict=True))


def save(pictures: list[np.ndarray], inputs: Inputs, settings: dict, out: Path) -> None:
    """Each picture with its settings inside, and a sheet that begins with what was given."""
    for i, picture in enumerate(pictures):
        text = PngInfo()
        text.add_itxt("prompt", inputs.prompt)
        text.add_itxt("seed", str(settings["seed"]))
        text.add_itxt("settings", json.dumps(settings | {"picture": i}, default=str))
        save_picture(Image.fromarray(picture), out / f"{i:03d}.png", text)
    given = [to_bytes(p) for p in (*inputs.hints, inputs.image) if p is not None]
    save_picture(Image.fromarray(np.concatenate(given + pictures, axis=1)), out / "sheet.png")
    print(f"{out / 'sheet.png'}: {inputs.prompt or 'no prompt'}, seed {settings['seed']}")


def run(args: argparse.Namespace) -> None:
    """From flags to files. All that can be refused is refused before anything slow."""
    inputs = read_inputs(args)
    make_folder("--out", args.out)
    sd, controls = load(inputs, args.device, DTYPES[args.dtype], args.prediction)
    ddpm = args.sampler == "ddpm"
    scheduler = DDPM(sd.prediction) if ddpm else DDIM(sd.prediction, args.eta)
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
    args = parse(argv, __doc__)
    keep_freed_memory()
    with one_sentence("sample.py", when_memory_is_full="try a lower --n or --width"):
        if args.explain:
            with blame("--explain"):
                print(explain(args.explain, args.check))
        else:
            run(args)


if __name__ == "__main__":
    main()

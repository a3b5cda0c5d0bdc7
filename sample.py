"""Make pictures with ControlNets: the whole method is in `generate`.

    python sample.py
        the bundled small model, its ControlNet, and drawn edges to follow
    python sample.py --base weights/v1-5-pruned-emaonly.safetensors --hint edges.png \\
                     --control weights/control_v11p_sd15_canny.pth --prompt "a red sports car"

The README shows every way to apply a ControlNet.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from tqdm import tqdm

from nanocontrol import load_control, load_sd, sample
from nanocontrol.plumbing.errors import blame, one_sentence
from nanocontrol.plumbing.files import make_folder
from nanocontrol.plumbing.flags import (
    at_least,
    device,
    finite,
    fraction,
    multiple_of_64,
    numbers,
    seed,
)
from nanocontrol.plumbing.machine import default_device, keep_freed_memory
from nanocontrol.plumbing.pictures import save_picture, to_bytes, to_pixels
from nanocontrol.sampling import initial_noise
from nanocontrol.tools.explain import explain
from nanocontrol.tools.inputs import check_files, choose_files, read_inputs

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


# ------------------------------------------------------------------------------- the method


@torch.no_grad()
def generate(args: argparse.Namespace) -> None:
    # All that can be refused is refused here, before anything slow.
    choose_files(args)
    check_files(args)
    hints, image, mask, prompt = read_inputs(args)
    make_folder("--out", args.out)
    dtype = DTYPES[args.dtype]

    # The locked base model, and beside it the ControlNets with their hints.
    with blame("--base"):
        sd = load_sd(args.base, args.device, dtype, args.prediction)
    with blame("--control"):
        nets = [load_control(file, sd.unet) for file in args.control]
    controls = [(n, hint[None], s) for n, hint, s in zip(nets, hints, args.strength, strict=True)]
    if args.device.startswith("cuda"):  # convolutions are fastest with it there
        for network in (sd.unet, sd.vae, *nets):
            network.to(memory_format=torch.channels_last)
    if args.dtype == "fp16":  # the VAE's values can leave its range, and pictures become black
        sd.vae.float()

    # A picture to begin with or to keep parts of; of the mask any pixel makes its latent new.
    latent_image = latent_mask = None
    if image is not None:
        mean, _ = sd.vae.encode((image[None] * 2 - 1).to(next(sd.vae.parameters())))
        latent_image = sd.scale_factor * mean.float()
    if mask is not None:
        latent_mask = F.max_pool2d(mask[None, None].float(), 8).bool()

    # Noise and prompts in, latents out; the decoder makes pictures of them.
    generator = torch.Generator("cpu").manual_seed(args.seed)
    noise = initial_noise(args.n, args.height, args.width, generator)
    context, uncond = sd.encode_prompts(prompt), sd.encode_prompts(args.negative)
    args.scale = sd.guidance if args.scale is None else args.scale
    latents = sample(
        sd,
        noise,
        context,
        uncond,
        controls,
        args.steps,
        args.scale,
        args.eta,
        args.sampler,
        generator,
        progress=True,
        guess=args.guess,
        resolution_weighting=args.resolution_weighting,
        control_from=args.control_from,
        control_to=args.control_to,
        image=latent_image,
        mask=latent_mask,
        noised=args.noise,
    )
    latents = (latents / sd.scale_factor).to(next(sd.vae.parameters()))
    pictures = [to_pixels(sd.vae.decode(z[None])[0]) for z in tqdm(latents, "decoding")]
    given = [to_bytes(picture) for picture in (*hints, image) if picture is not None]
    if mask is not None:  # the rest is the input's to the bit: not even the VAE changes it
        pictures = [np.where(mask[..., None], picture, given[-1]) for picture in pictures]
    save_all(args, prompt, given, pictures)


def save_all(
    args: argparse.Namespace, prompt: str, given: list[np.ndarray], pictures: list[np.ndarray]
) -> None:
    """Each picture with its settings inside, and a sheet that begins with what was given."""
    for i, picture in enumerate(pictures):
        text = PngInfo()
        text.add_itxt("prompt", prompt)
        text.add_itxt("seed", str(args.seed))
        settings = vars(args) | {"prompt": prompt, "picture": i}
        text.add_itxt("settings", json.dumps(settings, default=str))
        save_picture(Image.fromarray(picture), args.out / f"{i:03d}.png", text)
    sheet = Image.fromarray(np.concatenate(given + pictures, axis=1))
    save_picture(sheet, args.out / "sheet.png")
    print(f"{args.out / 'sheet.png'}: {prompt or 'no prompt'}, seed {args.seed}")


# ------------------------------------------------------------------------------------- flags


class CannyOfHint(argparse.Action):
    """--canny belongs to the --hint before it, or to the first."""

    def __call__(self, parser, args, values, option_string=None):
        args.canny = args.canny | {max(0, len(args.hint) - 1): values}


def parse(argv: list[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    several = {"action": "append", "default": []}
    add("--base", type=Path, help="a Stable Diffusion 1 or 2 (default: in --control, else nano)")
    add("--control", type=Path, **several, help="a ControlNet for that base; may be repeated")
    add("--hint", type=Path, **several, help="the picture that it follows; one for each")
    strength = "of a control, 1 as trained: a number, or one for each residual, like 1,1,0.5"
    add("--strength", type=numbers, **several, help=strength)
    add(
        "--canny",
        nargs=2,
        type=at_least(0),
        metavar=("LOW", "HIGH"),
        action=CannyOfHint,
        default={},
        help="the --hint before this is a photo: follow its edges",
    )
    words = parser.add_mutually_exclusive_group()
    prompt = "what the picture shows; 'default' is the paper's default prompt (not given: none)"
    words.add_argument("--prompt", help=prompt)
    words.add_argument("--prompt-from", type=Path, metavar="FILE", help="a caption file (text)")
    add("--negative", default="", metavar="PROMPT", help="what it does not show")
    add("--n", type=at_least(1), default=4, help="pictures to make (default: 4)")
    add("--steps", type=at_least(1), default=20, help="1 to 1000 (default: 20)")
    add("--scale", type=finite, help="of guidance (default: 9; nano has its own)")
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument("--guess", action="store_true", help="guess mode: for hints without prompt")
    rule.add_argument("--resolution-weighting", action="store_true", help="the paper's CFG-RW")
    of_steps = {"type": fraction, "metavar": "FRACTION"}
    add("--control-from", **of_steps, default=0.0, help="of the steps, where control begins")
    add("--control-to", **of_steps, default=1.0, help="and where it ends")
    add("--image", type=Path, help="a picture to begin with (see --noise), or to repaint (--mask)")
    add("--mask", type=Path, help="white is painted anew, all else stays")
    noise = "of the steps, to which --image is noised (default: 0.75; with --mask noise alone)"
    add("--noise", **of_steps, help=noise)
    add("--eta", type=fraction, default=0.0, help="DDIM's noise, 0 to 1 (default: 0)")
    add("--sampler", choices=["ddim", "ddpm"], default="ddim")
    add("--prediction", choices=["auto", "eps", "v"], default="auto", help="what the base predicts")
    add("--seed", type=seed, default=0)
    size = "in pixels (default: the hint's or image's shape, its short side being the base's size)"
    add("--height", type=multiple_of_64, help=size)
    add("--width", type=multiple_of_64)
    add("--device", type=device, default=default_device(), help="default: a GPU if there is one")
    add("--dtype", choices=DTYPES, default="fp32")
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="default: out")
    add("--explain", type=Path, metavar="FILE", help="say what a checkpoint is, and stop")
    args = parser.parse_args(argv)
    if args.steps > 1000:
        parser.error(f"--steps {args.steps}: at most 1000 are wanted")
    if args.eta and args.sampler == "ddpm":
        parser.error("--eta is DDIM's: it is not wanted with --sampler ddpm")
    if args.control_from > args.control_to:
        order = f"--control-from {args.control_from:g} is after --control-to {args.control_to:g}"
        parser.error(f"{order}; from 0 to 1, in this order, are wanted")
    if (args.mask or args.noise is not None) and not args.image:
        parser.error("--mask and --noise are for a picture: --image is wanted")
    if args.canny and not args.hint:
        parser.error("--canny is for a picture: --hint is wanted")
    for low, high in args.canny.values():
        if low > high:
            parser.error(f"--canny {low} {high}: the lower threshold first is wanted")
    if args.image and not args.mask and args.noise is None:
        args.noise = 0.75
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    keep_freed_memory()
    with one_sentence("sample.py", when_memory_is_full="a lower --n or --width is wanted"):
        if args.explain:
            with blame("--explain"):
                print(explain(args.explain))
        else:
            generate(args)


if __name__ == "__main__":
    main()

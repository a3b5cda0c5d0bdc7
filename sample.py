"""Make pictures with a ControlNet: the whole method on one page.

    python sample.py
        the bundled small model, its ControlNet, and a drawn outline to follow
    python sample.py --base weights/v1-5-pruned-emaonly.safetensors --hint edges.png \\
                     --control weights/control_v11p_sd15_canny.pth --prompt "a red sports car"
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from PIL.PngImagePlugin import PngInfo
from torch import Tensor
from tqdm import tqdm

from nanocontrol import InputError, load_control, load_sd, sample
from nanocontrol.checkpoint import holds_base, read_tensors
from nanocontrol.data import HELD_OUT, Scenes
from nanocontrol.files import make_folder
from nanocontrol.flags import at_least, blame, default_device, device, multiple_of_64, seed
from nanocontrol.pictures import grid, open_picture, read_picture, save_picture
from nanocontrol.sampling import initial_noise

WEIGHTS = Path(__file__).parent / "weights"
NANO, NANO_CONTROL = WEIGHTS / "nano.safetensors", WEIGHTS / "nano-control-outline.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@torch.no_grad()
def generate(args: argparse.Namespace) -> None:
    choose_files(args)
    hint, prompt = hint_and_prompt(args)
    make_folder("--out", args.out)
    dtype = DTYPES[args.dtype]

    # The locked base model, and beside it the ControlNet with its hint.
    with blame("--base"):
        sd = load_sd(args.base, args.device, dtype, args.prediction)
    controls = []
    if hint is not None:
        with blame("--control"):
            control = load_control(args.control, sd.unet)
        controls = [(control, hint[None], args.strength)]

    # Noise and prompts in, latents out; the decoder makes pictures of them.
    height, width = (args.height, args.width) if hint is None else hint.shape[-2:]
    height, width = height or sd.size, width or sd.size
    generator = torch.Generator("cpu").manual_seed(args.seed)
    noise = initial_noise(args.n, height, width, generator)
    context, uncond = sd.encode_prompts(prompt), sd.encode_prompts(args.negative)
    args.scale = sd.guidance if args.scale is None else args.scale
    latents = sample(
        sd, noise, context, uncond, controls, args.steps, args.scale, args.eta, args.sampler,
        generator, progress=True,
    )  # fmt: skip
    latents = (latents / sd.scale_factor).to(dtype)
    images = [sd.vae.decode(latent[None])[0] for latent in tqdm(latents, "decoding")]

    settings = vars(args) | {"prompt": prompt, "height": height, "width": width}
    for i, image in enumerate(images):
        text = PngInfo()
        text.add_itxt("prompt", prompt)
        text.add_itxt("seed", str(args.seed))
        text.add_itxt("settings", json.dumps(settings | {"picture": i}, default=str))
        save_picture(grid([[image]]), args.out / f"{i:03d}.png", text)
    hints = [] if hint is None else [hint * 2 - 1]
    save_picture(grid([hints + images]), args.out / "sheet.png")
    print(f"{args.out / 'sheet.png'}: {prompt or 'no prompt'}, seed {args.seed}")


def choose_files(args: argparse.Namespace) -> None:
    """Without --base: the base inside a ControlNet v1.0 file, or nano, which draws its own hint."""
    args.drawn = False
    if args.base is None and args.control:
        with blame("--control"):
            args.base = args.control if holds_base(read_tensors(args.control)[0]) else None
    if args.base is None:
        args.base, args.control = NANO, args.control or NANO_CONTROL
        args.drawn = args.hint is None
    if args.control and not args.hint and not args.drawn:
        raise InputError(f"--control {args.control} follows a picture: --hint is wanted")
    if args.hint and not args.control:
        raise InputError(f"--hint {args.hint} is for a ControlNet: --control is wanted")


def hint_and_prompt(args: argparse.Namespace) -> tuple[Tensor | None, str]:
    """The hint, [3, H, W] in [0, 1], both sides multiples of 64; None without a ControlNet."""
    prompt = args.prompt or ""
    if args.drawn:
        _, hint, scene = Scenes(HELD_OUT)[args.seed % HELD_OUT]
        prompt = scene if args.prompt is None else prompt
        args.hint, size = "a drawn outline", (hint.shape[-1], hint.shape[-2])
    elif args.hint is None:
        return None, prompt
    else:
        with blame("--hint"):
            size = tuple(max(64, round(side / 64) * 64) for side in open_picture(args.hint).size)
            hint = read_picture(args.hint, size)
    wanted = (args.width or size[0], args.height or size[1])
    if wanted != size:
        raise InputError(
            f"--hint: {args.hint} is for pictures of {size[0]}x{size[1]}, --width and --height "
            f"are for {wanted[0]}x{wanted[1]}; a hint of that size is wanted"
        )
    return hint, prompt


def parse(argv: list[str] | None) -> argparse.Namespace:
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    add = parser.add_argument
    add("--base", type=Path, help="a Stable Diffusion 1 or 2 (default: in --control, else nano)")
    add("--control", type=Path, help="a ControlNet for that base")
    add("--hint", type=Path, help="the picture that it follows")
    add("--prompt", help="what the picture shows (default: nothing, or what the drawn hint shows)")
    add("--negative", default="", metavar="PROMPT", help="what it does not show")
    add("--n", type=at_least(1), default=4, help="pictures to make (default: 4)")
    add("--steps", type=at_least(1), default=20, help="1 to 1000 (default: 20)")
    add("--scale", type=float, help="of guidance (default: 9; nano has its own)")
    add("--strength", type=float, default=1.0, help="of the control (default: 1)")
    add("--eta", type=float, default=0.0, help="DDIM's noise, 0 to 1 (default: 0)")
    add("--sampler", choices=["ddim", "ddpm"], default="ddim")
    add("--prediction", choices=["auto", "eps", "v"], default="auto", help="what the base predicts")
    add("--seed", type=seed, default=0)
    add("--height", type=multiple_of_64, help="in pixels (default: the hint's, else the base's)")
    add("--width", type=multiple_of_64)
    add("--device", type=device, default=default_device(), help="default: a GPU if there is one")
    add("--dtype", choices=DTYPES, default="fp32")
    add("--out", type=Path, default=Path("out"), metavar="DIR", help="default: out")
    args = parser.parse_args(argv)
    if args.steps > 1000:
        parser.error(f"--steps {args.steps}: at most 1000 are wanted")
    if not 0 <= args.eta <= 1:
        parser.error(f"--eta {args.eta}: 0 to 1 is wanted")
    if args.eta and args.sampler == "ddpm":
        parser.error("--eta is DDIM's: it is not wanted with --sampler ddpm")
    return args


def main(argv: list[str] | None = None) -> None:
    try:
        generate(parse(argv))
    except InputError as error:
        sys.exit(f"sample.py: {error}")
    except torch.OutOfMemoryError:
        sys.exit("sample.py: --n: the GPU's memory is full; fewer or smaller pictures are wanted")
    except KeyboardInterrupt:
        sys.exit("sample.py: stopped")


if __name__ == "__main__":
    main()

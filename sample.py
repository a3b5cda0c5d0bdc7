"""Make pictures with ControlNets: the whole method is in `generate`.

    python sample.py
        the bundled small model, its ControlNet, and a drawn outline to follow
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
from torch import Tensor
from tqdm import tqdm

from nanocontrol import InputError, load_control, load_sd, sample
from nanocontrol.checkpoint import count, holds_base, read_base, read_control, read_tensors
from nanocontrol.conditions import canny
from nanocontrol.data import HELD_OUT, Scenes
from nanocontrol.explain import explain, name_of
from nanocontrol.files import make_folder
from nanocontrol.flags import (
    at_least, blame, default_device, device, fraction, multiple_of_64, numbers, one_sentence, seed
)  # fmt: skip
from nanocontrol.pictures import (
    open_picture, read_caption, read_picture, save_picture, size_to_sample, to_pixels
)  # fmt: skip
from nanocontrol.sampling import initial_noise

WEIGHTS = Path(__file__).parent / "weights"
NANO, NANO_CONTROL = WEIGHTS / "nano.safetensors", WEIGHTS / "nano-control-outline.safetensors"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DEFAULT_PROMPT = "a high-quality, detailed, and professional image"  # section 4.1 of the paper


# ------------------------------------------------------------------------------- the method


@torch.no_grad()
def generate(args: argparse.Namespace) -> None:
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

    # A picture to begin with or to keep parts of; of the mask any pixel makes its latent new.
    latent_image = latent_mask = None
    if image is not None:
        mean, _ = sd.vae.encode((image[None] * 2 - 1).to(args.device, dtype))
        latent_image = sd.scale_factor * mean.float()
    if mask is not None:
        latent_mask = F.max_pool2d(mask[None, None].float(), 8).bool()

    # Noise and prompts in, latents out; the decoder makes pictures of them.
    generator = torch.Generator("cpu").manual_seed(args.seed)
    noise = initial_noise(args.n, args.height, args.width, generator)
    context, uncond = sd.encode_prompts(prompt), sd.encode_prompts(args.negative)
    args.scale = sd.guidance if args.scale is None else args.scale
    latents = sample(
        sd, noise, context, uncond, controls, args.steps, args.scale, args.eta, args.sampler,
        generator, progress=True, guess=args.guess, resolution_weighting=args.resolution_weighting,
        control_from=args.control_from, control_to=args.control_to,
        image=latent_image, mask=latent_mask, noised=args.noise,
    )  # fmt: skip
    latents = (latents / sd.scale_factor).to(dtype)
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


def to_bytes(picture: Tensor) -> np.ndarray:
    """[3, H, W] in [0, 1], as read from a file -> the file's bytes, [H, W, 3]."""
    return (picture * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


# ------------------------------------------------------------------------- files and pictures


def choose_files(args: argparse.Namespace) -> None:
    """Without --base: the base inside a ControlNet v1.0 file, or nano, which draws its own hint."""
    if args.base is None:
        with blame("--control"):
            inside = (file for file in args.control if holds_base(read_tensors(file)[0]))
            args.base = next(inside, None)
    args.drawn = args.base is None and not args.hint and args.image is None
    if args.base is None:
        args.base = NANO
        if not args.control and args.image is None or args.hint and not args.control:
            args.control = [NANO_CONTROL]


def check_files(args: argparse.Namespace) -> None:
    """Whether the files go together. Nothing is computed, no weight is read."""
    hints = len(args.hint) + args.drawn
    if not len(args.control) == hints == len(args.strength or args.control):
        counts = {"--control": args.control, "--hint": args.hint, "--strength": args.strength}
        given = ", ".join(f"{len(v)} {k} ({listed(v)})" for k, v in counts.items() if v)
        raise InputError(f"{given}: a --hint for every --control is wanted, and a --strength or none")
    args.strength = args.strength or [[1.0]] * hints
    with blame("--base"):
        _, metadata, base = read_base(args.base)
    args.size = metadata.get("size", 512)
    for i, file in enumerate(args.control):
        with blame("--control"):
            tensors, config = read_control(file)
        if config != base:
            raise InputError(
                f"--control: {file} is a ControlNet for {name_of(config)}, and {args.base} is "
                f"{name_of(base)}; a ControlNet for that is wanted"
            )
        n = count(tensors, "zero_convs.{}.") + 1
        if len(args.strength[i]) not in (1, n):
            raise InputError(
                f"--strength {listed(args.strength[i])}: {len(args.strength[i])} numbers; one, or "
                f"one for each of the {n} residuals of {file} is wanted"
            )
        args.strength[i] = args.strength[i][0] if len(args.strength[i]) == 1 else args.strength[i]


def listed(values: list) -> str:
    return ", ".join(map(str, values))


def read_inputs(
    args: argparse.Namespace
) -> tuple[list[Tensor], Tensor | None, Tensor | None, str]:
    """Hints and image, [3, H, W] in [0, 1], the mask [H, W], bool, and the prompt. Sets the size."""
    prompt = DEFAULT_PROMPT if args.prompt == "default" else args.prompt or ""
    if args.prompt_from:
        with blame("--prompt-from"):
            prompt = read_caption(args.prompt_from)
    if args.drawn:
        _, hint, scene = Scenes(HELD_OUT)[args.seed % HELD_OUT]
        size = (hint.shape[2], hint.shape[1])
        if (args.width or size[0], args.height or size[1]) != size:
            raise InputError(
                f"--width and --height: the drawn hint is {size[0]}x{size[1]}; for other sizes "
                "a --hint is wanted"
            )
        args.width, args.height = size
        no_prompt = args.prompt is None and args.prompt_from is None
        return [hint], None, None, scene if no_prompt else prompt

    files = [("--hint", file) for file in args.hint] + [("--image", args.image)] * bool(args.image)
    check_sizes(args, files)
    size = (args.width, args.height)
    pictures = []
    for i, (flag, file) in enumerate(files):
        with blame(flag):
            picture = read_picture(file, size)
        pictures.append(canny(picture, *args.canny[i]) if i in args.canny else picture)
    image = pictures.pop() if args.image else None
    mask = None
    if args.mask:
        with blame("--mask"):
            mask = read_picture(args.mask, size).mean(dim=0) > 0.5
    return pictures, image, mask, prompt


def check_sizes(args: argparse.Namespace, files: list[tuple[str, Path]]) -> None:
    """Set the pictures' width and height; refuse what does not go together. Only headers are read."""
    if not files:
        args.width, args.height = args.width or args.size, args.height or args.size
        return
    sizes = []
    for flag, file in files:
        with blame(flag):
            own = open_picture(file).size
        sizes.append(size_to_sample(own, args.size, args.width, args.height))
        if sizes[-1] != sizes[0]:
            raise InputError(
                f"{flag}: {file} makes pictures of {listed(sizes[-1])} pixels, {files[0][1]} of "
                f"{listed(sizes[0])}; pictures of one shape are wanted, or --width and --height"
            )
    if args.mask:
        with blame("--mask"):
            mask_size = open_picture(args.mask).size
        if mask_size != own:
            raise InputError(
                f"--mask: {args.mask} has {listed(mask_size)} pixels, the picture {args.image} "
                f"{listed(own)}; a mask of that size is wanted"
            )
    args.width, args.height = sizes[0]


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
    add("--strength", type=numbers, **several, help="of the control, one for each --control: a "
        "number, or one for each residual, like 1,1,0.5 (default: 1)")  # fmt: skip
    add("--canny", nargs=2, type=at_least(0), metavar=("LOW", "HIGH"), action=CannyOfHint,
        default={}, help="the --hint before this is a photo: follow its edges")  # fmt: skip
    words = parser.add_mutually_exclusive_group()
    words.add_argument("--prompt", help="what the picture shows (default: nothing, or what the "
        "drawn hint shows); 'default' is the paper's default prompt")  # fmt: skip
    words.add_argument("--prompt-from", type=Path, metavar="FILE", help="a caption file (text)")
    add("--negative", default="", metavar="PROMPT", help="what it does not show")
    add("--n", type=at_least(1), default=4, help="pictures to make (default: 4)")
    add("--steps", type=at_least(1), default=20, help="1 to 1000 (default: 20)")
    add("--scale", type=float, help="of guidance (default: 9; nano has its own)")
    rule = parser.add_mutually_exclusive_group()
    rule.add_argument("--guess", action="store_true", help="guess mode: for hints without prompt")
    rule.add_argument("--resolution-weighting", action="store_true", help="the paper's CFG-RW")
    add("--control-from", type=fraction, default=0.0, metavar="FRACTION",
        help="of the steps, where control begins (default: 0)")  # fmt: skip
    add("--control-to", type=fraction, default=1.0, metavar="FRACTION",
        help="and where it ends (default: 1)")  # fmt: skip
    add("--image", type=Path, help="a picture to begin with (see --noise), or to repaint (--mask)")
    add("--mask", type=Path, help="white is painted anew, all else stays")
    add("--noise", type=fraction, metavar="FRACTION", help="of the steps, to which --image is "
        "noised (default: 0.75; with --mask noise alone)")  # fmt: skip
    add("--eta", type=fraction, default=0.0, help="DDIM's noise, 0 to 1 (default: 0)")
    add("--sampler", choices=["ddim", "ddpm"], default="ddim")
    add("--prediction", choices=["auto", "eps", "v"], default="auto", help="what the base predicts")
    add("--seed", type=seed, default=0)
    add("--height", type=multiple_of_64, help="in pixels (default: the hint's or image's shape, "
        "the short side as the base likes it)")  # fmt: skip
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
    with one_sentence("sample.py", when_memory_is_full="--n: fewer or smaller pictures"):
        if args.explain:
            with blame("--explain"):
                print(explain(args.explain))
        else:
            generate(args)


if __name__ == "__main__":
    main()

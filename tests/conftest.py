"""Shared fixtures: small random models in the style of Stable Diffusion 1 and 2, pairs to train on,
and the error message of a command."""

import json
import os
import re
import sys
from copy import deepcopy
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from in_float64 import hasty_pictures, no_pictures
from nanocontrol import VAE, ControlNet, StableDiffusion, UNet, UNetConfig, VAEConfig
from nanocontrol.clip import CLIPTextEncoder, OpenCLIPTextEncoder, TextConfig
from nanocontrol.nano.scenes import Scenes
from nanocontrol.plumbing.pictures import to_pixels

# With networks this small, threads wait for one another longer than they compute. The environment
# variable is for the commands that tests start.
torch.set_num_threads(1)
os.environ["OMP_NUM_THREADS"] = "1"

ROOT = Path(__file__).parents[1]
NANO = str(ROOT / "weights" / "nano.safetensors")
CONTROL = str(ROOT / "weights" / "nano-control-canny.safetensors")

NO_PHOTOS = 'the extra `photos` is not installed: pip install -e ".[photos]"'
CAPTIONS = {
    "astronaut": "an astronaut in an orange suit",
    "camera": "a man with a camera",
    "chelsea": "a cat",
    "coffee": "a cup of coffee on a table",
    "coins": "old coins",
    "rocket": "a rocket on its launch pad",
}

SIZE = 128  # pixels: the side of nano's pictures
SMALL = {"channel_mult": (1, 2), "num_res_blocks": 1, "attention_levels": (0,)}
CONFIGS = {
    "sd1": UNetConfig(model_channels=32, context_dim=64, **SMALL),
    "sd2": UNetConfig(model_channels=64, context_dim=1024, head_dim=64, linear_proj=True, **SMALL),
}


def randomise(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Fill every parameter with random values, also those that are initialised to zero."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            scale = 0.5 / max(1, parameter[0].numel()) ** 0.5 if parameter.dim() > 1 else 0.1
            parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
            if parameter.dim() == 1:
                parameter += 0.5
    return module


@pytest.fixture(params=["sd1", "sd2"])
def style(request) -> str:
    return request.param


@cache
def small(style: str) -> StableDiffusion:
    """A base model with random weights. It is built once; tests get copies."""
    unet = randomise(UNet(CONFIGS[style])).requires_grad_(False)
    vae = randomise(VAE(VAEConfig(ch=32, ch_mult=(1, 1, 1, 1), num_res_blocks=1)))
    layers = 2 if style == "sd1" else 1  # one layer of Stable Diffusion 2's has 12 million weights
    text = TextConfig(width=unet.config.context_dim, layers=layers, vocabulary=64)
    text_encoder = randomise(CLIPTextEncoder(text) if style == "sd1" else OpenCLIPTextEncoder(text))
    return StableDiffusion(unet, vae, text_encoder, prediction="eps")


@pytest.fixture
def unet(style) -> UNet:
    return deepcopy(small(style).unet)


@pytest.fixture
def inputs(unet):
    """x, t, context, hint and noise for two pictures of 64 x 128 pixels."""
    torch.manual_seed(0)
    x, t = torch.randn(2, 4, 8, 16), torch.tensor([3, 700])
    context, hint = torch.randn(2, 77, unet.config.context_dim), torch.rand(2, 3, 64, 128)
    return x, t, context, hint, torch.randn(2, 4, 8, 16)


@pytest.fixture
def trained_control(unet) -> ControlNet:
    return randomise(ControlNet(unet.config), seed=1)


@pytest.fixture
def sd(style, unet) -> StableDiffusion:
    base = small(style)
    return replace(
        base, unet=unet, vae=deepcopy(base.vae), text_encoder=deepcopy(base.text_encoder)
    )


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Tests run in a temporary folder, so that default output paths lie there."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def hasty():
    """Evaluations sample their pictures in one step: quality does not matter here."""
    with hasty_pictures():
        yield


@pytest.fixture
def blind():
    """Evaluations sample and measure nothing, unless the test also uses `hasty`."""
    with no_pictures():
        yield


def write_pairs(
    folder: Path, form: str = "prompt.json", n: int = 12, size: tuple[int, int] = (64, 64)
) -> Path:
    """Write drawn scenes as pairs of files, listed in one of the two supported formats."""
    folder.mkdir(exist_ok=True)
    names = {
        "prompt.json": ("target", "source", "prompt"),
        "metadata.jsonl": ("file_name", "conditioning_image", "text"),
    }[form]
    lines = []
    for i in range(n):
        image, hint, prompt = Scenes("canny")[i]
        for name, picture in (("image", image), ("hint", hint * 2 - 1)):
            pixels = Image.fromarray(to_pixels(picture)).resize(size)
            pixels.save(folder / f"{name}{i}.png")
        lines.append(json.dumps(dict(zip(names, (f"image{i}.png", f"hint{i}.png", prompt)))))
    (folder / form).write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def photos(tmp_path_factory) -> Path:
    """Photographs of several sizes, all but one with a caption file."""
    skimage = pytest.importorskip("skimage.data", reason=NO_PHOTOS)
    sklearn = pytest.importorskip("sklearn.datasets", reason=NO_PHOTOS)
    folder = tmp_path_factory.mktemp("photos")
    for name, caption in CAPTIONS.items():
        Image.fromarray(getattr(skimage, name)()).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption + "\n")
    for name in ("china", "flower"):
        Image.fromarray(sklearn.load_sample_image(f"{name}.jpg")).save(folder / f"{name}.jpg")
    (folder / "flower.txt").write_text("a flower\n")
    return folder


def opened(path: str | Path) -> Image.Image:
    """Read a picture completely and close its file."""
    with Image.open(path) as image:
        image.load()
    return image


def refusal(main, capsys, *flags: str) -> str:
    """Run a command that must fail -> its one-line message.

    The exit status has to be 2, or 130 for an interrupted run.
    """
    capsys.readouterr()
    with pytest.raises(SystemExit) as end:
        main([*flags])
    if isinstance(end.value.code, str):  # printed by Python, with status 1
        assert "\n" not in end.value.code
        return end.value.code
    message = capsys.readouterr().err.splitlines()[-1]
    assert end.value.code == (130 if re.search("stopped(;| before)", message) else 2)
    return message


class Opened:
    """Names of the files that this process opens between `start` and `names`."""

    def __init__(self) -> None:
        self.seen: list[str] | None = None
        sys.addaudithook(self.note)  # it cannot be removed

    def note(self, event: str, args: tuple) -> None:
        if self.seen is not None and event == "open":
            self.seen.append(str(args[0]))

    def start(self) -> None:
        self.seen = []

    def names(self) -> list[str]:
        seen, self.seen = self.seen, None
        return [Path(name).name for name in seen or []]


@pytest.fixture(scope="session")
def opened_files() -> Opened:
    return Opened()

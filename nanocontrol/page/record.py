"""Make the files of the page that are computed beforehand.

    python -m nanocontrol.page.record

writes preview.json, nano's map from a latent to RGB, fitted on 256 scenes; and static/first.json,
the run of the first screen: a drawing, its pictures and the insides. With `--run RUN` it writes
static/training.json instead: a scene's pictures in the course of a run, and the run's log.
"""

import json
from base64 import b64encode
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from nanocontrol.checkpoint import load_sd
from nanocontrol.nano.detector import load_detector
from nanocontrol.nano.model import DETECTOR, NANO
from nanocontrol.nano.scenes import HELD_OUT
from nanocontrol.nano.scores import score
from nanocontrol.nano.world import random_scene
from nanocontrol.page.making import Making
from nanocontrol.page.models import Models
from nanocontrol.page.preview import FILE, STATIC, fit_preview
from nanocontrol.plumbing.errors import one_sentence, say
from nanocontrol.plumbing.files import hash_of, write_atomically
from nanocontrol.plumbing.flags import Parser
from nanocontrol.plumbing.pictures import CAPTION, as_tensor, read_image
from nanocontrol.training.run import RunFolder, write_json

COMMAND, SCENES = "python -m nanocontrol.page.record", 256
COLUMN = 6  # of a contact sheet: the scene of the recorded training
# The drawing is made of strokes, as a user makes it.
TOP, LEFT, RIGHT, FRONT = (62.5, 26.5), (26.5, 86.5), (102.5, 80.5), (68.5, 102.5)
LINES = [(TOP, LEFT), (TOP, FRONT), (TOP, RIGHT), (LEFT, FRONT), (FRONT, RIGHT)]
STROKES = [{"tool": "line", "width": 1, "points": [[*a], [*b]]} for a, b in LINES]
DRAWING = {"condition": "canny", "under": None, "scene": None, "strokes": STROKES}
PROMPT, SEED = "an orange pyramid on a teal background", 3
REQUEST = {"drawing": DRAWING, "prompt": PROMPT, "seed": SEED, "attention": True}


def write_preview() -> None:
    found, error = fit_preview(load_sd(NANO), SCENES)
    about = {"made": COMMAND, "scenes": SCENES, "base": hash_of(NANO), "error": error}
    write_json(FILE, {"map": found.tolist()} | about)
    say(f"{FILE}: root mean square error {error:.3f} of 1")


def write_recording(name: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, separators=(",", ":"))
    write_atomically(STATIC / name, lambda file: file.write_text(text))
    say(f"{STATIC / name}: {len(text) / 1000:.0f} kB")


def write_first(models: Models) -> None:
    write_preview()
    models.load()
    events = [*Making(models, models.wanted({"client": "record", **REQUEST})).events()]
    request = models.about["defaults"] | REQUEST
    write_recording("first.json", {"info": models.info(), "request": request, "events": events})


def write_training(models: Models) -> None:
    """One held-out scene in the contact sheets of a run of nano: the first row has its hint, the
    last one its pictures."""
    size, made, detector = models.size, {}, load_detector(DETECTOR)
    left, right = COLUMN * size, (COLUMN + 1) * size
    for file in RunFolder(models.run or Path()).sheets():
        sheet = read_image(file)
        picture = sheet.crop((left, sheet.height - CAPTION - size, right, sheet.height - CAPTION))
        given = as_tensor(picture)[None] * 2 - 1, [random_scene(HELD_OUT + COLUMN)], detector
        made[int(file.stem)] = {"url": as_webp(picture), "score": score(models.trained, *given)}
    run, hint = models.progress() | {"steps": [*made]}, sheet.crop((left, 0, right, size))
    write_recording("training.json", {"run": run, "hint": as_webp(hint), "made": made})


def as_webp(picture: Image.Image) -> str:
    """The address of a WebP file in base64: a quarter of the size of a PNG file in base64."""
    picture.save(file := BytesIO(), "WEBP", quality=90)
    return f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, metavar="RUN", help="record this run's training only")
    run = parser.parse_args(argv).run
    torch.set_num_threads(1)
    with one_sentence("record"), torch.no_grad():
        models = Models(None, [], run, "cpu")
        (write_training if run else write_first)(models)


if __name__ == "__main__":
    main()

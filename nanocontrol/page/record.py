"""Make the files of the page that are computed beforehand.

    python -m nanocontrol.page.record

writes preview.json, nano's map from a latent to RGB, fitted on 256 scenes; and static/first.json,
the run of the first screen: a drawing, its pictures and the insides. With `--run RUN` it writes
static/training.json instead: a scene's pictures with the weights that a run kept, and its log.
"""

import json
from base64 import b64decode, b64encode
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from nanocontrol.checkpoint import load_sd
from nanocontrol.nano.model import NANO
from nanocontrol.nano.scenes import HELD_OUT
from nanocontrol.nano.world import random_scene
from nanocontrol.page.app import STATIC
from nanocontrol.page.making import Event, Making
from nanocontrol.page.models import Models
from nanocontrol.page.preview import FILE, fit_preview
from nanocontrol.plumbing.errors import one_sentence, say
from nanocontrol.plumbing.files import hash_of, write_atomically
from nanocontrol.plumbing.flags import Parser
from nanocontrol.training.run import write_json

COMMAND, SCENES = "python -m nanocontrol.page.record", 256
# The drawing is made of strokes, as a user makes it.
TOP, LEFT, RIGHT, FRONT = (62.5, 26.5), (26.5, 86.5), (102.5, 80.5), (68.5, 102.5)
LINES = [(TOP, LEFT), (TOP, FRONT), (TOP, RIGHT), (LEFT, FRONT), (FRONT, RIGHT)]
STROKES = [{"tool": "line", "width": 1, "points": [[*a], [*b]]} for a, b in LINES]
DRAWING = {"condition": "canny", "under": None, "scene": None, "strokes": STROKES}
REQUEST = {"drawing": DRAWING, "prompt": "an orange pyramid on a teal background", "seed": 3}


def write_preview() -> None:
    found, error = fit_preview(load_sd(NANO), SCENES)
    about = {"made": COMMAND, "scenes": SCENES, "base": hash_of(NANO), "error": error}
    write_json(FILE, {"map": found.tolist()} | about)
    say(f"{FILE}: root mean square error {error:.3f} of 1")


def events_of(models: Models, request: dict[str, Any]) -> list[Event]:
    return [*Making(models, models.wanted({"client": "record", **request})).events()]


def write_recording(name: str, content: dict[str, Any]) -> None:
    text = json.dumps(content, separators=(",", ":"))
    write_atomically(STATIC / name, lambda file: file.write_text(text))
    say(f"{STATIC / name}: {len(text) / 1000:.0f} kB")


def write_first(models: Models) -> None:
    request = REQUEST | {"attention": True}
    content = {"info": models.info(), "request": models.about["defaults"] | request}
    write_recording("first.json", content | {"events": events_of(models, request)})


def write_training(models: Models) -> None:
    """A scene at each kept step. Its noise is the one of ten that shows the clearest change."""
    scene = random_scene(HELD_OUT + 6)
    drawing = {"condition": models.trained, "scene": json.loads(json.dumps(asdict(scene)))}
    request = {"drawing": drawing, "columns": [models.trained], "prompt": scene.prompt}
    pictures = {}
    for step in models.steps():
        start, *_, made, _ = events_of(models, request | {"run_step": step})
        pictures[step] = {"url": as_webp(made["png"]), "score": made["score"]}
    hint, run = as_webp(start["hints"][models.trained]), models.progress()
    write_recording("training.json", {"run": run, "hint": hint, "made": pictures})


def as_webp(png: str) -> str:
    """The address of a WebP file in base64: a quarter of the size of the PNG file in base64."""
    Image.open(BytesIO(b64decode(png))).save(file := BytesIO(), "WEBP", quality=90)
    return f"data:image/webp;base64,{b64encode(file.getvalue()).decode()}"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, metavar="RUN", help="record this run's training only")
    run = parser.parse_args(argv).run
    torch.set_num_threads(1)
    with one_sentence("record"), torch.no_grad():
        if run is None:
            write_preview()
        models = Models(None, [], run, "cpu")
        models.load()
        (write_training if run else write_first)(models)


if __name__ == "__main__":
    main()

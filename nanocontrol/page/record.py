"""Make the recordings that the page shows.

    python -m nanocontrol.page.record

writes static/first.json, the run of the first screen: a drawing, its pictures and the insides. With
`--run RUN` it writes static/training.json instead: a scene's pictures in the course of a run, and
the run's log.
"""

import json
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from nanocontrol.nano.scenes import HELD_OUT
from nanocontrol.nano.scores import score
from nanocontrol.nano.world import random_scene
from nanocontrol.page.asked import wanted
from nanocontrol.page.making import Making
from nanocontrol.page.models import STATIC, Models
from nanocontrol.page.sketch import in_base64
from nanocontrol.plumbing.errors import one_sentence, say
from nanocontrol.plumbing.files import write_atomically
from nanocontrol.plumbing.flags import Parser
from nanocontrol.plumbing.pictures import CAPTION, as_tensor, read_image
from nanocontrol.training.run import RunFolder

COLUMN = 6  # of a contact sheet: the scene of the recorded training


def first(models: Models) -> dict[str, Any]:
    """The recorded request again, with the models of today."""
    request = json.loads((STATIC / "first.json").read_text())["request"]
    events = [*Making(models, wanted(models, {"client": "record", **request})).events()]
    return {"info": models.info(), "request": request, "events": events}


def training(models: Models) -> dict[str, Any]:
    """One held-out scene in the contact sheets of a run of nano: the first row has its hint, the
    last one its pictures."""
    size, made, true = models.size, {}, [random_scene(HELD_OUT + COLUMN)]
    left, right = COLUMN * size, (COLUMN + 1) * size
    for file in RunFolder(models.run or Path()).sheets():
        sheet = read_image(file)
        picture = sheet.crop((left, sheet.height - CAPTION - size, right, sheet.height - CAPTION))
        followed = score(models.trained, as_tensor(picture)[None] * 2 - 1, true, models.detector)
        made[int(file.stem)] = {"url": as_webp(picture), "score": followed}
    run, hint = models.progress() | {"steps": [*made]}, sheet.crop((left, 0, right, size))
    return {"run": run, "hint": as_webp(hint), "made": made}


def as_webp(picture: Image.Image) -> str:
    """The address of a WebP file in base64: a quarter of the size of a PNG file in base64."""
    return f"data:image/webp;base64,{in_base64(picture, 'WEBP', quality=90)}"


def main(argv: list[str] | None = None) -> None:
    parser = Parser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, metavar="RUN", help="record this run's training only")
    run = parser.parse_args(argv).run
    torch.set_num_threads(1)
    with one_sentence("record"), torch.no_grad():
        models = Models(None, [], run, "cpu")
        models.load()
        name, content = ("training", training(models)) if run else ("first", first(models))
        file, text = STATIC / f"{name}.json", json.dumps(content, separators=(",", ":"))
        write_atomically(file, lambda temporary: temporary.write_text(text))
        say(f"{file}: {len(text) / 1000:.0f} kB")


if __name__ == "__main__":
    main()

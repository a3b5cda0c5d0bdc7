"""Make the two files of the page that are computed beforehand.

    python -m nanocontrol.page.record

writes preview.json, nano's map from a latent to RGB, fitted on 256 scenes; and static/first.json,
the run of the first screen: a drawing, its pictures and the insides.
"""

import json

import torch

from nanocontrol.checkpoint import load_sd
from nanocontrol.nano.model import NANO
from nanocontrol.page.app import STATIC
from nanocontrol.page.making import Making
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
PROMPT, SEED = "an orange pyramid on a teal background", 3


def write_preview() -> None:
    found, error = fit_preview(load_sd(NANO), SCENES)
    about = {"made": COMMAND, "scenes": SCENES, "base": hash_of(NANO), "error": error}
    write_json(FILE, {"map": found.tolist()} | about)
    say(f"{FILE}: root mean square error {error:.3f} of 1")


@torch.no_grad()
def write_first() -> None:
    strokes = [{"tool": "line", "width": 1, "points": [[*a], [*b]]} for a, b in LINES]
    drawing = {"condition": "canny", "under": None, "scene": None, "strokes": strokes}
    request = {"drawing": drawing, "prompt": PROMPT, "seed": SEED, "attention": True}
    models = Models(None, [], None, "cpu")
    models.load()
    events = [*Making(models, models.wanted({"client": "record", **request})).events()]
    request = models.about["defaults"] | request
    content = {"request": request, "info": models.info(), "events": events, "made": COMMAND}
    text = json.dumps(content, separators=(",", ":"))
    write_atomically(STATIC / "first.json", lambda file: file.write_text(text))
    say(f"{STATIC / 'first.json'}: {len(text) / 1000:.0f} kB")


def main(argv: list[str] | None = None) -> None:
    Parser(description=__doc__.splitlines()[0]).parse_args(argv)
    torch.set_num_threads(1)
    with one_sentence("record"):
        write_preview()
        write_first()


if __name__ == "__main__":
    main()

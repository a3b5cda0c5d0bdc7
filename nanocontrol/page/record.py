"""Record the run that the page shows while its models load: a drawing, its pictures, the insides.

    python -m nanocontrol.page.record

writes static/first.json. The drawing is made of strokes, as a user makes it.
"""

import json

import torch

from nanocontrol.page.app import STATIC
from nanocontrol.page.making import Making
from nanocontrol.page.models import Models
from nanocontrol.plumbing.errors import one_sentence, say
from nanocontrol.plumbing.files import write_atomically
from nanocontrol.plumbing.flags import Parser

TOP, LEFT, RIGHT, FRONT = (62.5, 26.5), (26.5, 86.5), (102.5, 80.5), (68.5, 102.5)
LINES = [(TOP, LEFT), (TOP, FRONT), (TOP, RIGHT), (LEFT, FRONT), (FRONT, RIGHT)]
PROMPT, SEED = "an orange pyramid on a teal background", 3


def main(argv: list[str] | None = None) -> None:
    Parser(description=__doc__.splitlines()[0]).parse_args(argv)
    torch.set_num_threads(1)
    strokes = [{"tool": "line", "width": 1, "points": [[*a], [*b]]} for a, b in LINES]
    drawing = {"condition": "canny", "under": None, "scene": None, "strokes": strokes}
    request = {"drawing": drawing, "prompt": PROMPT, "seed": SEED, "attention": True}
    with one_sentence("record"), torch.no_grad():
        models = Models(None, [], None, "cpu")
        models.load()
        events = [*Making(models, models.wanted({"client": "record", **request})).events()]
        request = models.about["defaults"] | request
        content = {"request": request, "scene": None, "info": models.about, "events": events}
        content["made"] = "python -m nanocontrol.page.record"
        text = json.dumps(content, separators=(",", ":"))
        write_atomically(STATIC / "first.json", lambda file: file.write_text(text))
        say(f"{STATIC / 'first.json'}: {len(text) / 1000:.0f} kB")


if __name__ == "__main__":
    main()

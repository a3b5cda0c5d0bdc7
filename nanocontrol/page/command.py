"""The line of sample.py that makes a picture of the page again, with the same pixels."""

import shlex
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from typing import Any

from nanocontrol.commands.inputs import joined
from nanocontrol.page.asked import NONE, Refused, Wanted
from nanocontrol.page.models import Models
from nanocontrol.page.sketch import hint_of, png
from nanocontrol.plumbing.files import make_folder, write_atomically

MOST = 1000  # hints in the folder


def command_for(models: Models, wanted: Wanted, column: str, folder: Path) -> dict[str, Any]:
    """The command for a column. The hint that it names is saved in the folder.

    One thread and one picture at a time: with others, the last bits of the sums differ.
    """
    prompt = wanted.prompt + " " * (wanted.prompt == "default")  # alone it means the paper's
    flags = ["--n=1", f"--base={models.base}", f"--prompt={prompt}"]
    flags += [f"--negative={wanted.negative}"] * bool(wanted.negative)
    flags += [f"--seed={wanted.seed}", f"--steps={wanted.steps}", f"--scale={wanted.scale}"]
    file = None
    if column != NONE:
        _, control = models.control(column, wanted.run_step)
        file = save_hint(png(hint_of(wanted.sketch, column, models.size)), folder)
        strength = wanted.strength if isinstance(wanted.strength, list) else [wanted.strength]
        flags += [f"--control={control}", f"--hint={file}", f"--strength={joined(strength)}"]
        if (wanted.control_from, wanted.control_to) != (0, 1):
            flags += [f"--control-from={wanted.control_from}", f"--control-to={wanted.control_to}"]
        flags += ["--guess"] * wanted.guess
        flags += ["--resolution-weighting"] * wanted.resolution_weighting
    flags += [f"--device={models.device}"]
    return {
        "command": f"OMP_NUM_THREADS=1 python {shlex.join(['sample.py', *flags])}",
        "hint": file and str(file),
        "note": "the same pixels on the same machine with the same PyTorch",
    }


def save_hint(hint: str, folder: Path) -> Path:
    """Write a PNG in base64 under a name that its bytes determine. Raises Refused with status 507 if
    the folder holds too many."""
    data = b64decode(hint)
    file = make_folder("--out", folder) / f"hint-{sha256(data).hexdigest()[:8]}.png"
    if not file.exists():
        if len([*folder.glob("hint-*.png")]) >= MOST:
            raise Refused(f"{folder} holds {MOST} hints: delete those that you do not need", 507)
        write_atomically(file, lambda temporary: temporary.write_bytes(data))
    return file

"""The line of sample.py that makes a picture of the page again, with the same pixels."""

import shlex
from base64 import b64decode
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from nanocontrol.commands.inputs import joined
from nanocontrol.page.asked import NONE, RULES, Refused
from nanocontrol.page.models import Models, near_here
from nanocontrol.page.sketch import drawn_hint, png
from nanocontrol.plumbing.files import make_folder, write_atomically

MOST = 1000  # hints in the folder


def command_for(models: Models, wanted: SimpleNamespace, column: str, out: Path) -> dict[str, Any]:
    """The command for a column. The hint that it names is saved in the folder `out`.

    It uses one thread and makes one picture: otherwise the last bits of the sums differ.
    """
    prompt = wanted.prompt + " " * (wanted.prompt == "default")  # alone it means the paper's
    flags = ["sample.py", "--n=1", f"--base={near_here(models.base)}", f"--prompt={prompt}"]
    flags += [f"--negative={wanted.negative}"] * bool(wanted.negative)
    flags += [f"--seed={wanted.seed}", f"--steps={wanted.steps}", f"--scale={wanted.scale}"]
    if column != NONE:
        file = saved_hint(png(drawn_hint(wanted.drawing, column, models.size)), out)
        control = near_here(models.control(column, wanted.run_step)[1])
        each = wanted.strength if isinstance(wanted.strength, tuple) else [wanted.strength]
        flags += [f"--control={control}", f"--hint={file}", f"--strength={joined([*each])}"]
        flags += [f"--control-from={wanted.control_from}", f"--control-to={wanted.control_to}"]
        flags += [f"--{rule.replace('_', '-')}" for rule in RULES if getattr(wanted, rule)]
    line = shlex.join(["python", *flags, f"--device={models.device}"])
    return {"command": f"OMP_NUM_THREADS=1 {line}"}


def saved_hint(hint: str, folder: Path) -> Path:
    """Write a PNG in base64 under a name that its bytes determine. Raises Refused with status 507
    if the folder holds too many."""
    data = b64decode(hint)
    file = make_folder("--out", folder) / f"hint-{sha256(data).hexdigest()[:8]}.png"
    if not file.exists():
        if len([*folder.glob("hint-*.png")]) >= MOST:
            raise Refused(f"{folder} holds {MOST} hints: delete those that you do not need", 507)
        write_atomically(file, lambda temporary: temporary.write_bytes(data))
    return file

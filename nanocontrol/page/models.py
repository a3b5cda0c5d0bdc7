"""The networks behind the page: a base, its ControlNets, and the weights that a run keeps."""

import os
import time
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from nanocontrol.checkpoint import load_control, load_sd, read_base
from nanocontrol.commands.inputs import build_control
from nanocontrol.controlnet import ControlNet
from nanocontrol.formats.tensors import open_tensors
from nanocontrol.nano.conditions import APPEARANCE, CONDITIONS
from nanocontrol.nano.detector import load_detector
from nanocontrol.nano.model import DETECTOR, NANO, UNET, WEIGHTS, condition_of, name_of
from nanocontrol.nano.scenes import HELD_OUT
from nanocontrol.nano.world import COLOURS, KINDS, LIMBS, PIXELS, SIZES, random_scene
from nanocontrol.page import asked, sketch
from nanocontrol.page.asked import Refused
from nanocontrol.page.insides import diagram_of, ends_of
from nanocontrol.page.preview import preview_map
from nanocontrol.plumbing.errors import InputError, blame
from nanocontrol.plumbing.machine import default_dtype, for_sampling, is_gpu
from nanocontrol.training.measure import step_of_jump
from nanocontrol.training.optimizer import PRECISIONS
from nanocontrol.training.run import read_run

# The numbers of a run's log that the page shows.
NUMBERS = "step", "loss", "held_out_loss", "control_gain", "score", "follows", "iou"
SILENT = 600  # seconds without a line in the log after which a run counts as stopped
KEPT = 4  # weights of a run that stay in memory
NO_RUN = "the page was started without --run RUN"
NO_WEIGHTS = "no weights are kept yet: train.py --keep all keeps every evaluation's"
EXAMPLE = HELD_OUT + 14  # the scene with which the page begins


class Models:
    """Files are checked when it is made, and weights are read by `load`.

    files: the ControlNets'; none for those that are bundled; run: the folder of a run of train.py.
    """

    about: dict[str, Any] = {"ready": False}  # for /api/info

    def __init__(self, base: Path | None, files: list[Path], run: Path | None, device: str):
        with blame("--run"):
            settings = read_run(run).settings if run else {}
        self.base = base or Path(settings.get("base") or NANO)
        self.run, self.device = run, device
        with blame("--base"):
            _, config = read_base(self.base)
            self.size = open_tensors(self.base).metadata.get("size", 512)
        self.name, self.scenes = name_of(config), config == UNET and self.size in SIZES
        if config == UNET and not files:
            files = sorted(WEIGHTS.glob("nano-control-*.safetensors"))
        self.files: dict[str, Path] = {}
        for file in files:
            with blame("--control"):
                tensors = open_tensors(file)
            build_control(tensors, [1.0], self.base, config)
            self.files[condition_of(file) if self.scenes else file.stem] = file
        self.trained = settings.get("condition") or settings.get("hints") or ""
        if self.trained not in ("", *CONDITIONS) or run and not self.scenes:
            raise InputError(f"--run: {run} trains on other hints than the page draws for nano")
        if not self.conditions():
            raise InputError(f"--base: {self.base} is not nano: expected a --control for it")
        self.kept = lru_cache(KEPT)(lambda file: load_control(file, self.sd.unet))

    @torch.no_grad()
    def load(self) -> None:
        """Read the weights, as sample.py does, and measure what the page shows of the networks."""
        self.sd = load_sd(self.base, self.device, PRECISIONS[default_dtype(self.device)])
        self.controls = {name: load_control(f, self.sd.unet) for name, f in self.files.items()}
        if is_gpu(self.device):
            for_sampling()
            for network in (self.sd.unet, self.sd.vae, *self.controls.values()):
                network.to(memory_format=torch.channels_last)
        self.map = preview_map(self.sd, self.base)
        self.detector = load_detector(DETECTOR) if self.scenes else None
        self.about = self.facts()

    def info(self) -> dict[str, Any]:
        """The answer to /api/info. A run that is followed may have its first weights now."""
        known = [self.condition(name) for name in self.conditions()] if self.about["ready"] else []
        return self.about | ({"conditions": known} if known else {})

    def facts(self) -> dict[str, Any]:
        sd = self.sd
        blocks = diagram_of(sd, next(iter(self.controls.values()), None))
        own = [b for b in blocks if b["part"] == "unet"][: len(ends_of(sd.unet, "input_blocks"))]
        ends = [{"name": b["name"], "channels": b["shape"][0], "size": b["shape"][2]} for b in own]
        facts = {"ready": True, "name": self.name, "size": self.size, "nano": self.scenes}
        facts |= {"connections": len(ends), "residuals": ends, "run": self.run is not None}
        words = ["a", "an", "and", "on", "background", *KINDS, *COLOURS] if self.scenes else None
        colours = {name: sketch.code_of(colour) for name, colour in COLOURS.items()}
        facts |= {"blocks": blocks, "words": words, "colours": colours}
        facts |= {"kinds": KINDS, "limbs": LIMBS, "limits": asked.LIMITS}
        drawing = {"condition": next(iter(self.usable()), None)}
        defaults = vars(self.wanted({"client": "-", "drawing": drawing}, "defaults", len(ends)))
        defaults["drawing"] = vars(defaults["drawing"])
        del defaults["client"]
        scene = random_scene(EXAMPLE, ("pyramid",))
        example = {"scene": asdict(scene), "prompt": scene.prompt} if self.scenes else None
        return facts | {"defaults": defaults, "example": example}

    def drawing(self, given: Any) -> SimpleNamespace:
        return asked.drawing(self.conditions(), self.size, self.scenes)(given, "drawing")

    def wanted(self, given: Any, name: str = "request", n: int | None = None) -> SimpleNamespace:
        """A request for pictures. n: connections. Raises Refused for one that cannot be made."""
        n, known = n or self.about["connections"], self.conditions()
        check = asked.wanted(known, n, self.size, self.scenes, self.sd.guidance)
        found = check(given, name)
        if found.run_step is not None and self.run is None:
            raise Refused(f"run_step: {NO_RUN}", 404)
        for column in {*found.columns} - {asked.NONE}:
            self.control(column, found.run_step)
        return found

    def conditions(self) -> list[str]:
        return [*CONDITIONS] if self.scenes else [*self.files]

    def condition(self, name: str) -> dict[str, Any]:
        background, ink, widths = sketch.look_of(name)
        title = APPEARANCE[name][0] if self.scenes else "hints as in its training"
        about = {"name": name, "title": title, "available": name in self.usable()}
        about |= {"train": f"python train.py --condition {name}", "background": background}
        about |= {"ink": ink, "colours": sketch.palette_of(name)}
        about |= {"widths": [width * self.size / PIXELS for width in widths]}
        return about | {"drawable": bool(widths)}

    def usable(self) -> list[str]:
        """The conditions that have a ControlNet."""
        trained = {self.trained} if self.steps() else set()
        return [name for name in self.conditions() if name in self.files.keys() | trained]

    # ----------------------------------------------------------------------------------- the run

    def steps(self) -> dict[int, Path]:
        """The kept weights of the run by step, the first step first."""
        files = sorted((self.run / "weights").glob("control-*.safetensors")) if self.run else []
        numbers = [(file.stem.removeprefix("control-"), file) for file in files]
        return {int(number): file for number, file in numbers if number.isdecimal()}

    def control(self, condition: str, step: int | None) -> tuple[ControlNet, Path]:
        """The ControlNet for a condition and its file. step: of the run, if that is its condition.
        Raises Refused with status 404 if there is none."""
        if condition != self.trained or step is None and condition in self.files:
            if condition not in self.files:
                train = f"python train.py --condition {condition}"
                raise Refused(f"{condition} has no ControlNet yet: {train} trains one", 404)
            return self.controls[condition], self.files[condition]
        files = self.steps()
        step = max(files, default=0) if step is None else step
        if step not in files:
            raise Refused(f"run_step: {self.run} keeps no weights of step {step}", 404)
        return self.kept(files[step]), files[step]

    def progress(self) -> dict[str, Any]:
        """The run as its folder shows it now. Raises Refused without a run."""
        if self.run is None:
            raise Refused(NO_RUN, 404)
        run, steps = read_run(self.run), [*self.steps()]
        log = [{n: entry[n] for n in NUMBERS if entry.get(n) is not None} for entry in run.log]
        total = run.settings.get("steps", run.steps)
        about = {"folder": str(self.run), "condition": self.trained, "steps": steps, "log": log}
        about |= {"done": run.steps, "total": total, "jump": step_of_jump(run.measured)}
        files = [self.run / name for name in ("settings.json", "log.jsonl")]
        newest = max(file.stat().st_mtime for file in files if file.exists())
        running = not run.metrics and time.time() - newest < SILENT
        return about | {"running": running, "note": "" if steps else NO_WEIGHTS}


def near_here(path: Path) -> Path:
    """The path as one would type it in the current folder."""
    return Path(os.path.relpath(path)) if path.resolve().is_relative_to(Path.cwd()) else path

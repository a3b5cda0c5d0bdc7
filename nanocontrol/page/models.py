"""The networks behind the page: a base, its ControlNets, and the weights that a run keeps."""

import time
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from nanocontrol.checkpoint import load_control, load_sd, read_base
from nanocontrol.commands.inputs import build_control
from nanocontrol.controlnet import ControlNet, read_hint_channels
from nanocontrol.formats.tensors import open_tensors
from nanocontrol.nano.conditions import APPEARANCE, CONDITIONS
from nanocontrol.nano.detector import load_detector
from nanocontrol.nano.model import DETECTOR, NANO, UNET, WEIGHTS, condition_of, name_of
from nanocontrol.nano.world import COLOURS, KINDS, LIMBS, PIXELS, SIZES
from nanocontrol.page import asked, sketch
from nanocontrol.page.insides import preview_map
from nanocontrol.plumbing.errors import InputError, blame
from nanocontrol.plumbing.machine import default_dtype, for_sampling, is_gpu
from nanocontrol.tools.walk import BASE, on_meta, walk
from nanocontrol.training.measure import step_of_jump
from nanocontrol.training.optimizer import PRECISIONS
from nanocontrol.training.run import read_run

STATIC = Path(__file__).parent / "static"  # what the browser gets
SILENT = 600  # seconds without a line in the log after which a run counts as stopped
KEPT = 4  # weights of a run that stay in memory
NO_WEIGHTS = "no weights are kept yet: train.py --keep all keeps every evaluation's"


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
            opened, config = read_base(self.base)
        self.size = opened.metadata.get("size", 512)
        self.name, self.scenes = name_of(config), config == UNET and self.size in SIZES
        if config == UNET and not files:
            files = sorted(WEIGHTS.glob("nano-control-*.safetensors"))
        if not files:
            raise InputError(f"--base: {self.base} is not nano: expected a --control for it")
        self.files: dict[str, Path] = {}
        for file in files:
            with blame("--control"):
                tensors = open_tensors(file)
            build_control(tensors, [1.0], self.base, config)
            self.files[condition_of(file) if self.scenes else file.stem] = file
        self.conditions = [*CONDITIONS] if self.scenes else [*self.files]
        self.trained = settings.get("condition") or settings.get("hints") or ""
        if self.trained not in ("", *CONDITIONS) or run and not self.scenes:
            raise InputError(f"--run: {run} trains on other hints than the page draws for nano")

    @torch.no_grad()
    def load(self) -> None:
        """Read the weights, as sample.py does, and measure what the page shows of the networks."""
        self.sd = load_sd(self.base, self.device, PRECISIONS[default_dtype(self.device)])
        order = torch.channels_last if is_gpu(self.device) else torch.preserve_format
        for_sampling()
        for network in (self.sd.unet, self.sd.vae):
            network.to(memory_format=order)
        self.network = lru_cache(len(self.files) + KEPT)(
            lambda file: load_control(file, self.sd.unet).to(memory_format=order)
        )
        controls = [self.network(file) for file in self.files.values()]
        self.map = preview_map(self.sd)
        self.detector: Any = load_detector(DETECTOR) if self.scenes else None
        self.n = len(controls[0].zero_convs) + 1
        self.about = {"ready": True} | self.facts(controls[0])

    def info(self) -> dict[str, Any]:
        """The answer to /api/info. A run that is followed may have its first weights now."""
        return self.about | {"conditions": [self.condition(name) for name in self.conditions]}

    def facts(self, control: ControlNet) -> dict[str, Any]:
        widths = read_hint_channels(control.state_dict())
        parts = walk(*on_meta(self.sd.unet.config, widths, self.size))
        parts = sorted(parts, key=lambda part: part.network == BASE)  # the copy is computed first
        ends = [part.shape_out for part in parts if part.to]
        facts = {"name": self.name, "size": self.size, "nano": self.scenes, "run": bool(self.run)}
        facts |= {"residuals": [{"channels": shape[0], "size": shape[1]} for shape in ends]}
        facts |= {"blocks": [asdict(part) for part in parts if len(part.shape_out) == 3]}
        words = ["a", "an", "and", "on", "background", *KINDS, *COLOURS] if self.scenes else None
        facts |= {"words": words, "colours": [*COLOURS], "kinds": KINDS, "limbs": LIMBS}
        drawing = {"condition": self.usable()[0]}
        defaults = vars(asked.wanted(self, {"client": "-", "drawing": drawing}))
        defaults["drawing"] = vars(defaults["drawing"])
        del defaults["client"]
        return facts | {"defaults": defaults, "limits": asked.LIMITS, "connections": self.n}

    def condition(self, name: str) -> dict[str, Any]:
        background, ink = sketch.colours_of(name)
        title = APPEARANCE[name][0] if self.scenes else "hints as in its training"
        widths = sketch.WIDTHS.get(name, sketch.WIDTHS["canny"])
        about = {"name": name, "title": title, "available": name in self.usable()}
        about |= {"background": background, "ink": ink}
        about |= {"widths": [width * self.size / PIXELS for width in widths]}
        return about | {"colours": sketch.PALETTE if name == "pose" else []}

    def usable(self) -> list[str]:
        """The conditions that have a ControlNet."""
        trained = {self.trained} if self.steps() else set()
        return [name for name in self.conditions if name in self.files.keys() | trained]

    # ----------------------------------------------------------------------------------- the run

    def steps(self) -> dict[int, Path]:
        """The kept weights of the run by step, the first step first."""
        files = sorted((self.run / "weights").glob("control-*.safetensors")) if self.run else []
        numbers = [(file.stem.removeprefix("control-"), file) for file in files]
        return {int(number): file for number, file in numbers if number.isdecimal()}

    def control(self, condition: str, step: int | None) -> tuple[ControlNet, Path]:
        """The ControlNet for a condition and its file. step: of the run, if that is its condition.
        Raises Refused with status 404 if there is none."""
        kept = self.steps() if condition == self.trained else {}
        newest = self.files.get(condition) or kept.get(max(kept, default=0))
        file = kept.get(step) if kept and step is not None else newest
        if file is None:
            train = f"python train.py --condition {condition}"
            raise asked.Refused(f"{condition} has no ControlNet yet: {train} trains one", 404)
        return self.network(file), file

    def progress(self) -> dict[str, Any]:
        """The run as its folder shows it now. Raises Refused without a run."""
        if self.run is None:
            raise asked.Refused("the page was started without --run RUN", 404)
        run, steps = read_run(self.run), [*self.steps()]
        total = run.settings.get("steps", run.steps)
        about = {"folder": str(self.run), "condition": self.trained, "steps": steps, "log": run.log}
        about |= {"done": run.steps, "total": total, "jump": step_of_jump(run.measured)}
        files = [self.run / name for name in ("settings.json", "log.jsonl")]
        newest = max(file.stat().st_mtime for file in files if file.exists())
        running = not run.metrics and time.time() - newest < SILENT
        return about | {"running": running, "note": "" if steps else NO_WEIGHTS}

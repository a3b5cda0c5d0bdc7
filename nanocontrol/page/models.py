"""The networks behind the page: a base, its ControlNets, and the weights that a run keeps."""

import re
from pathlib import Path
from typing import Any

import torch

from nanocontrol.checkpoint import load_control, load_sd, read_base
from nanocontrol.commands.inputs import build_control
from nanocontrol.controlnet import ControlNet
from nanocontrol.doctor.hints import KINDS as LOOKS
from nanocontrol.formats.tensors import open_tensors
from nanocontrol.nano.conditions import CONDITIONS
from nanocontrol.nano.detector import load_detector
from nanocontrol.nano.model import DETECTOR, NANO, UNET, WEIGHTS, condition_of, name_of
from nanocontrol.nano.scenes import HELD_OUT
from nanocontrol.nano.world import COLOURS, KINDS, LIMBS, PIXELS, SIZES, random_scene
from nanocontrol.page import asked
from nanocontrol.page.asked import Refused
from nanocontrol.page.insides import blocks_of
from nanocontrol.page.preview import preview_map
from nanocontrol.page.sketch import code_of, look_of, palette_of
from nanocontrol.plumbing.errors import InputError, blame
from nanocontrol.plumbing.machine import default_dtype, for_sampling, is_gpu
from nanocontrol.training.measure import step_of_jump
from nanocontrol.training.run import read_run

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
NUMBERS = ("loss", "held_out_loss", "control_gain", "score", "follows", "iou")
KEPT = 4  # weights of a run that stay in memory
EXAMPLE = HELD_OUT + 14  # the scene of the first drawing


class Models:
    """Files are checked when it is made, and weights are read by `load`.

    control_files: empty for those that are bundled; run: the folder of a run of train.py.
    """

    def __init__(self, base: Path | None, control_files: list[Path], run: Path | None, device: str):
        settings = {} if run is None else self.settings_of(run)
        self.base, self.run, self.device = base or Path(settings.get("base", NANO)), run, device
        with blame("--base"):
            _, config = read_base(self.base)
            self.size = open_tensors(self.base).metadata.get("size", 512)
        self.scenes = config == UNET and self.size in SIZES
        self.name, self.config = name_of(config), config
        if not control_files and config == UNET:
            control_files = sorted(WEIGHTS.glob("nano-control-*.safetensors"))
        self.files: dict[str, Path] = {}
        for file in control_files:
            with blame("--control"):
                build_control(open_tensors(file), [1.0], self.base, config)
                self.files[condition_of(file) if self.scenes else file.stem] = file
        self.trained = settings.get("condition") or settings.get("hints") or ""
        if run is not None and self.scenes and self.trained not in CONDITIONS:
            raise InputError(f"--run: {run} trains on no condition that can be drawn")
        self.kept: dict[int, ControlNet] = {}
        self.controls: dict[str, ControlNet] = {}
        self.about: dict[str, Any] = {"ready": False}

    @staticmethod
    def settings_of(run: Path) -> dict[str, Any]:
        with blame("--run"):
            return read_run(run).settings

    @torch.no_grad()
    def load(self) -> None:
        """Read the weights, as sample.py does, and measure what the page shows of the networks."""
        self.sd = load_sd(self.base, self.device, DTYPES[default_dtype(self.device)])
        self.controls = {name: load_control(f, self.sd.unet) for name, f in self.files.items()}
        if is_gpu(self.device):
            for_sampling()
            for network in (self.sd.unet, self.sd.vae, *self.controls.values()):
                network.to(memory_format=torch.channels_last)
        self.map = preview_map(self.sd, self.base)
        self.detector = load_detector(DETECTOR) if self.scenes else None
        control = next(iter(self.controls.values()), None)
        blocks_of(self.sd, control)  # the first pass is slower than all others
        self.about = self.facts() | {"blocks": blocks_of(self.sd, control)}

    def facts(self) -> dict[str, Any]:
        """Everything for /api/info that does not need a pass through the networks."""
        unet = self.sd.unet
        skips = zip([*unet.skip_channels, unet.skip_channels[-1]], self.levels())
        names = [f"input_blocks.{i}" for i in range(len(unet.input_blocks))] + ["middle_block"]
        residuals = [
            {"name": name, "channels": c, "size": -(-self.size // 8 // 2**level)}
            for name, (c, level) in zip(names, skips)
        ]
        return {
            "ready": True,
            "base": str(self.base),
            "name": self.name,
            "size": self.size,
            "latent": self.size // 8,
            "guidance": self.sd.guidance,
            "device": self.device,
            "nano": self.scenes,
            "conditions": [self.condition(name) for name in self.conditions()],
            "connections": len(residuals),
            "residuals": residuals,
            "words": ["a", "an", "and", "on", "background", *KINDS, *COLOURS]
            if self.config == UNET
            else None,
            "colours": {name: code_of(colour) for name, colour in COLOURS.items()},
            "kinds": KINDS,
            "limbs": LIMBS,
            "run": self.run and {"folder": str(self.run)},
            "limits": {
                "steps": asked.STEPS,
                "strokes": asked.STROKES,
                "points": asked.POINTS,
                "prompt": asked.PROMPT,
                "things": asked.THINGS,
            },
        }

    def levels(self) -> list[int]:
        return [*self.sd.unet.skip_levels, self.sd.unet.skip_levels[-1]]

    def conditions(self) -> list[str]:
        return [*CONDITIONS] if self.scenes else [*self.files]

    def condition(self, name: str) -> dict[str, Any]:
        background, ink, widths = look_of(name)
        return {
            "name": name,
            "title": LOOKS[name][0] if self.scenes else "hints as in its training",
            "available": name in self.usable(),
            "control": str(self.files[name]) if name in self.files else None,
            "train": f"python train.py --condition {name}",
            "antialias": name != "canny",
            "widths": [width * self.size / PIXELS for width in widths],
            "colours": palette_of(name),
            "background": background,
            "ink": ink,
            "drawable": bool(widths),
            "connections": len(self.sd.unet.skip_channels) + 1,
        }

    def usable(self) -> dict[str, int]:
        """The conditions that have a ControlNet, each with its number of connections."""
        names = [*self.files, *([self.trained] if self.steps() else [])]
        return {name: len(self.sd.unet.skip_channels) + 1 for name in names}

    # ------------------------------------------------------------------------------- the run

    def steps(self) -> dict[int, Path]:
        """The kept weights of the run by step, the first step first."""
        files = sorted((self.run / "weights").glob("control-*.safetensors")) if self.run else []
        found = {re.fullmatch(r"control-(\d+)", file.stem): file for file in files}
        return {int(match[1]): file for match, file in found.items() if match}

    def control(self, condition: str, step: int | None) -> tuple[ControlNet, Path]:
        """The ControlNet for a condition and its file. step: of the run, where it has the condition.
        Raises Refused with status 404 if there is none."""
        own = condition == self.trained
        if not (own and (step is not None or condition not in self.files)):
            if condition not in self.files:
                train = f"python train.py --condition {condition}"
                raise Refused(f"{condition} has no ControlNet yet: {train} trains one", 404)
            return self.controls[condition], self.files[condition]
        files = self.steps()
        step = max(files, default=0) if step is None else step
        if step not in files:
            raise Refused(f"run_step: {self.run} keeps no weights of step {step}", 404)
        if step not in self.kept:
            while len(self.kept) >= KEPT:
                del self.kept[next(iter(self.kept))]
            self.kept[step] = load_control(files[step], self.sd.unet).requires_grad_(False)
        return self.kept[step], files[step]

    def progress(self) -> dict[str, Any]:
        """The run as its folder shows it now. Raises Refused without a run."""
        if self.run is None:
            raise Refused("the page was started without --run RUN", 404)
        run = read_run(self.run)
        log = [
            {"step": entry["step"]} | {n: entry[n] for n in NUMBERS if entry.get(n) is not None}
            for entry in run.log
        ]
        steps = [*self.steps()]
        total = run.settings.get("steps", run.steps)
        note = "" if steps else "no kept weights: train with --keep all to see every evaluation"
        return {
            "folder": str(self.run),
            "condition": self.trained,
            "steps": steps,
            "done": run.steps,
            "total": total,
            "running": not run.metrics and run.steps < total,
            "log": log,
            "jump": step_of_jump(run.measured),
            "note": note,
        }

    def example(self) -> dict[str, Any]:
        """The scene with which the page begins."""
        scene = random_scene(EXAMPLE, ("pyramid",))
        return {"scene": scene, "prompt": scene.prompt}

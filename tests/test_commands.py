"""The commands beside train.py and sample.py."""

import json

import numpy as np
import pytest
from PIL import Image

from conftest import CONTROL, NANO, refusal
from nanocontrol import ControlNet, InputError, load_sd, save_control
from nanocontrol.nano import detector, evaluate, nine, scenes
from nanocontrol.nano.scenes import HELD_OUT


def test_evaluate_prints_its_numbers(capsys):
    evaluate.main(["--n", "4"])
    numbers = json.loads(capsys.readouterr().out)
    measured = {"vae_db", "background", "colours", "shapes", "shapes_true", "iou", "conditions"}
    assert numbers.keys() == measured
    assert numbers["vae_db"] > 25 and numbers["iou"] > 0.5
    canny = numbers["conditions"]["canny"]
    assert canny["true"] == 1 and canny["with"] > canny["without"] + 0.1
    assert "--base" in refusal(evaluate.main, capsys, "--base", "missing.safetensors")
    assert "--detector" in refusal(evaluate.main, capsys, "--detector", "missing.safetensors")
    save_control(ControlNet(load_sd(NANO).unet.config), "bare.safetensors")
    message = refusal(evaluate.main, capsys, "--control", "bare.safetensors")
    assert "bare.safetensors names no condition" in message


def test_sheets_of_scenes_and_of_conditions(capsys):
    scenes.main(["--n", "3"])
    assert Image.open("out/world.png").size == (10 * 64, 16 + 3 * 64)
    nine.main(["--control", CONTROL])
    assert Image.open("out/nine.png").size == (2 * 64, 16 + 2 * 64)
    sd = load_sd(NANO)
    controls = {name: ControlNet.from_unet(sd.unet) for name in ("hough", "pose")}
    sheet = np.asarray(nine.side_by_side(sd, controls, HELD_OUT))
    assert sheet.shape == (16 + 2 * 64, 3 * 64, 3)
    hints = np.split(sheet[16:80], 3, axis=1)
    assert all(hint.std() > 5 for hint in hints)  # none is empty
    made = np.split(sheet[80:], 3, axis=1)
    assert all(np.array_equal(made[0], other) for other in made)  # untrained ones change nothing
    assert "are for canny" in refusal(nine.main, capsys, "--control", CONTROL, CONTROL)


def test_a_detector_can_be_trained(tmp_path, capsys):
    file = tmp_path / "new" / "d.safetensors"
    detector.main(["--steps", "2", "--scenes", "20", "--out", str(file)])
    assert detector.load_detector(file)
    (tmp_path / "f").write_text("no folder")
    assert "--out" in refusal(detector.main, capsys, "--out", str(tmp_path / "f" / "d.safetensors"))


def test_the_package_refuses_with_its_own_error():
    with pytest.raises(InputError):
        load_sd("missing.safetensors")

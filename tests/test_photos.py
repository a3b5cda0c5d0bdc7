"""Real photographs, of all sizes: those that scikit-image and scikit-learn bring along."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import sample
import train
from conftest import opened
from nanocontrol.tools.check_data import main as check_data

pytestmark = pytest.mark.slow  # the packages alone take seconds to import
BROUGHT = 'the extra `photos` is not installed: pip install -e ".[photos]"'
CAPTIONS = {
    "astronaut": "an astronaut in an orange suit",
    "camera": "a man with a camera",
    "chelsea": "a cat",
    "coffee": "a cup of coffee on a table",
    "coins": "old coins",
    "rocket": "a rocket before its start",
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder as people have it, with a caption beside each picture but one."""
    skimage = pytest.importorskip("skimage.data", reason=BROUGHT)
    sklearn = pytest.importorskip("sklearn.datasets", reason=BROUGHT)
    folder = tmp_path_factory.mktemp("photos")
    for name, caption in CAPTIONS.items():
        Image.fromarray(getattr(skimage, name)()).save(folder / f"{name}.png")
        (folder / f"{name}.txt").write_text(caption + "\n")
    for name in ("china", "flower"):
        Image.fromarray(sklearn.load_sample_image(f"{name}.jpg")).save(folder / f"{name}.jpg")
    (folder / "flower.txt").write_text("a flower\n")
    return folder


def test_a_folder_of_photographs_is_what_training_expects(photos, capsys):
    check_data([str(photos), "--hints", "canny", "--size", "128"])
    text = capsys.readouterr().out
    assert "8 pairs" in text and "640x427" in text and "512x512" in text
    assert "1 caption missing: china.jpg" in text and "wrong" not in text
    assert opened("out/pairs.png").size == (8 * 128, 2 * 128)


def test_nano_is_trained_on_photographs(photos, hasty):
    flags = ["--data", str(photos), "--hints", "canny", "--mirror", "--steps", "3"]
    train.main([*flags, "--batch-size", "4", "--device", "cpu", "--out", "run"])
    metrics = json.loads(Path("run/metrics.json").read_text())
    assert metrics["held_out_loss"] > 0 and 0 <= metrics["score"] <= 1 and metrics["skipped"] == 0
    sheet = np.asarray(opened("run/samples/000003.png"))
    assert sheet.shape[1] == 2 * 128  # of eight photographs two are held out


def test_pictures_that_follow_the_edges_of_photographs(photos):
    for photo in [*photos.glob("*.png"), *photos.glob("*.jpg")]:
        hint = ["--hint", str(photo), "--canny", "100", "200", "--prompt", "a green ring"]
        sample.main([*hint, "--n", "1", "--steps", "1"])
        made, own = opened("out/000.png").size, opened(photo).size
        assert min(made) == 128 and made == tuple(
            round(side * 128 / min(own) / 64) * 64 for side in own
        )

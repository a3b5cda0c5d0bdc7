"""`nanocontrol.tools.prepare`: a training finds its cache filled."""

from pathlib import Path

import pytest

import train
from conftest import NANO, refusal, write_pairs
from nanocontrol.tools.prepare import main as prepare
from nanocontrol.training import cache

FLAGS = ["--base", NANO, "--size", "64", "--device", "cpu"]
pytestmark = pytest.mark.usefixtures("blind")


@pytest.mark.parametrize("hints", [[], ["--hints", "canny"]])
def test_parts_made_on_several_machines_fill_the_cache(tmp_path, monkeypatch, hints):
    pairs = str(write_pairs(tmp_path / "pairs", n=12))
    monkeypatch.setattr(cache, "IN_FILE", 3)
    for part in ("1/2", "2/2"):
        prepare([pairs, *FLAGS, *hints, "--part", part, "--cache", part[0]])
    monkeypatch.setattr(cache, "encode", None)  # nothing is left to encode
    Path("cache/encoded").mkdir(parents=True)
    for file in [*Path("1/encoded").iterdir(), *Path("2/encoded").iterdir()]:
        file.rename(Path("cache/encoded", file.name))
    assert len([*Path("cache/encoded").iterdir()]) == 4
    flags = ["--data", pairs, *hints, "--steps", "2", "--batch-size", "6", "--out", "run"]
    train.main([*FLAGS, *flags])


def test_wrong_parts_and_trainings_without_a_cache_are_refused(tmp_path, capsys):
    pairs = str(write_pairs(tmp_path / "pairs", n=3))
    assert "expected one as 2/4" in refusal(prepare, capsys, pairs, "--part", "3/2")
    assert "reads no cache" in refusal(prepare, capsys, pairs, *FLAGS, "--no-cache")
    assert "nowhere" in refusal(prepare, capsys, "nowhere", *FLAGS)
    assert "expected folders first" in refusal(prepare, capsys, *FLAGS, pairs)

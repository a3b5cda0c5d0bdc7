"""Canny edges against those of OpenCV 5.0's `Canny` for fixtures/canny_photo.png."""

from pathlib import Path

import pytest
import torch

from nanocontrol.plumbing.canny import canny
from nanocontrol.plumbing.pictures import read_picture

FIXTURES = Path(__file__).parent / "fixtures"


@pytest.mark.parametrize("low, high", [(100, 200), (20, 400)])
def test_canny_equals_opencv_bitwise(low, high):
    edges = canny(read_picture(FIXTURES / "canny_photo.png"), low, high)
    assert torch.equal(edges, read_picture(FIXTURES / f"canny_{low}_{high}.png"))


def test_weak_edges_stay_only_where_they_touch_a_strong_one():
    picture = torch.zeros(3, 32, 32)
    picture[:, 4:12, 4:28], picture[:, 20:28, 4:28] = 0.2, 0.2  # |dx| + |dy| = 204 at their sides
    picture[:, 4:12, 16:28] = 0.6
    assert canny(picture, 100, 400)[:, 6:10, 3].all()
    assert not canny(picture, 100, 400)[:, 16:].any() and canny(picture, 100, 200)[:, 16:].any()


def test_a_plain_picture_has_no_edges():
    assert not canny(torch.full((3, 8, 9), 0.5), 0, 0).any()


def test_thresholds_must_be_exceeded():
    picture = torch.zeros(3, 8, 8)
    picture[:, :, 4:] = 50 / 255  # |dx| is 4 times 50
    assert canny(picture, 199, 199).any() and canny(picture, 100, 199).any()
    assert not canny(picture, 100, 200).any() and not canny(picture, 200, 200).any()
    picture[:, 0, 4:] = 1.0  # the top of the edge is strong now, the rest is weak as before
    weak = [canny(picture, low, 300)[0, 4:].any() for low in (199, 200)]
    assert weak == [True, False]

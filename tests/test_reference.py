"""Networks against stored outputs of the original code (see reference.py)."""

from pathlib import Path

import pytest
import torch
from reference import inputs, unet_and_control, vae
from safetensors.torch import load_file

REFERENCE = load_file(Path(__file__).parent / "fixtures" / "reference.safetensors")


def relative_error(ours: torch.Tensor, name: str) -> float:
    return ((ours - REFERENCE[name]).norm() / REFERENCE[name].norm()).item()


def in_float64(style: str) -> dict[str, torch.Tensor]:
    """Inputs in float64, so that only the reference's own rounding remains."""
    return {k: x.double() if x.is_floating_point() else x for k, x in inputs(style).items()}


@pytest.mark.parametrize("style", ["sd1", "sd2"])
@torch.no_grad()
def test_unet_and_controlnet_match_the_original(style):
    unet, control = (network.double() for network in unet_and_control(style))
    given = in_float64(style)
    x, t, context = given["x"], given["t"], given["context"]
    assert relative_error(unet(x, t, context), f"{style}.unet") < 1e-5
    residuals = control(x, given["hint"], t, context)
    for i, residual in enumerate(residuals):
        assert relative_error(residual, f"{style}.residual.{i}") < 1e-5
    assert relative_error(unet(x, t, context, residuals), f"{style}.controlled") < 1e-5


@torch.no_grad()
def test_the_vae_matches_the_original():
    ours, given = vae().double(), in_float64("sd1")
    mean, logvar = ours.encode(given["image"])
    assert relative_error(mean, "vae.mean") < 1e-5
    assert relative_error(logvar, "vae.logvar") < 1e-5
    assert relative_error(ours.decode(given["latent"]), "vae.image") < 1e-5

"""Whole sampling runs against other implementations, with the same weights and noise.

fixtures/sampled.safetensors holds their latents, computed in float32 on a CPU:

- lllyasviel/ControlNet (cldm's DDIMSampler with ControlLDM.apply_model, weights loaded with
  strict=True) for guess mode, strengths, resolution weighting and the repainted part of `repaint`.
  It used the initial noise of these tests instead of fresh noise.
- diffusers 0.42.1 (StableDiffusionControlNetPipeline, ...Img2ImgPipeline, ...InpaintPipeline,
  weights converted by diffusers) for everything else.
"""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from conftest import CONFIGS, randomise
from nanocontrol import ControlNet, StableDiffusion, UNet, sample

REFERENCE = Path(__file__).parent / "fixtures" / "sampled.safetensors"
STRENGTHS = [0.4, 1.3, 0.0, 0.7, 1.1]  # the small models have 5 residuals


@torch.no_grad()
def lively(net: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Random weights that give outputs of about 1 and a dependence on every input."""
    for name, parameter in randomise(net, seed).named_parameters():
        if parameter.dim() > 1:
            parameter *= 2
        else:  # norms near 1, biases near 0
            parameter += 0.5 if name.endswith("weight") else -0.5
        if name == "input_hint_block.14.weight":
            parameter *= 10
    return net


def models(style: str) -> tuple[UNet, list[ControlNet]]:
    controls = [lively(ControlNet(CONFIGS[style]), seed) for seed in (21, 22)]
    # In float64 only the references' rounding remains, which is equal on every processor.
    return lively(UNet(CONFIGS[style]), seed=20).double(), [
        control.double() for control in controls
    ]


def inputs(style: str) -> dict[str, torch.Tensor]:
    """Inputs for two pictures of 64 x 32 pixels."""
    generator = torch.Generator().manual_seed(23)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator)

    mask = torch.zeros(2, 1, 8, 4, dtype=torch.bool)
    mask[0, :, 2:5, :3] = mask[1, :, 4:, 1:] = True
    return {
        "noise": normal(2, 4, 8, 4),
        "context": normal(2, 77, CONFIGS[style].context_dim),
        "uncond": normal(2, 77, CONFIGS[style].context_dim),
        "hints": normal(2, 2, 3, 64, 32).sigmoid(),  # one for each ControlNet
        "image": normal(2, 4, 8, 4),
        "mask": mask,
    }


def run(style: str, prediction: str, strengths: list, **options) -> torch.Tensor:
    """Latents after 5 steps, with one ControlNet per strength."""
    unet, controls = models(style)
    given = inputs(style)
    sd = StableDiffusion(unet, None, None, prediction)
    controls = list(zip(controls, given["hints"], strengths))
    noise, context, uncond = given["noise"], given["context"], given["uncond"]
    return sample(sd, noise, context, uncond, controls, steps=5, **options)


def relative_error(made: torch.Tensor, name: str, where: torch.Tensor | None = None) -> float:
    reference = load_file(REFERENCE)[name]
    if where is not None:
        made, reference = made[where], reference[where]
    return ((made - reference).norm() / reference.norm()).item()


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_both_predictions_of_stable_diffusion_2_match(prediction):
    assert relative_error(run("sd2", prediction, [0.9]), prediction) < 3e-5


@pytest.mark.parametrize("scale", [9, 1])  # 1: without guidance
def test_guess_mode_matches(scale):
    made = run("sd1", "eps", [0.9], guess=True, scale=scale)
    assert relative_error(made, f"guess.{scale}") < 3e-5


def test_strengths_per_residual_match():
    assert relative_error(run("sd1", "eps", [STRENGTHS]), "strengths") < 3e-5
    made = run("sd2", "v", [STRENGTHS], guess=True)
    assert relative_error(made, "strengths.guess") < 3e-5


def test_resolution_weighting_matches():
    made = run("sd1", "eps", [0.5], resolution_weighting=True)
    assert relative_error(made, "resolution") < 3e-5
    made = run("sd2", "v", [STRENGTHS], resolution_weighting=True)
    assert relative_error(made, "strengths.resolution") < 3e-5


def test_two_controls_in_a_part_of_the_steps_match():
    made = run("sd1", "eps", [0.8, 0.5], control_from=0.2, control_to=0.6)
    assert relative_error(made, "window") < 3e-5


def test_img2img_matches():
    image = inputs("sd1")["image"]
    # 3.9 steps are rounded to 4, as in the reference with 0.8; diffusers would truncate to 3.
    made = run("sd1", "eps", [0.9], image=image, noised=0.78)
    assert relative_error(made, "image") < 3e-5
    # The window covers half of these four steps, not of five.
    made = run("sd1", "eps", [0.9], image=image, noised=0.8, control_from=0.25, control_to=0.75)
    assert relative_error(made, "image.window") < 3e-5


def test_repainting_matches():
    given = inputs("sd1")
    image, mask = given["image"], given["mask"]
    made = run("sd1", "eps", [0.9], image=image, mask=mask)
    where = mask.expand_as(made)
    assert relative_error(made, "repaint", where) < 3e-5
    assert torch.equal(made[~where], image[~where])
    made = run("sd1", "eps", [0.9], image=image, mask=mask, noised=0.8)
    assert relative_error(made, "repaint.noised") < 3e-5

"""The sampling loop."""

import copy

import pytest
import torch
from nanocontrol import DDIM, sample
from nanocontrol.sampling import initial_noise


@pytest.fixture
def guided(sd, inputs):
    """Noise and prompts to sample with."""
    _, _, context, hint, noise = inputs
    prompts = {"context": context, "uncond": context[:1] * 0.5}
    return {"sd": sd, "noise": noise, "steps": 4} | prompts, hint


def test_strength_0_is_the_base_to_the_bit_and_1_is_not(guided, trained_control):
    arguments, hint = guided
    plain = sample(**arguments)
    assert torch.equal(sample(**arguments, controls=[(trained_control, hint, 0.0)]), plain)
    assert not torch.allclose(sample(**arguments, controls=[(trained_control, hint, 1.0)]), plain)


def test_controls_add_up(guided, trained_control):
    arguments, hint = guided
    one = sample(**arguments, controls=[(trained_control, hint, 0.7)])
    other = copy.deepcopy(trained_control)
    both = sample(**arguments, controls=[(trained_control, hint, 0.7), (other, 1 - hint, 0.0)])
    assert torch.equal(one, both)
    halves = [(trained_control, hint, 0.35), (trained_control, hint, 0.35)]
    assert torch.allclose(sample(**arguments, controls=halves), one, rtol=1e-3, atol=1e-3)


def test_guidance_is_uncond_plus_scale_times_the_difference(sd, guided):
    arguments, _ = guided
    noise, t = arguments["noise"], torch.tensor([1, 1])  # the one step of one
    uncond, context = arguments["uncond"].expand(2, -1, -1), arguments["context"]
    with torch.no_grad():
        without, with_prompt = sd.unet(noise, t, uncond), sd.unet(noise, t, context)
    for scale in (0.0, 1.0, 9.0):
        eps = without + scale * (with_prompt - without)
        expected = DDIM().step(noise, eps, 1, None, 0.0)
        made = sample(**arguments | {"steps": 1}, scale=scale)
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    swapped = DDIM().step(noise, with_prompt + 9 * (without - with_prompt), 1, None, 0.0)
    assert (swapped - expected).abs().max() > 1e-4  # it would have been seen


def test_what_is_given_is_not_changed(guided, trained_control):
    arguments, hint = guided
    controls = [(trained_control, hint, 1.0)]
    before = copy.deepcopy((arguments["noise"], arguments["context"], arguments["uncond"], hint))
    sample(**arguments, controls=controls, eta=1.0)
    after = (arguments["noise"], arguments["context"], arguments["uncond"], hint)
    assert all(torch.equal(a, b) for a, b in zip(before, after)) and len(controls) == 1


def test_a_batch_is_its_pictures_one_by_one(guided, trained_control):
    arguments, hint = guided
    together = sample(**arguments, controls=[(trained_control, hint, 1.0)])
    for i in range(2):
        alone = arguments | {k: arguments[k][i : i + 1] for k in ("noise", "context")}
        picture = sample(**alone, controls=[(trained_control, hint[i : i + 1], 1.0)])
        torch.testing.assert_close(picture, together[i : i + 1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("options", [{"eta": 1.0}, {"sampler": "ddpm"}])
def test_added_noise_comes_from_the_generator(guided, options):
    arguments, _ = guided

    def made(seed: int) -> torch.Tensor:
        return sample(**arguments, **options, generator=torch.Generator().manual_seed(seed))

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))


def test_initial_noise_is_the_stated_one():
    noise = initial_noise(3, 64, 128, torch.Generator("cpu").manual_seed(5))
    expected = torch.randn((3, 4, 8, 16), generator=torch.Generator("cpu").manual_seed(5))
    assert torch.equal(noise, expected)


def test_steps_out_of_range(guided):
    arguments, _ = guided
    with pytest.raises(ValueError, match="1001"):
        sample(**arguments | {"steps": 1001})
    with pytest.raises(ValueError, match="euler"):
        sample(**arguments, sampler="euler")

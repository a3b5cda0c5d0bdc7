"""The sampling loop."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import CONFIGS
from nanocontrol import DDIM, DDPM, ControlNet, sample
from nanocontrol.sampling import initial_noise, weigh


@pytest.fixture
def style() -> str:
    """One style is enough: the loop does not depend on it. test_sampled.py covers both."""
    return "sd1"


@pytest.fixture
def guided(sd, inputs):
    """Arguments of `sample`, and a hint."""
    _, _, context, hint, noise = inputs
    prompts = {"context": context, "uncond": context[:1] * 0.5}
    return {"sd": sd, "noise": noise, "steps": 4} | prompts, hint


def test_strength_0_equals_the_base_bitwise_and_1_does_not(guided, trained_control):
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
    noise, t = arguments["noise"], torch.tensor([1, 1])  # the only step
    uncond, context = arguments["uncond"].expand(2, -1, -1), arguments["context"]
    unet = sd.unet.double()  # in float32 a batch of both would differ by rounding, times 9
    with torch.no_grad():
        without, with_prompt = (
            unet(noise.double(), t, c.double()).float() for c in (uncond, context)
        )
    for scale in (0.0, 1.0, 9.0):
        eps = without + scale * (with_prompt - without)
        expected = DDIM().step(noise, eps, 1, None, 0.0)
        made = sample(**arguments | {"steps": 1}, scale=scale)
        torch.testing.assert_close(made, expected, rtol=1e-5, atol=1e-6)
    swapped = DDIM().step(noise, with_prompt + 9 * (without - with_prompt), 1, None, 0.0)
    assert (swapped - expected).abs().max() > 1e-4  # swapped terms would fail


def test_sampling_does_not_change_its_arguments(guided, trained_control):
    arguments, hint = guided
    controls = [(trained_control, hint, 1.0)]
    before = copy.deepcopy((arguments["noise"], arguments["context"], arguments["uncond"], hint))
    sample(**arguments, controls=controls, scheduler=DDIM(eta=1.0))
    after = (arguments["noise"], arguments["context"], arguments["uncond"], hint)
    assert all(torch.equal(a, b) for a, b in zip(before, after)) and len(controls) == 1


def test_a_batch_equals_its_pictures_one_by_one(guided, trained_control):
    arguments, hint = guided
    together = sample(**arguments, controls=[(trained_control, hint, 1.0)])
    for i in range(2):
        alone = arguments | {k: arguments[k][i : i + 1] for k in ("noise", "context")}
        picture = sample(**alone, controls=[(trained_control, hint[i : i + 1], 1.0)])
        torch.testing.assert_close(picture, together[i : i + 1], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("scheduler", [DDIM(eta=1.0), DDPM()])
def test_added_noise_comes_from_the_generator(guided, scheduler):
    arguments, _ = guided

    def made(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return sample(**arguments, scheduler=scheduler, generator=generator)

    assert torch.equal(made(1), made(1))
    assert not torch.equal(made(1), made(2))


def test_initial_noise_is_torch_randn_on_the_cpu():
    noise = initial_noise(3, 64, 128, torch.Generator("cpu").manual_seed(5))
    expected = torch.randn((3, 4, 8, 16), generator=torch.Generator("cpu").manual_seed(5))
    assert torch.equal(noise, expected)


def test_too_many_steps_are_an_error(guided):
    arguments, _ = guided
    with pytest.raises(ValueError, match="1001"):
        sample(**arguments | {"steps": 1001})


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_the_default_sampler_is_ddim_with_the_bases_prediction(guided, prediction):
    arguments, _ = guided
    arguments["sd"].prediction = prediction
    expected = sample(**arguments, scheduler=DDIM(prediction))
    assert torch.equal(sample(**arguments), expected)
    assert not torch.equal(expected, sample(**arguments, scheduler=DDPM(prediction)))


def outputs(monkeypatch, sd, **arguments) -> list[torch.Tensor]:
    """The U-Net's outputs, one per step: without prompts first, then with."""
    seen, forward = [], sd.unet.forward
    with monkeypatch.context() as patch:
        patch.setattr(sd.unet, "forward", lambda *args: seen.append(forward(*args)) or seen[-1])
        sample(sd, **arguments)
    return seen


@pytest.mark.parametrize("rule", ["guess", "resolution_weighting"])
def test_the_unconditional_half_equals_the_base_without_control(
    guided, trained_control, monkeypatch, rule
):
    arguments, hint = guided
    arguments |= {"steps": 1}
    (plain,) = outputs(monkeypatch, **arguments)
    controls = [(trained_control, hint, 1.0)]
    (made,) = outputs(monkeypatch, **arguments, controls=controls, **{rule: True})
    assert torch.equal(made[:2], plain[:2]) and not torch.allclose(made[2:], plain[2:])
    (controlled,) = outputs(monkeypatch, **arguments, controls=controls)
    assert not torch.allclose(controlled[:2], plain[:2])


def test_guess_mode_and_resolution_weighting_are_strengths_per_residual(guided, trained_control):
    """Without an unconditional half, both rules equal strengths per residual. Here are 5 residuals:
    two with the latent's height, three with half of it."""
    arguments, hint = guided
    arguments |= {"scale": 1.0}
    for rule, weights in [
        ("guess", [0.9 * 0.825**k for k in (4, 3, 2, 1, 0)]),
        ("resolution_weighting", [0.9, 0.9, 1.8, 1.8, 1.8]),
    ]:
        made = sample(**arguments, controls=[(trained_control, hint, 0.9)], **{rule: True})
        expected = sample(**arguments, controls=[(trained_control, hint, weights)])
        assert torch.equal(made, expected)


@pytest.mark.parametrize("size", [(8, 16), (7, 16), (9, 16), (6, 16), (1, 16)])
def test_heights_of_residuals_are_known_before_the_network_runs(size):
    """Odd heights are rounded up at every downsampling."""
    config = replace(CONFIGS["sd1"], channel_mult=(1, 1, 1, 1), num_res_blocks=2)
    with torch.device("meta"):
        net, x = ControlNet(config), torch.empty(1, 4, *size)
        hint = torch.empty(1, 3, 8 * size[0], 8 * size[1])
        residuals = net(x, hint, torch.empty(1), torch.empty(1, 77, config.context_dim))
    assert len({r.shape[2] for r in residuals}) == (4 if size[0] > 4 else 1)
    made = weigh((net, hint, 0.7), size[0], False, resolution_weighting=True)
    assert made.weights == [0.7 * size[0] / r.shape[2] for r in residuals] and made.prompt_only
    both = weigh((net, hint, 0.7), size[0], True, resolution_weighting=True).weights
    n = len(residuals)
    assert both == [
        0.7 * 0.825 ** (n - 1 - i) * size[0] / r.shape[2] for i, r in enumerate(residuals)
    ]
    for two in (2, [2] * n, np.full(n, 2), np.float32(2), torch.full((n,), 2.0), torch.tensor(2)):
        assert weigh((net, hint, two), size[0], False, False) == (net, [2] * n, False)
    for wrong in ([2] * (n + 1), np.full((1, n), 2), torch.full((1,), 2), []):
        with pytest.raises(ValueError, match=f"expected a number, or {n} numbers"):
            weigh((net, hint, wrong), size[0], False, False)


def test_each_residual_may_have_its_own_strength(guided, trained_control):
    arguments, hint = guided
    same = sample(**arguments, controls=[(trained_control, hint, [0.7] * 5)])
    assert torch.equal(same, sample(**arguments, controls=[(trained_control, hint, 0.7)]))
    middle = sample(**arguments, controls=[(trained_control, hint, [0, 0, 0, 0, 0.7])])
    assert not torch.allclose(middle, same)
    for rule in ({}, {"guess": True}, {"resolution_weighting": True}, {"control_to": 0.0}):
        with pytest.raises(ValueError, match=r"shape \[6\]: expected a number, or 5"):
            sample(**arguments, controls=[(trained_control, hint, [1.0] * 6)], **rule)


@pytest.mark.slow
def test_control_applies_in_a_part_of_the_steps(guided, trained_control):
    arguments, hint = guided
    arguments |= {"steps": 5}
    plain, controls = sample(**arguments), [(trained_control, hint, 1.0)]
    for edge in (0.0, 0.4, 1.0):
        never = sample(**arguments, controls=controls, control_from=edge, control_to=edge)
        assert torch.equal(never, plain)
    calls, embed = [], trained_control.embed_time
    trained_control.embed_time = lambda t: calls.append(t[0].item()) or embed(t)
    for begin, end, steps in [
        (0, 1, [801, 601, 401, 201, 1]),
        (0.2, 0.6, [601, 401]),
        (0.3, 0.7, [401, 201]),
    ]:
        calls.clear()
        sample(**arguments, controls=controls, control_from=begin, control_to=end)
        assert calls == steps, (begin, end)


@pytest.mark.slow
def test_repainting_keeps_unmasked_latents_bitwise(guided, trained_control):
    arguments, hint = guided
    image, mask = torch.randn(1, 4, 8, 16), torch.zeros(1, 1, 8, 16, dtype=torch.bool)
    mask[..., 2:5, 3:9] = True
    for options in ({}, {"scheduler": DDIM(eta=1.0)}, {"scheduler": DDPM()}, {"noised": 0.5}):
        made = sample(
            **arguments, controls=[(trained_control, hint, 1.0)], image=image, mask=mask, **options
        )
        where = mask.expand_as(made)
        assert torch.equal(made[~where], image.expand_as(made)[~where])
        assert not torch.isclose(made[where], image.expand_as(made)[where]).any()
    everything = sample(**arguments, image=image, mask=torch.ones_like(mask))
    assert torch.equal(everything, sample(**arguments))
    nothing = sample(**arguments, image=image, mask=torch.zeros_like(mask))
    assert torch.equal(nothing, image.expand_as(nothing))


def test_more_noise_moves_away_from_the_image(guided):
    arguments, _ = guided
    image = 3 * torch.randn(1, 4, 8, 16)
    made = [sample(**arguments, image=image, noised=noised) for noised in (0.0, 0.25, 0.75, 1.0)]
    assert torch.equal(made[0], image.expand_as(made[0]))
    distances = [(m - image).norm() for m in made]
    assert distances == sorted(distances)
    # With one step of four, sampling starts from the image noised to t = 1.
    noisy = DDIM().add_noise(image, arguments["noise"], torch.tensor([1]))
    one = sample(**arguments | {"noise": noisy, "steps": 1})
    torch.testing.assert_close(made[1], one)


def test_contradicting_arguments_are_errors(guided):
    arguments, _ = guided
    image, mask = torch.zeros(1, 4, 8, 16), torch.ones(1, 1, 8, 16, dtype=torch.bool)
    for options in [
        {"mask": mask},
        {"noised": 0.5},
        {"image": image},
        {"image": image, "noised": 1.5},
        {"control_from": 0.6, "control_to": 0.5},
        {"control_to": 1.1},
        {"control_from": -0.1},
    ]:
        with pytest.raises(ValueError):
            sample(**arguments, **options)

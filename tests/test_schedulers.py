"""DDPM and DDIM against closed forms."""

import math

import pytest
import torch

from nanocontrol import DDIM, DDPM


def test_betas_equal_the_originals():
    scheduler = DDPM()
    assert scheduler.betas.dtype == scheduler.alphas_cumprod.dtype == torch.float64
    assert scheduler.betas[0].item() == pytest.approx(0.00085, rel=1e-12)
    assert scheduler.betas[-1].item() == pytest.approx(0.0120, rel=1e-12)
    root = 0.00085**0.5 + (0.0120**0.5 - 0.00085**0.5) * 500 / 999
    assert scheduler.betas[500].item() == pytest.approx(root**2, rel=1e-12)
    product = math.prod(1 - beta for beta in scheduler.betas.tolist())
    assert scheduler.alphas_cumprod[-1].item() == pytest.approx(product, rel=1e-10)
    assert scheduler.alphas_cumprod[0].item() == pytest.approx(0.99915, abs=1e-9)
    assert scheduler.alphas_cumprod[-1].item() == pytest.approx(0.00466, abs=1e-5)


@pytest.mark.parametrize("scheduler", [DDPM(), DDIM()])
def test_timesteps_are_evenly_spaced_for_every_number_of_steps(scheduler):
    for steps in range(1, 1000):
        expected = [math.floor(1000 * i / steps) + 1 for i in range(steps)][::-1]
        assert scheduler.timesteps(steps) == expected
        assert len(set(expected)) == steps and 1 <= expected[-1] and expected[0] <= 999
        if 1000 % steps == 0:  # the original's make_ddim_timesteps
            assert expected[::-1] == [t + 1 for t in range(0, 1000, 1000 // steps)]
    assert scheduler.timesteps(1000) == list(range(1000))[::-1]
    for steps in (0, -1, 1001):
        with pytest.raises(ValueError):
            scheduler.timesteps(steps)


def test_an_unknown_prediction_is_refused():
    with pytest.raises(ValueError, match="sample"):
        DDPM("sample")


@pytest.mark.parametrize("prediction", ["eps", "v"])
def test_split_inverts_target(prediction):
    torch.manual_seed(0)
    scheduler = DDPM(prediction)
    x0, noise = torch.randn(3, 4, 2, 2).double(), torch.randn(3, 4, 2, 2).double()
    t = torch.tensor([0, 400, 999])
    x_t, target = scheduler.add_noise(x0, noise, t), scheduler.target(x0, noise, t)
    abar = scheduler.alphas_cumprod[400]
    torch.testing.assert_close(x_t[1], abar**0.5 * x0[1] + (1 - abar) ** 0.5 * noise[1])
    if prediction == "v":
        torch.testing.assert_close(target[1], abar**0.5 * noise[1] - (1 - abar) ** 0.5 * x0[1])
    else:
        assert target is noise
    for i, step in enumerate(t.tolist()):
        found_x0, found_noise = scheduler.split(x_t[i], target[i], step)
        torch.testing.assert_close(found_x0, x0[i])
        torch.testing.assert_close(found_noise, noise[i])


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("steps", [1, 7, 20, 1000])
@pytest.mark.parametrize("eta", [None, 0.0, 1.0])
def test_sampling_with_a_perfect_network_ends_at_x0(prediction, steps, eta):
    torch.manual_seed(0)
    scheduler = DDPM(prediction) if eta is None else DDIM(prediction, eta)
    x0, noise = torch.randn(2, 200).double()
    timesteps = scheduler.timesteps(steps)
    first = scheduler.alphas_cumprod[timesteps[0]]
    x = first.sqrt() * x0 + (1 - first).sqrt() * noise
    for t, previous in zip(timesteps, [*timesteps[1:], None]):
        abar = scheduler.alphas_cumprod[t]
        eps = (x - abar.sqrt() * x0) / (1 - abar).sqrt()
        output = eps if prediction == "eps" else abar.sqrt() * eps - (1 - abar).sqrt() * x0
        x = scheduler.step(x, output, t, previous, torch.randn_like(x))
    if eta is None:
        torch.testing.assert_close(x, x0)
    else:  # DDIM ends at abar_0 = 0.99915, so noise of that level remains
        left = (x - 0.99915**0.5 * x0) / (1 - 0.99915) ** 0.5
        if eta == 0:
            torch.testing.assert_close(left, noise)
        assert 0.85 < left.std() < 1.15


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_an_eta_outside_0_to_1_is_refused(eta):
    with pytest.raises(ValueError, match="eta must be 0 to 1"):
        DDIM(eta=eta)


def test_the_ddim_step_is_equation_12():
    torch.manual_seed(0)
    x, eps, noise = torch.randn(3, 1, 4, 2, 2).double().unbind()
    scheduler = DDIM(eta=0.7)
    a, b = (scheduler.alphas_cumprod[t].item() for t in (601, 551))
    sigma = 0.7 * math.sqrt((1 - b) / (1 - a)) * math.sqrt(1 - a / b)
    expected = math.sqrt(b) * (x - math.sqrt(1 - a) * eps) / math.sqrt(a)
    expected += math.sqrt(1 - b - sigma**2) * eps + sigma * noise
    torch.testing.assert_close(scheduler.step(x, eps, 601, 551, noise), expected)
    last = scheduler.alphas_cumprod[0].item()
    assert (
        DDIM()
        .step(x, eps, 1, None, 0.0)
        .allclose(
            math.sqrt(last)
            * (x - math.sqrt(1 - scheduler.alphas_cumprod[1].item()) * eps)
            / math.sqrt(scheduler.alphas_cumprod[1].item())
            + math.sqrt(1 - last) * eps
        )
    )


def test_the_ddpm_step_is_the_posterior_of_gaussians():
    """q(x_s | x_t, x_0) follows from Bayes' rule: the product of N(x_s; sqrt(b) x_0, 1 - b) and
    N(x_t; sqrt(a/b) x_s, 1 - a/b) as a function of x_s."""
    scheduler = DDPM()
    for t, s in [(999, 998), (1, 0), (951, 901)]:
        a, b = (scheduler.alphas_cumprod[i].item() for i in (t, s))
        precision = 1 / (1 - b) + (a / b) / (1 - a / b)
        x_t, x0 = 0.7, -0.4
        mean = (b**0.5 * x0 / (1 - b) + (a / b) ** 0.5 * x_t / (1 - a / b)) / precision
        eps = (x_t - a**0.5 * x0) / (1 - a) ** 0.5
        values = torch.tensor([x_t, eps], dtype=torch.float64).unbind()
        step, noisy = (scheduler.step(*values, t, s, noise) for noise in (0.0, 1.0))
        assert step.item() == pytest.approx(mean, rel=1e-9)
        assert (noisy - step).item() == pytest.approx(precision**-0.5, rel=1e-9)


def test_ddim_with_eta_1_equals_ddpm_before_the_last_step():
    torch.manual_seed(0)
    x, eps, noise = torch.randn(3, 1, 4, 2, 2).double().unbind()
    steps = DDIM(eta=1.0).step(x, eps, 601, 551, noise), DDPM().step(x, eps, 601, 551, noise)
    torch.testing.assert_close(*steps)

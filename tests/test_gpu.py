"""A GPU samples and learns what a CPU does. Skipped without a GPU."""

from dataclasses import replace

import pytest
import torch

import train
from nanocontrol import DDPM
from nanocontrol.checkpoint import load_control, load_sd
from nanocontrol.nano.model import NANO, WEIGHTS
from nanocontrol.nano.scenes import held_out_scenes
from nanocontrol.plumbing import machine
from nanocontrol.sampling import initial_noise, sample
from nanocontrol.training.batches import in_unit

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")


@pytest.fixture
def exact():
    """Compute in float32 without TF32, and restore the settings afterwards."""
    cudnn, matrices = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    attention = torch.backends.cuda.cudnn_sdp_enabled()
    machine.for_sampling()
    yield
    torch.backends.cudnn.allow_tf32 = cudnn
    torch.set_float32_matmul_precision(matrices)
    torch.backends.cuda.enable_cudnn_sdp(attention)


def latents(sd, control, hints, prompts, seed):
    noise = initial_noise(len(hints), 128, 128, torch.Generator().manual_seed(seed))
    with torch.no_grad():
        context, uncond = sd.encode_prompts(list(prompts)), sd.encode_prompts("")
        controls = [(control, hints, 1.0)]
        made = sample(sd, noise, context, uncond, controls, steps=8, control_to=0.5)
    return made.float().cpu()


def test_a_gpu_samples_what_a_cpu_does_and_so_do_replayed_graphs(exact):
    """The first run with seed 1 computes steps, then records them as CUDA graphs, one with control
    and one without. The second run with seed 1 only replays graphs."""
    _, hints, prompts, _ = held_out_scenes("canny", 2, size=128)
    made = {}
    for device in "cpu", "cuda":
        sd = load_sd(NANO, device)
        control = load_control(WEIGHTS / "nano-control-canny.safetensors", sd.unet)
        made[device] = [latents(sd, control, hints, prompts, seed) for seed in (1, 2, 1)]
    recorded = machine.last_replayed["replayed"].recorded
    assert len(recorded) == 2 and all(recorded.values())
    torch.testing.assert_close(made["cuda"][0], made["cuda"][2], rtol=0, atol=1e-4)
    for ours, theirs in zip(made["cuda"], made["cpu"]):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-2)
    assert (made["cpu"][0] - made["cpu"][1]).abs().max() > 1


def test_a_gpu_scales_bytes_as_a_cpu_does():
    pixels = torch.arange(256).byte().view(16, 16, 1)
    assert torch.equal(in_unit(pixels.cuda()).cpu(), pixels.permute(2, 0, 1) / 255)


def test_a_gpu_learns_what_a_cpu_does(exact):
    """Three steps on the same pairs. The compared gradients are those of a fourth step."""
    losses, gradients = {}, {}
    _, hints, _, _ = held_out_scenes("canny", 2, size=128)
    generator = torch.Generator().manual_seed(0)
    x0, noise = (torch.randn(2, 4, 16, 16, generator=generator) for _ in range(2))
    for device in "cpu", "cuda":
        settings = replace(train.resolve({"dtype": "fp32"}), device=device)
        sd, control, trained = train.models(settings)
        machine.exact_float32()
        optimizer = train.optimizer_for(settings, trained)
        with torch.no_grad():
            context = sd.encode_prompts(["a red ball", ""])
        t = torch.tensor([100, 800])
        pairs = (x.to(device) for x in (x0, hints, context, noise, t))
        given = sd.unet, control, DDPM(sd.prediction, device), *pairs
        for _ in range(3):
            loss = train.diffusion_loss(*given).mean()
            optimizer.backward(loss)
            optimizer.step(loss.detach())
        loss = train.diffusion_loss(*given).mean()
        optimizer.backward(loss)
        losses[device] = loss.item()
        parts = {
            "encoder": [*control.input_hint_block[:-1]],
            "its zero convolution": [control.input_hint_block[-1]],
            "copy": [control.time_embed, control.input_blocks, control.middle_block],
            "zero convolutions": [control.zero_convs, control.middle_block_out],
        }
        gradients[device] = {
            part: torch.cat([p.grad.flatten().cpu() for m in modules for p in m.parameters()])
            for part, modules in parts.items()
        }
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=1e-4)
    for part, expected in gradients["cpu"].items():
        assert (gradients["cuda"][part] - expected).norm() < 1e-2 * expected.norm(), part

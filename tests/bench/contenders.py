"""Training steps and pictures to be timed: ours, and diffusers' with networks of the same sizes.

Each contender takes a Job and builds its networks. It returns a function that takes a batch size
and returns one step, or one picture, to be called again and again.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).parents[2]))  # where train.py is

import train
from nanocontrol import (
    DDIM,
    DDPM,
    VAE,
    ControlNet,
    StableDiffusion,
    UNet,
    UNetConfig,
    VAEConfig,
    load_control,
    load_sd,
    sample,
    save_control,
    save_sd,
)
from nanocontrol.clip import CLIPTextEncoder
from nanocontrol.plumbing import machine
from nanocontrol.training.batches import Batch, Draws, encoded, random_draws
from nanocontrol.training.graph import replayed
from nanocontrol.training.optimizer import PRECISIONS, Optimizer
from nanocontrol.training.processes import Processes

ROOT = Path(__file__).parents[2]
PROMPT = "a pale golden circle"
Contender = Callable[[int], Callable[..., object]]  # of a batch size


@dataclass
class Job:
    """The files, the device and the size for a measurement."""

    base: str  # the base model's file
    control: str  # a ControlNet's
    device: str
    size: int  # of a picture in pixels
    folder: Path  # for what a training leaves
    blocks: bool = False  # compile by block
    unet: UNetConfig = UNetConfig()
    vae: VAEConfig = VAEConfig()

    @property
    def dtype(self) -> torch.dtype:
        """The precision of sampling, and of networks that are locked in training."""
        return PRECISIONS[machine.default_dtype(self.device)]

    def inputs(self, n: int) -> dict[str, Tensor]:
        """Random inputs of n pairs, on the CPU."""
        latent = (n, 4, self.size // 8, self.size // 8)
        return {
            "x": torch.randn(latent),
            "noise": torch.randn(latent),
            "t": torch.randint(1000, (n,)),
            "context": torch.randn(n, 77, self.unet.context_dim),
            "hint": torch.rand(n, 3, self.size, self.size),
            "image": torch.rand(n, 3, self.size, self.size) * 2 - 1,
        }

    def fastest(self, *networks: nn.Module) -> None:
        """The memory format in which a GPU's convolutions are fastest; blocks are compiled."""
        for network in networks:
            if machine.is_gpu(self.device):
                network.to(memory_format=torch.channels_last)
            for module in network.modules() if self.blocks else ():
                if type(module).__name__ in BLOCKS:
                    module.compile(dynamic=False)


# Blocks of equal shapes share their compiled code. There are more shapes than PyTorch compiles of a
# function by default, which is 8. Beyond its limit it would run the others without compiling.
torch._dynamo.config.recompile_limit = 64
BLOCKS = "ResBlock", "SpatialTransformer", "ResnetBlock2D", "Transformer2DModel"


# ------------------------------------------------------------------------------------- ours


class Training:
    """train.py's set-up for a run with these flags, and its step."""

    def __init__(self, job: Job, *flags: str):
        self.job = job
        common = ["--base", job.base, "--device", job.device, "--out", str(job.folder / "run")]
        self.settings, *_ = train.parse([*common, *flags])
        self.sd, self.control, trained = train.models(self.settings)
        job.fastest(self.sd.unet, self.control)
        self.optimizer = train.optimizer_for(self.settings, trained)
        self.diffusion = DDPM(self.sd.prediction, job.device)
        with torch.no_grad():
            self.empty = self.sd.encode_prompts("")
        if self.settings.cache:
            self.sd.vae.cpu(), self.sd.text_encoder.cpu()
        parts = self.add_gradients, self.optimizer, Processes(job.device), False
        self.backward, self.take_step = replayed(self.settings.graph, *parts)

    def __call__(self, n: int) -> Callable[[], object]:
        return partial(self.step, self.batches(n), n)

    def batches(self, n: int) -> Iterator[Batch]:
        """One batch again and again. It is copied, or encoded, in every step."""
        given, dtype = self.job.inputs(n), next(self.sd.vae.parameters()).dtype
        if self.settings.cache:
            mean, context = (given[k].to(dtype) for k in ("x", "context"))
            column = mean, torch.full_like(mean, 0.1), context, given["hint"]
        else:
            column = given["image"], given["hint"], [PROMPT] * n
        if machine.is_gpu(self.job.device):  # as train.py's loader does
            column = tuple(x.pin_memory() if isinstance(x, Tensor) else x for x in column)
        return encoded(self.sd, itertools.repeat(column), self.job.device)

    def draws(self, n: int) -> Draws:
        settings, size = self.settings, (self.job.size, self.job.size)
        n = n * settings.accumulate
        return random_draws(settings.seed, 0, n, size, settings.drop_prompt)

    def loss(self, batch: Batch, draws: Draws) -> Tensor:
        """The mean loss of one pass."""
        given = self.sd.scale_factor, batch, draws, self.empty
        networks = self.sd.unet, self.control
        return train.training_loss(*networks, self.diffusion, *given).mean()

    def add_gradients(self, batch: Batch, draws: Draws) -> Tensor:
        loss, passes = self.loss(batch, draws), self.settings.accumulate
        self.optimizer.backward(loss / passes)
        return loss.detach() / passes

    def step(self, batches: Iterator[Batch], n: int) -> Tensor:
        """A step as in train.py's loop."""
        draws, passes = self.draws(n), self.settings.accumulate
        total = torch.zeros((), device=self.job.device)
        for i in range(passes):
            mine = draws.of(slice(i * n, (i + 1) * n), self.job.device)
            total += self.backward(next(batches), mine)
        return self.take_step(total)


def fine_tuning(job: Job) -> Contender:
    """Fine-tuning all weights of the base's U-Net, without a ControlNet, with our optimizer."""
    sd = load_sd(job.base)
    sd.unet.requires_grad_(True)
    job.fastest(sd.unet)
    precision = machine.default_dtype(job.device)
    optimizer = Optimizer({"unet": sd.unet}, 1e-5, job.device, precision)
    diffusion = DDPM(sd.prediction, job.device)

    def step(x: Tensor, noise: Tensor, context: Tensor, t: Tensor) -> None:
        x_t, target = diffusion.add_noise(x, noise, t), diffusion.target(x, noise, t)
        output = sd.unet(x_t.to(job.dtype), t, context)
        loss = F.mse_loss(output.float(), target)
        optimizer.backward(loss)
        optimizer.step(loss.detach())

    def of(n: int) -> Callable[[], object]:
        given = job.inputs(n)
        x, noise, context, t = (given[k].to(job.device) for k in ("x", "noise", "context", "t"))
        return partial(step, x, noise, context.to(job.dtype), t)

    return of


def our_picture(job: Job) -> Contender:
    machine.for_sampling()  # as sample.py does, with the rest
    sd = load_sd(job.base, job.device, job.dtype)
    control = load_control(job.control, sd.unet)
    job.fastest(sd.unet, sd.vae, control)
    if job.dtype is torch.float16:
        sd.vae.float()
    with torch.no_grad():
        uncond = sd.encode_prompts("")

    @torch.no_grad()
    def picture(given: dict[str, Tensor], steps: int = 20) -> None:
        context = sd.encode_prompts([PROMPT] * len(given["noise"]))
        controls = [(control, given["hint"], 1.0)]
        for latent in sample(sd, given["noise"], context, uncond, controls, steps):
            sd.decode(latent[None])  # one by one, as sample.py does

    return lambda n: partial(picture, job.inputs(n))


def load_and_step(job: Job) -> Contender:
    """Loading both files, and a sampling step at 64 pixels."""

    @torch.no_grad()
    def load() -> None:
        sd = load_sd(job.base, job.device)
        control = load_control(job.control, sd.unet)
        context, uncond = sd.encode_prompts(PROMPT), sd.encode_prompts("")
        controls = [(control, torch.rand(1, 3, 64, 64), 1.0)]
        sample(sd, torch.randn(1, 4, 8, 8), context, uncond, controls, steps=1)

    return lambda _: load


# ------------------------------------------------------------------------------- diffusers'


def diffusers_is_here() -> bool:
    return bool(find_spec("diffusers") and find_spec("transformers"))


def random_weights(network: nn.Module, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A network that was made on the meta device, with small random weights on the CPU."""
    network.to(dtype).to_empty(device="cpu")
    with torch.no_grad():
        for tensor in network.state_dict().values():
            if tensor.is_floating_point():
                tensor.uniform_(-0.02, 0.02)
            else:
                tensor.copy_(torch.arange(tensor.numel()).view_as(tensor))  # position_ids
    return network


def diffusers_networks(job: Job) -> tuple[nn.Module, nn.Module]:
    """diffusers' locked U-Net and its ControlNet, in job.dtype and float32."""
    from diffusers import ControlNetModel, UNet2DConditionModel
    from diffusers.utils import logging

    logging.set_verbosity_error()  # it warns of every precision that is chosen after loading
    config, levels = job.unet, range(len(job.unet.channel_mult))
    attends = ["CrossAttn" if level in config.attention_levels else "" for level in levels]
    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=config.context_dim,
            block_out_channels=[config.model_channels * m for m in config.channel_mult],
            layers_per_block=config.num_res_blocks,
            down_block_types=[f"{kind}DownBlock2D" for kind in attends],
            up_block_types=[f"{kind}UpBlock2D" for kind in reversed(attends)],
            attention_head_dim=config.num_heads,
            norm_num_groups=config.norm_groups,
        )
        control = ControlNetModel.from_unet(unet, load_weights_from_unet=False)
    unet, control = random_weights(unet).requires_grad_(False), random_weights(control)
    unet.to(job.device, job.dtype), control.to(job.device)
    job.fastest(unet, control)
    return unet, control


def diffusers_encoders(job: Job) -> tuple[nn.Module, nn.Module]:
    from diffusers import AutoencoderKL
    from transformers import CLIPTextConfig, CLIPTextModel

    config, width = job.vae, job.unet.context_dim
    with torch.device("meta"):
        vae = AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * 4,
            up_block_types=["UpDecoderBlock2D"] * 4,
            block_out_channels=[config.ch * m for m in config.ch_mult],
            layers_per_block=config.num_res_blocks,
            norm_num_groups=config.norm_groups,
        )
    layers, heads = (12, 12) if width == 768 else (2, 1)  # Stable Diffusion 1, nano
    text = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=width,
            intermediate_size=4 * width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
        )
    )
    vae = random_weights(vae).to(job.device, job.dtype)
    job.fastest(vae)
    return vae, text.to(job.device, job.dtype)


def diffusers_output(
    unet: nn.Module, control: nn.Module, x: Tensor, t: Tensor, context: Tensor, hint: Tensor
) -> Tensor:
    """The predicted noise under control, in float32."""
    common = {"encoder_hidden_states": context, "return_dict": False}
    down, middle = control(x, t, controlnet_cond=hint, **common)
    residuals = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    return unet(x, t, **residuals, **common)[0].float()


def diffusers_training(job: Job, encoding: bool = False) -> Contender:
    """A training step as in diffusers' example script, with autocast on a GPU."""
    unet, control = diffusers_networks(job)
    gpu = machine.is_gpu(job.device)
    optimizer = torch.optim.AdamW(control.parameters(), 1e-5, fused=True)
    vae, text = diffusers_encoders(job) if encoding else (None, None)

    def step(given: dict[str, Tensor], tokens: Tensor) -> None:
        x, context = given["x"], given["context"]
        with torch.autocast("cuda" if gpu else "cpu", torch.bfloat16, gpu):
            if vae:
                with torch.no_grad():
                    x = 0.18215 * vae.encode(given["image"].to(vae.dtype)).latent_dist.sample()
                    context = text(tokens)[0]
            x = 0.7 * x + 0.7 * given["noise"]
            output = diffusers_output(unet, control, x, given["t"], context, given["hint"])
            loss = F.mse_loss(output, given["noise"])
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    def of(n: int) -> Callable[[], object]:
        given = {name: value.to(job.device) for name, value in job.inputs(n).items()}
        return partial(step, given, torch.randint(49406, (n, 77), device=job.device))

    return of


def diffusers_picture(job: Job) -> Contender:
    """Pictures as diffusers' pipeline makes them, with our scheduler."""
    unet, control = diffusers_networks(job)
    vae, _ = diffusers_encoders(job)
    control.to(job.dtype)
    scheduler = DDIM()

    @torch.no_grad()
    def picture(given: dict[str, Tensor], steps: int = 20) -> None:
        x, timesteps = given["noise"], scheduler.timesteps(steps)
        context, hint = (torch.cat([given[k]] * 2).to(job.dtype) for k in ("context", "hint"))
        pairs_of_t = torch.tensor(timesteps, device=x.device)[:, None].expand(-1, len(hint))
        for i, (t, previous) in enumerate(zip(timesteps, [*timesteps[1:], None])):
            x_in = torch.cat([x] * 2).to(job.dtype)
            output = diffusers_output(unet, control, x_in, pairs_of_t[i], context, hint)
            without, with_prompt = output.chunk(2)
            x = scheduler.step(x, without + 9 * (with_prompt - without), t, previous, 0.0)
        for latent in x:
            vae.decode((latent[None] / 0.18215).to(job.dtype))

    def of(n: int) -> Callable[..., object]:
        given = {name: value.to(job.device) for name, value in job.inputs(n).items()}
        return partial(picture, given)

    return of


# ---------------------------------------------------------------------- files, and arithmetic


def random_files(folder: Path, dtype: torch.dtype) -> tuple[str, str]:
    """A base and a ControlNet of Stable Diffusion 1's size with random weights."""
    with torch.device("meta"):
        networks = UNet(), VAE(), CLIPTextEncoder(), ControlNet()
    base, control = (str(folder / f"{name}.safetensors") for name in ("base", "control"))
    unet, vae, text, controlnet = (random_weights(network, dtype) for network in networks)
    save_sd(StableDiffusion(unet, vae, text, "eps"), base)
    save_control(controlnet, control)
    return base, control


def arithmetic(job: Job) -> dict[str, int]:
    """Floating-point operations per pair, counted without computing anything: matrix products,
    convolutions and attention of a training step with cached pairs, of a fine-tuning step, of a
    guided sampling step with control, and of the decoder."""
    with torch.device("meta"):
        unet, vae = UNet(job.unet).requires_grad_(False), VAE(job.vae)
        control = ControlNet(job.unet)
        x, noise, t, context, hint, _ = (x.to("meta") for x in job.inputs(1).values())

    def controlled() -> Tensor:
        return unet(x, t, context, control(x, hint, t, context))

    counted = {"training": flop(lambda: controlled().sum().backward())}
    unet.requires_grad_(True)
    counted["fine-tuning"] = flop(lambda: unet(x, t, context).sum().backward())
    with torch.no_grad():
        return counted | {"guided": 2 * flop(controlled), "decode": flop(lambda: vae.decode(x))}


def flop(call: Callable[[], object]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def matrix_rate(job: Job) -> float:
    """FLOP a second of a large matrix product, in the precision of the work."""
    n = 8192 if machine.is_gpu(job.device) else 2048
    a = torch.randn(n, n, device=job.device, dtype=job.dtype)
    times = sorted(seconds(job, lambda: a @ a) for _ in range(8))
    return 2 * n**3 / times[3]


def seconds(job: Job, call: Callable[[], object]) -> float:
    finish_queue(job)
    began = time.perf_counter()
    call()
    finish_queue(job)
    return time.perf_counter() - began


def finish_queue(job: Job) -> None:
    if machine.is_gpu(job.device):
        torch.cuda.synchronize()

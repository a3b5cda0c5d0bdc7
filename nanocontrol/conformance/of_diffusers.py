"""The adapter for diffusers' classes: `pip install -e ".[bench]"`.

Training has the loss of diffusers' example script, and sampling is its pipeline, with the
scheduler's settings that Stable Diffusion's repositories have.
"""

from typing import Any

import torch
import torch.nn.functional as F
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DDPMScheduler,
    StableDiffusionControlNetPipeline,
    UNet2DConditionModel,
)
from numpy import ndarray as Array
from torch import Tensor

from nanocontrol.conformance.adapter import SamplingRun, TrainingBatch
from nanocontrol.conformance.cases import Config
from nanocontrol.conformance.in_torch import TorchAdapter, to_torch
from nanocontrol.conformance.names import diffusers_names

NOISE: dict[str, Any] = {
    "beta_start": 0.00085,
    "beta_end": 0.0120,
    "beta_schedule": "scaled_linear",
    "clip_sample": False,
}
DDIM: dict[str, Any] = NOISE | {"set_alpha_to_one": False, "steps_offset": 1}


def base_of(config: Config) -> Any:
    """diffusers' base with random weights."""
    levels = range(len(config.channel_mult))
    kinds = ["CrossAttn" if level in config.attention_levels else "" for level in levels]
    return UNet2DConditionModel(
        block_out_channels=tuple(config.model_channels * mult for mult in config.channel_mult),
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        layers_per_block=config.num_res_blocks,
        cross_attention_dim=config.context_dim,
        attention_head_dim=config.num_heads,  # the number of heads, in spite of its name
        norm_num_groups=config.norm_groups,
    )


class OfDiffusers(TorchAdapter):
    names = diffusers_names()
    expected_failures = {
        "hint_encoded_once": "diffusers' ControlNet encodes the hint in every call",
        "guess_mode": "diffusers' weights are logspace(-1, 0, 13), not powers of 0.825",
    }
    unet: Any
    control: Any
    diffusion: Any

    def make(self, config: Config) -> None:
        torch.manual_seed(0)
        self.unet = base_of(config).requires_grad_(False)
        self.control = ControlNetModel.from_unet(
            self.unet, conditioning_embedding_out_channels=config.hint_channels
        )
        self.optimizer = torch.optim.AdamW(self.control.parameters(), 1e-3)
        self.diffusion = DDPMScheduler(**NOISE, prediction_type=config.prediction_type)
        self.ddim: Any = DDIMScheduler(**DDIM, prediction_type=config.prediction_type)
        self.control.controlnet_cond_embedding.register_forward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.hints_encoded = (self.hints_encoded or 0) + 1

    def output(self, x: Tensor, t: Tensor, context: Tensor, added: list[Tensor] | None) -> Tensor:
        control: dict[str, Any] = {}
        if added is not None:
            control["down_block_additional_residuals"] = tuple(added[:-1])
            control["mid_block_additional_residual"] = added[-1]
        return self.unet(x, t, encoder_hidden_states=context, return_dict=False, **control)[0]

    def added(self, x: Tensor, hint: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
        down, middle = self.control(x, t, context, hint, return_dict=False)
        return [*down, middle]

    @torch.no_grad()
    def base(self, x: Array, t: Array, context: Array) -> Array:
        latent, prompts = self.inputs(x, context)
        return self.output(latent, to_torch(t), prompts, None).numpy()

    @torch.no_grad()
    def residuals(self, x: Array, hint: Array, t: Array, context: Array) -> list[Array]:
        latent, picture, prompts = self.inputs(x, hint, context)
        return [r.numpy() for r in self.added(latent, picture, to_torch(t), prompts)]

    @torch.no_grad()
    def predict(self, x: Array, t: Array, context: Array, residuals: list[Array]) -> Array:
        latent, prompts, *added = self.inputs(x, context, *residuals)
        return self.output(latent, to_torch(t), prompts, added).numpy()

    def losses(self, batch: TrainingBatch) -> Tensor:
        arrays = batch.x0, batch.noise, batch.hint, batch.context, batch.empty
        x0, noise, hint, context, empty = self.inputs(*arrays)
        t, dropped = to_torch(batch.t), to_torch(batch.dropped)[:, None, None]
        context = torch.where(dropped, empty, context)
        x, target = self.diffusion.add_noise(x0, noise, t), noise
        if self.diffusion.config.prediction_type == "v_prediction":
            target = self.diffusion.get_velocity(x0, noise, t)
        output = self.output(x, t, context, self.added(x, hint, t, context))
        return F.mse_loss(output, target, reduction="none").mean(dim=(1, 2, 3))

    def sample(self, run: SamplingRun) -> Array:
        self.hints_encoded = 0
        given = self.inputs(run.noise, run.context, run.uncond, run.hint)
        names = "latents", "prompt_embeds", "negative_prompt_embeds", "image"
        # Scale 8 between latent and picture is all that the pipeline takes from the VAE.
        vae = AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            block_out_channels=(4,) * 4,
            norm_num_groups=4,
        )
        networks: list[Any] = [vae, None, None, self.unet, self.control, self.ddim]
        pipeline: Any = StableDiffusionControlNetPipeline(*networks, None, None, None, False)
        pipeline.set_progress_bar_config(disable=True)
        how: dict[str, Any] = {"num_inference_steps": run.steps, "guidance_scale": run.scale}
        how |= {"guess_mode": run.guess, "output_type": "latent"}
        return pipeline(**dict(zip(names, given)), **how).images.numpy()

"""The adapter for diffusers' classes: `pip install -e ".[bench]"`.

Training has the loss of diffusers' example script, and sampling is its pipeline, with the
scheduler's settings that Stable Diffusion's repositories have.
"""

from dataclasses import astuple
from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from numpy import ndarray as Array
from torch import Tensor

from nanocontrol.conformance.adapter import SamplingRun, TrainingBatch
from nanocontrol.conformance.cases import Config
from nanocontrol.conformance.in_torch import Residuals, TorchAdapter
from nanocontrol.conformance.names import diffusers_names

NOISE = dict(beta_start=0.00085, beta_end=0.0120, beta_schedule="scaled_linear", clip_sample=False)


def base_of(config: Config) -> Any:
    """diffusers' base with random weights."""
    levels = range(len(config.channel_mult))
    kinds = ["CrossAttn" if level in config.attention_levels else "" for level in levels]
    return diffusers.UNet2DConditionModel(
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

    def make(self, config: Config) -> None:
        torch.manual_seed(0)
        self.unet = base_of(config).requires_grad_(False)
        self.control = diffusers.ControlNetModel.from_unet(
            self.unet, conditioning_embedding_out_channels=config.hint_channels
        )
        self.optimizer = torch.optim.AdamW(self.control.parameters(), 1e-3)
        prediction = {"eps": "epsilon", "v": "v_prediction"}[config.prediction]
        noise: dict[str, Any] = NOISE | {"prediction_type": prediction}
        self.ddpm: Any = diffusers.DDPMScheduler(**noise)
        self.ddim: Any = diffusers.DDIMScheduler(**noise, set_alpha_to_one=False, steps_offset=1)
        self.control.controlnet_cond_embedding.register_forward_hook(self.count)

    def run_unet(self, x: Tensor, t: Tensor, context: Tensor, residuals: Residuals) -> Tensor:
        down, middle = (residuals[:-1], residuals[-1]) if residuals else (None, None)
        added = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
        return self.unet(x, t, context, return_dict=False, **added)[0]

    def run_control(self, x: Tensor, hint: Tensor, t: Tensor, context: Tensor) -> list[Tensor]:
        down, middle = self.control(x, t, context, hint, return_dict=False)
        return [*down, middle]

    def losses(self, batch: TrainingBatch) -> Tensor:
        x0, noise, t, hint, context, empty, dropped = self.inputs(*astuple(batch))
        context = torch.where(dropped[:, None, None], empty, context)
        x, target = self.ddpm.add_noise(x0, noise, t), noise
        if self.ddpm.config.prediction_type == "v_prediction":
            target = self.ddpm.get_velocity(x0, noise, t)
        output = self.run_unet(x, t, context, self.run_control(x, hint, t, context))
        return F.mse_loss(output, target, reduction="none").mean(dim=(1, 2, 3))

    def sample(self, run: SamplingRun) -> Array:
        self.hints_encoded = 0
        given = self.inputs(run.noise, run.context, run.uncond, run.hint)
        names = "latents", "prompt_embeds", "negative_prompt_embeds", "image"
        vae: Any = diffusers.AutoencoderKL()  # unused between latents
        networks: list[Any] = [vae, None, None, self.unet, self.control, self.ddim]
        pipeline: Any = diffusers.StableDiffusionControlNetPipeline(
            *networks, None, None, None, False
        )
        pipeline.set_progress_bar_config(disable=True)
        how: dict[str, Any] = dict(zip(names, given)) | {"guess_mode": run.guess}
        how |= {"num_inference_steps": run.steps, "guidance_scale": run.scale}
        return pipeline(**how, output_type="latent").images.numpy()

"""The adapter for diffusers' classes: `pip install -e ".[bench]"`.

Training has the loss of diffusers' example script, and sampling is its pipeline, with the
scheduler's settings that Stable Diffusion's repositories have.
"""

from typing import Any

import diffusers
import torch
import torch.nn.functional as F
from numpy import ndarray as Array
from torch import Tensor

from nanocontrol.conformance.adapter import SamplingRun, TrainingBatch
from nanocontrol.conformance.cases import Config, diffusers_names
from nanocontrol.conformance.in_torch import Residuals, TorchAdapter
from nanocontrol.controlnet import ControlNet
from nanocontrol.tools.to_diffusers import config_of

NOISE = dict(beta_start=0.00085, beta_end=0.0120, beta_schedule="scaled_linear", clip_sample=False)


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
        how = config_of(ControlNet(config))
        del how["conditioning_embedding_out_channels"]  # the ControlNet's, and diffusers' default
        encoder = reversed(how["down_block_types"])
        how["up_block_types"] = [kind.replace("Down", "Up") for kind in encoder]
        self.unet = diffusers.UNet2DConditionModel.from_config(how).requires_grad_(False)
        self.control = diffusers.ControlNetModel.from_unet(self.unet)
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
        x0, noise, t, hint, context, empty, dropped = self.inputs(*vars(batch).values())
        context = torch.where(dropped[:, None, None], empty, context)
        x, target = self.ddpm.add_noise(x0, noise, t), noise
        if self.ddpm.config.prediction_type == "v_prediction":
            target = self.ddpm.get_velocity(x0, noise, t)
        output = self.run_unet(x, t, context, self.run_control(x, hint, t, context))
        return F.mse_loss(output, target, reduction="none").mean(dim=(1, 2, 3))

    def sample(self, run: SamplingRun) -> Array:
        self.hints_encoded = 0
        *arrays, steps, scale, guess = vars(run).values()
        names = "latents", "prompt_embeds", "negative_prompt_embeds", "image"
        how = {"num_inference_steps": steps, "guidance_scale": scale, "guess_mode": guess}
        how |= dict(zip(names, self.inputs(*arrays)))
        unused: Any = diffusers.AutoencoderKL()
        parts = [unused, None, None, self.unet, self.control, self.ddim, None, None, None, False]
        pipeline: Any = diffusers.StableDiffusionControlNetPipeline(*parts)
        pipeline.set_progress_bar_config(disable=True)
        return pipeline(**how, output_type="latent").images.numpy()

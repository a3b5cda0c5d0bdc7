from dataclasses import astuple

import torch

from nanocontrol.conformance.ours import Ours
from nanocontrol.controlnet import ControlNet
from nanocontrol.schedulers import DDIM, DDPM
from nanocontrol.training.optimizer import Optimizer
from nanocontrol.unet import UNet

# Broken1 to Broken13 of the student "Ada"; the tests write a student's order into this line.
ORDER = []


def make(self, config):
    torch.manual_seed(0)
    self.unet = UNet(config).requires_grad_(False).to(getattr(torch, self.dtype))
    self.control = ControlNet.from_unet(self.unet)
    self.prediction = config.prediction
    self.trained = Optimizer({"control": self.control}, 1e-3, "cpu")
    self.control.input_hint_block.register_forward_hook(self.count)


@torch.no_grad()
def residuals(self, x, hint, t, context):
    return [r.cpu().numpy() for r in self.run_control(*self.inputs(x, hint, t, context))]


def run_control(self, x, hint, t, context):
    net, emb = self.control, self.control.embed_time(t)
    outputs = [net.input_blocks[0](x, emb, context) + net.encode_hint(hint, x)]
    for block in [*net.input_blocks[1:], net.middle_block]:
        outputs.append(block(outputs[-1], emb, context))
    return [zero(h) for zero, h in zip([*net.zero_convs, net.middle_block_out], outputs)]


@torch.no_grad()
def predict(self, x, t, context, residuals):
    latent, time, prompts, *added = self.inputs(x, t, context, *residuals)
    return self.run_unet(latent, time, prompts, added).cpu().numpy()


class Scheduler(DDIM):
    def step(self, x, output, t, previous, noise):
        x0, eps = self.split(x, output, t)
        after = self.alphas_cumprod[previous or 0].item()
        return after**0.5 * x0 + (1 - after) ** 0.5 * eps


def losses(self, batch):
    x0, noise, t, hint, context, empty, dropped = self.inputs(*astuple(batch))
    x = DDPM().add_noise(x0, noise, t)
    prompts = torch.where(dropped[:, None, None], empty, context)
    residuals = self.control(x, hint, t, prompts)
    return (self.unet(x, t, prompts, residuals) - noise).square().mean((1, 2, 3))


MENDED = {
    "no_zero_initialisation": {"make": make},
    "unused_zero_convolutions": {"run_control": run_control},
    "exchanged_residuals": {"predict": predict},
    "no_middle_residual": {"predict": predict},
    "hint_in_bgr": {"residuals": residuals},
    "hint_from_minus_one": {"residuals": residuals},
    "shared_encoder": {"make": make},
    "unlocked_base": {"make": make},
    "hint_after_second_block": {"run_control": run_control},
    "residuals_added_twice": {"predict": predict},
    "inverted_hint": {"residuals": residuals},
    "last_alpha_one": {"scheduler": Scheduler},
    "dropped_for_control_alone": {"losses": losses},
}

NAMES = {f"Broken{k}": name for k, name in enumerate(ORDER, 1)}
for broken, name in zip(NAMES, ORDER):
    globals()[broken] = type(broken, (Ours,), MENDED[name] | {"__module__": __name__})

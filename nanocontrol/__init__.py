"""ControlNet on Stable Diffusion, from scratch in PyTorch. Read unet.py, then controlnet.py."""

from .checkpoint import StableDiffusion, load_control, load_sd, save_control, save_sd
from .controlnet import ControlBlock, ControlNet
from .files import InputError
from .sampling import sample
from .schedulers import DDIM, DDPM
from .unet import UNet, UNetConfig
from .vae import VAE, VAEConfig

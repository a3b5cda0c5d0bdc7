"""ControlNet on Stable Diffusion, from scratch in PyTorch. Read unet.py, then controlnet.py."""

from nanocontrol.checkpoint import load_control, load_sd, save_control, save_sd
from nanocontrol.controlnet import ControlBlock, ControlNet
from nanocontrol.plumbing.errors import InputError
from nanocontrol.sampling import sample
from nanocontrol.schedulers import DDIM, DDPM
from nanocontrol.stable_diffusion import StableDiffusion
from nanocontrol.unet import UNet, UNetConfig
from nanocontrol.vae import VAE, VAEConfig

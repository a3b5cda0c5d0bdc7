"""tools/noisiest.py: training at the noisiest t only."""

import torch

import train
from nanocontrol.schedulers import DDPM
from nanocontrol.tools.noisiest import noisiest_loss
from nanocontrol.training.batches import Batch, random_draws


def test_t_is_spread_evenly_over_the_noisiest_fifth():
    sd, control, _ = train.models(train.resolve({}))
    draws = random_draws(0, 0, 3, (64, 64), 0.5)
    mean, hint = torch.zeros(3, 4, 8, 8), torch.rand(3, 3, 64, 64)
    empty = sd.encode_prompts("")
    batch = Batch(mean, torch.ones_like(mean), empty.expand(3, -1, -1), hint)

    def losses(loss, *t):
        given = draws._replace(t=torch.tensor(t))
        with torch.no_grad():
            return loss(sd.unet, control, DDPM("eps"), 1.0, batch, given, empty)

    moved, ordinary = losses(noisiest_loss, 0, 500, 999), losses(train.training_loss, 800, 900, 999)
    torch.testing.assert_close(moved, ordinary, rtol=0, atol=0)

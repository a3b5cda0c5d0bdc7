import torch


def decode(blocks, skips, middle, residuals):
    *for_skips, for_middle = residuals
    h = middle + for_middle
    controlled = [skip + residual for skip, residual in zip(skips, for_skips)]
    for block, skip in zip(blocks, reversed(controlled)):
        h = block(torch.cat([h, skip], dim=1))
    return h

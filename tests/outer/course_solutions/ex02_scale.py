def latent_scale(encode, pictures):
    mean, deviation = encode(pictures)
    variance = mean.var() + deviation.square().mean()
    return 1 / variance.sqrt().item()

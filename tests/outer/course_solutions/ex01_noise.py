def add_noise(x0, noise, t, abar):
    share = abar[t].view(-1, 1, 1, 1)
    return share.sqrt() * x0 + (1 - share).sqrt() * noise


def level_of_step(i, steps):
    from_below = steps - 1 - i
    return 1000 * from_below // steps + 1

def ddim_step(x, noise, t, following, abar):
    now, then = abar[t], abar[0 if following is None else following]
    x0 = (x - (1 - now).sqrt() * noise) / now.sqrt()
    return then.sqrt() * x0 + (1 - then).sqrt() * noise

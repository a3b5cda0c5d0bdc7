def residual_weights(strength, heights, mode):
    n = len(heights)
    if mode == "guess":
        return [strength * 0.825 ** (n - 1 - i) for i in range(n)]
    if mode == "resolution":
        return [strength * heights[0] / height for height in heights]
    return [strength] * n


def controlled_rows(pictures, mode):
    return [mode == "plain"] * pictures + [True] * pictures

PROMPT_HAS_NO_EFFECT = 0
NEGATIVE_PROMPT_HAS_NO_EFFECT = 1


def guided(output, scale):
    without, prompted = output.chunk(2)
    return without + scale * (prompted - without)

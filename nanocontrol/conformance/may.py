"""Checks of what a ControlNet may do. It makes work with it easier."""

import numpy as np

from nanocontrol.conformance.bench import Bench, Found, NotRun, checks_of


def exact_resume(bench: Bench) -> Found:
    """Two steps, and two steps with a new start between them, give equal bits."""
    adapter, batch = bench.fresh(), bench.batch()
    bench.optional("resume")
    adapter.train_step(batch)
    saved = bench.optional("saved")()
    adapter.train_step(batch)
    trained = {name: np.array(array) for name, array in adapter.parameters()[1].items()}
    bench.fresh().resume(saved)
    adapter.train_step(batch)
    resumed = adapter.parameters()[1]
    differ = [name for name in trained if not np.array_equal(trained[name], resumed[name])]
    return len(differ), 0, f"a resumed training is another one: {len(differ)} tensors differ"


def same_noise_on_every_device(bench: Bench) -> Found:
    """A seed makes the same picture on every device if it starts from the same noise."""
    devices, noise = bench.optional("devices"), bench.optional("initial_noise")
    if len(devices) < 2:
        one = f"there is one device here: {devices[0]}" if devices else "the adapter has no devices"
        raise NotRun(one)
    made = [noise(3, device) for device in devices]
    differ = sum(not np.array_equal(made[0], other) for other in made[1:])
    return differ, 0, "a seed's noise depends on the device"


CHECKS = checks_of("may", __name__)

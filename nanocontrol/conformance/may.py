"""Checks of what a ControlNet may do. It makes work with it easier."""

import numpy as np

from nanocontrol.conformance.bench import Bench, Found, copies, different


def exact_resume(bench: Bench) -> Found:
    """Two steps, and two steps with a new start between them, give equal bits."""
    adapter, batch = bench.fresh().adapter, bench.batch()
    adapter.train_step(batch)
    saved = adapter.saved()
    adapter.train_step(batch)
    trained = copies(adapter.parameters()[1])
    bench.fresh().adapter.resume(saved)
    adapter.train_step(batch)
    differ = different(trained, adapter.parameters()[1])
    return len(differ), 0, f"a resumed training is another one: {len(differ)} tensors differ"


def same_noise_on_every_device(bench: Bench) -> Found:
    """A seed makes the same picture on every device if it starts from the same noise."""
    devices = [*bench.adapter.devices]
    if len(devices) < 2:
        raise NotImplementedError(f"second device: it has {', '.join(devices) or 'none'}")
    first, *others = [bench.adapter.initial_noise(3, device) for device in devices]
    differ = sum(not np.array_equal(first, other) for other in others)
    return differ, 0, "a seed's noise depends on the device"

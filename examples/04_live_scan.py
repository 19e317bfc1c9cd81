"""A scan that is decomposed while it runs, drawn, and stored."""

import tempfile
from pathlib import Path

import bluesky.plans as bp
import numpy as np
from bluesky import RunEngine
from ophyd import Component, Device, Signal
from ophyd.sim import SynAxis

from bluesky_cmf import LiveNMF, LiveNMFPlot, Phase, open_catalog

q = np.linspace(1.0, 8.0, 1000)


def pattern(temperature: float) -> np.ndarray:
    """One phase goes, another comes, and a third one is there for a while."""
    share = (temperature - 300) / 100
    weights = (1 - share, share, 0.5 * np.exp(-(((share - 0.5) / 0.15) ** 2)))
    centers = ((2.0, 4.1), (2.3, 5.2), (3.1, 6.4))
    return sum(
        weight * np.exp(-(((q - center) / 0.05) ** 2))
        for weight, pair in zip(weights, centers, strict=True)
        for center in pair
    )


stage = SynAxis(name="temperature")


class Detector(Device):
    """Gives the pattern of the sample at the temperature of the stage."""

    chi_I = Component(Signal, kind="normal")
    chi_Q = Component(Signal, value=q, kind="config")

    def trigger(self):
        self.chi_I.put(pattern(stage.readback.get()))
        return super().trigger()


known = [Phase.from_array(f"{t} K", q, pattern(t)) for t in (300, 400)]
live = LiveNMF("chi_I", x="chi_Q", n_components=3, phases=known)

folder = Path(tempfile.mkdtemp())
with open_catalog(folder / "catalog") as catalog:
    plot = LiveNMFPlot(save=folder / "live.png")
    writer = catalog.writer()
    live.subscribe(plot)
    live.subscribe(writer)

    RE = RunEngine()
    RE.subscribe(live)
    RE.subscribe(writer)
    RE(bp.scan([Detector(name="det")], stage, 300, 400, 41))

    live.wait()
    writer.flush()
    result = live.result
    print(f"{result.n_patterns} patterns, R-factor up to {result.r_factor.max():.1e}")
    for name, weights in zip(result.names, result.weights.T, strict=True):
        print(f"{name:>10}: largest at {300 + 2.5 * weights.argmax():.0f} K")
    print("figure:", plot.path)
    live.close()

"""The live decomposition, its figure, and where it is stored."""

from bluesky_cmf import LiveNMF, LiveNMFPlot, Phase

live = LiveNMF(
    "det_intensity",
    x="det_two_theta",
    n_components=4,
    phases=[Phase.from_array(*reference) for reference in ramp.references],
)
plot = LiveNMFPlot()
live.subscribe(plot)
live.subscribe(writer)
RE.subscribe(live)

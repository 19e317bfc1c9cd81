"""A stored run, replayed through another model than the one that ran live."""

import tempfile

import numpy as np
from event_model import compose_run

from bluesky_cmf import LiveNMF, open_catalog, replay

x = np.linspace(0.0, 10.0, 400)
one, two = (np.exp(-(((x - center) / 0.3) ** 2)) for center in (3.0, 7.0))

with open_catalog(tempfile.mkdtemp()) as catalog:
    # A run as a beamline stores it: patterns in the events, the axis in the configuration.
    run = compose_run(metadata={"hints": {"dimensions": [[["angle"], "primary"]]}})
    array = {"source": "detector", "dtype": "array", "dtype_numpy": "<f8", "shape": [400]}
    angle = {"source": "motor", "dtype": "number", "shape": [], "units": "deg"}
    stream = run.compose_descriptor(
        name="primary",
        data_keys={"intensity": array, "angle": angle},
        configuration={
            "det": {"data": {"x": x}, "data_keys": {"x": array}, "timestamps": {"x": 0.0}}
        },
    )
    writer = catalog.writer()
    writer("start", run.start_doc)
    writer("descriptor", stream.descriptor_doc)
    for step in range(30):
        data = {"intensity": (30 - step) * one + step * two, "angle": float(step)}
        writer("event", stream.compose_event(data, dict.fromkeys(data, 0.0)))
    writer("stop", run.compose_stop())
    writer.flush()

    live = LiveNMF("intensity", x="x", n_components=2, background=False)
    live.subscribe(writer)
    replay(catalog, run.start_doc["uid"], live)
    writer.flush()
    print(f"{live.result.n_patterns} patterns, objective {live.result.objective:.2g}")
    print("weights of the first and the last:", live.result.weights[[0, -1]].round(1).tolist())

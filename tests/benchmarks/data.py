"""What the benchmarks run on."""

import os
from pathlib import Path

import numpy as np

from bluesky_cmf.simulation import HeatingRamp

DATA = Path(
    os.environ.get("BLUESKY_CMF_DATA", Path(__file__).resolve().parents[3] / "shared" / "data")
)


def ramp() -> tuple[str, np.ndarray]:
    """The BaTiO3 ramp where it is there, else a simulated one: its name and patterns (N, F)."""
    path = DATA / "batio3" / "ramp.npz"
    if path.exists():
        with np.load(path) as arrays:
            return "BaTiO3", arrays["intensity"]
    simulated = HeatingRamp()
    patterns = np.stack([simulated.pattern(t) for t in simulated.positions])
    return "simulated ramp", (patterns / patterns.max()).astype("f4")

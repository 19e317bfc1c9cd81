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


def synthetic(
    n_patterns: int, counts: float, *, n_features: int = 3488, n_phases: int = 6, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Patterns (N, F) of phases (K, F) that follow each other, with counting noise.

    ``counts`` is what a phase's strongest point counts at weight 1. The last phase is absent from
    the first 60 % of the patterns.
    """
    rng = np.random.default_rng(seed)
    x = np.arange(n_features)
    centres = rng.uniform(0, n_features, (n_phases, 25, 1))
    widths = rng.uniform(4, 12, (n_phases, 25, 1))
    heights = rng.uniform(0.1, 1.0, (n_phases, 25, 1))
    phases = (heights * np.exp(-0.5 * ((x - centres) / widths) ** 2)).sum(1)
    phases = phases / phases.max(1, keepdims=True) + 0.02
    t = np.linspace(0, 1, n_patterns)[:, None]
    weights = 0.02 + np.exp(-0.5 * ((t - np.linspace(0, 0.9, n_phases)) / 0.18) ** 2)
    weights[:, -1] = np.where(t[:, 0] < 0.6, 0.0, np.minimum(1.0, 4 * (t[:, 0] - 0.6)))
    weights *= rng.normal(1.0, 0.1, weights.shape).clip(0.5)
    X = np.empty((n_patterns, n_features), dtype="f4")
    for first in range(0, n_patterns, 1000):
        part = slice(first, first + 1000)
        X[part] = rng.poisson(counts * (weights[part] @ phases)) / counts
    return X, phases


def resident_bytes() -> int:
    """Memory of this process that is in use now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

"""BaTiO3 on heating: the end members of the ramp held fixed, two components found between them.

Give the data as the first argument: an .npz with the arrays temperature, two_theta, intensity.
"""

import sys
from pathlib import Path

import numpy as np

from bluesky_cmf import StreamingNMF

path = Path(sys.argv[1] if len(sys.argv) > 1 else "ramp.npz")
if not path.exists():
    sys.exit(f"{path} is not here: give the path of the ramp as the first argument")
with np.load(path) as ramp:
    temperature, intensity = ramp["temperature"], ramp["intensity"]

model = StreamingNMF(
    intensity.shape[1],
    4,
    names=[f"{temperature[0]} K", f"{temperature[-1]} K"],
    components=[intensity[0], intensity[-1]],
    fixed=[True, True],
)
for pattern in intensity:
    model.append(pattern)
    model.refit()
result = model.refit(converge=True)

print(f"objective {result.objective:.5f}, R-factor up to {result.r_factor.max():.3f}")
dominant = result.weights.argmax(1)
for change in np.flatnonzero(np.diff(dominant)) + 1:
    before, after = result.names[dominant[change - 1]], result.names[dominant[change]]
    print(f"{temperature[change]} K: {before} gives way to {after}")

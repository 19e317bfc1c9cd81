"""A simulated sample in a furnace, and the detector that looks at it.

At a beamline, the real devices take the place of these two.
"""

from bluesky_cmf.simulation import HeatingRamp, simulated_beamline

ramp = HeatingRamp()
beamline = simulated_beamline(ramp, exposure=0.1)
det, temperature = beamline.det, beamline.stage

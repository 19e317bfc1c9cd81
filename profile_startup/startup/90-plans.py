"""Plans; to run one: ``RE(heating_ramp())``."""

from bluesky_cmf.simulation import heat


def heating_ramp(first=300.0, last=595.0, number=60):
    """Heat the sample from `first` to `last` kelvin, one pattern at each of `number` steps."""
    step = (last - first) / max(number - 1, 1)
    positions = [first + i * step for i in range(number)]
    return (yield from heat([det], temperature, positions, md={"sample_name": "perovskite"}))

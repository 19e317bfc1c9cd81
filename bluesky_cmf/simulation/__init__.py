"""A simulated heating ramp and detector, for the demo, the tests and ``profile_startup``."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from ..errors import InputError, MissingExtraError
from .ramps import HeatingRamp, Ramp, Reference
from .stored import StoredRamp

if TYPE_CHECKING:
    from .devices import PatternDetector, RampStage

__all__ = [
    "HeatingRamp",
    "Ramp",
    "Reference",
    "SimulatedBeamline",
    "StoredRamp",
    "heat",
    "simulated_beamline",
]


class SimulatedBeamline(NamedTuple):
    """The two devices, and the data keys of what they read."""

    #: The detector; each trigger gives one pattern.
    det: "PatternDetector"
    #: The stage that sets the ramp's variable.
    stage: "RampStage"
    #: Data key of the pattern.
    pattern: str
    #: Data key of the axis.
    x: str


def simulated_beamline(
    ramp: Ramp,
    *,
    detector: str = "det",
    exposure: float = 0.1,
    travel: float = 0.02,
    settle: float = 0.0,
) -> SimulatedBeamline:
    """Make ophyd devices that play a ramp.

    Parameters
    ----------
    ramp : Ramp
        A `HeatingRamp` or a `StoredRamp`. Its variable names the stage.
    detector : str, default "det"
        Name of the detector.
    exposure, travel, settle : float
        Seconds of an exposure, of a move, and of settling after a move.

    Returns
    -------
    SimulatedBeamline
        The devices and their data keys.

    Raises
    ------
    InputError
        Where a time is negative.
    MissingExtraError
        Where ophyd is not installed.
    """
    times: Mapping[str, float] = {"exposure": exposure, "travel": travel, "settle": settle}
    for name, seconds in times.items():
        if not 0.0 <= seconds < float("inf"):
            raise InputError(f"{name} must be a time in seconds, 0 or more, got {seconds}")
    try:
        from .devices import PatternDetector, RampStage
    except ImportError as reason:
        raise MissingExtraError(
            f"the simulated devices need ophyd ({reason}): pip install 'bluesky-cmf[sim]'"
        ) from reason
    stage = RampStage(ramp, name=ramp.variable, travel=travel, settle=settle)
    det = PatternDetector(ramp, stage, name=detector, exposure=exposure)
    return SimulatedBeamline(det, stage, det.intensity.name, det.axis.name)


def heat(
    detectors: Sequence[Any],
    stage: Any,
    positions: Iterable[float],
    *,
    md: Mapping[str, Any] | None = None,
) -> Any:
    """Take one pattern at each position of a ramp: a bluesky plan.

    Parameters
    ----------
    detectors : sequence of devices
        What is read at each position.
    stage : device
        What is set.
    positions : iterable of float
        Where to, in the stage's unit.
    md : mapping, optional
        Metadata of the run.

    Returns
    -------
    generator
        Messages for the RunEngine.
    """
    from bluesky.plans import list_scan

    steps = [float(position) for position in positions]
    return list_scan(list(detectors), stage, steps, md=dict(md or {}))

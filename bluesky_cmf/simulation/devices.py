"""An ophyd temperature stage and pattern detector that play a ramp."""

import threading
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from ophyd import Component, Device, DeviceStatus, Signal
from ophyd.sim import SynAxis
from ophyd.status import MoveStatus

from .ramps import Array, Ramp, units

__all__ = ["PatternDetector", "RampStage"]


class ValueSignal(Signal):  # type: ignore[misc]
    """A signal that only the simulation writes, and that describes its value in full."""

    def __init__(
        self, *, units: str = "", dims: Sequence[str] = (), value: Any = 0.0, **kwargs: Any
    ) -> None:
        super().__init__(value=value, metadata={"write_access": False}, **kwargs)
        self.units = units
        self.dims = list(dims)

    def publish(self, value: Any) -> None:
        """Set the value, as the hardware does."""
        self.put(value, force=True)

    def describe(self) -> dict[str, dict[str, Any]]:
        """Describe the value: shape, number type, units and dimensions."""
        value = np.asarray(self.get())
        number = {
            "dtype": "array" if value.ndim else "number",
            "dtype_numpy": value.dtype.str,
            "shape": list(value.shape),
            "units": self.units,
            "dims": self.dims,
        }
        return {self.name: super().describe()[self.name] | number}


class RampStage(SynAxis):  # type: ignore[misc]
    """A stage that sets the independent variable of a ramp.

    Parameters
    ----------
    ramp : Ramp
        Gives the first position and the unit.
    name : str
        Name of the device and of its readback.
    travel : float, default 0.02
        Seconds that a move takes.
    settle : float, default 0
        Seconds to wait after a move before it counts as done.
    """

    def __init__(
        self, ramp: Ramp, *, name: str, travel: float = 0.02, settle: float = 0.0, **kwargs: Any
    ) -> None:
        self.settle_time = settle
        unit = units(ramp.variable)
        first = float(ramp.positions[0])
        super().__init__(name=name, value=first, delay=travel, egu=unit, **kwargs)

    def set(self, value: float) -> MoveStatus:
        """Move to ``value``; the status is done on arrival, after the settling time."""
        return super().set(float(value))

    def describe(self) -> dict[str, dict[str, Any]]:
        """Describe readback and setpoint, with their unit."""
        number = {"dtype": "number", "dtype_numpy": "<f8", "units": self.egu}
        return {key: described | number for key, described in super().describe().items()}

    def _make_status(self, target: float) -> MoveStatus:
        return MoveStatus(self, target, settle_time=self.settle_time)


class PatternDetector(Device):  # type: ignore[misc]
    """A detector with reduction: each trigger gives one pattern, as the stage stands.

    ``<name>_intensity`` (F,) and ``<name>_total`` are read with every event; the axis,
    ``<name>_two_theta`` or what the ramp calls it, and the exposure time are configuration.

    Parameters
    ----------
    ramp : Ramp
        Gives the patterns.
    stage : RampStage
        Where the sample is; its readback goes to ``ramp.pattern``.
    name : str
        Name of the device, the prefix of its data keys.
    exposure : float, default 0.1
        Seconds that an exposure takes.
    """

    intensity = Component(ValueSignal, kind="normal", units="counts")
    total = Component(ValueSignal, kind="hinted", units="counts")
    axis = Component(ValueSignal, kind="config")
    exposure_time = Component(ValueSignal, kind="config", units="s")

    def __init__(
        self, ramp: Ramp, stage: RampStage, *, name: str, exposure: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(name=name, **kwargs)
        self._ramp, self._stage, self._shot = ramp, stage, 0
        self.axis.name = f"{name}_{ramp.axis}"
        self.axis.units = units(ramp.axis)
        self.axis.dims = self.intensity.dims = [ramp.axis]
        self.axis.publish(ramp.x)
        # A run describes its data before the first exposure, so the shape must be true by then.
        self._publish(ramp.pattern(float(ramp.positions[0])))
        self.exposure_time.publish(float(exposure))

    def stage(self) -> list[Any]:
        """Get ready for a run, whose exposures are counted from 0."""
        self._shot = 0
        staged: list[Any] = super().stage()
        return staged

    def trigger(self) -> DeviceStatus:
        """Begin an exposure; the status is done when the pattern can be read."""
        status = DeviceStatus(self)
        threading.Thread(target=self._expose, args=(status,), daemon=True).start()
        return status

    def _expose(self, status: DeviceStatus) -> None:
        try:
            time.sleep(self.exposure_time.get())
            self._publish(self._ramp.pattern(self._stage.position, shot=self._shot))
        except Exception as reason:
            status.set_exception(reason)
        else:
            self._shot += 1
            status.set_finished()

    def _publish(self, pattern: Array) -> None:
        self.intensity.publish(pattern)
        self.total.publish(float(pattern.sum()))

"""Runs of detectors that keep their data in files: ophyd-async's, and the older kind.

Each ``documents_of_...`` runs a real RunEngine and gives what it emitted, in order. ``motor`` is a
function that makes one: ophyd-async's devices are made where a RunEngine's loop runs.
"""

import asyncio
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import bluesky.preprocessors as bpp
import h5py
import numpy as np
from bluesky import RunEngine
from event_model import compose_resource
from ophyd import Component as Cpt
from ophyd import Device, DeviceStatus, Signal
from ophyd_async.core import (
    Array1D,
    DetectorAcquireLogic,
    DetectorDataLogic,
    DetectorTriggerLogic,
    FlyMotorInfo,
    StandardDetector,
    StaticFilenameProvider,
    StaticPathProvider,
    StreamResourceDataProvider,
    StreamResourceInfo,
    TriggerInfo,
    init_devices,
    soft_signal_r_and_setter,
)
from ophyd_async.sim import PatternGenerator, SimBlobDetector, SimMotor

Documents = list[tuple[str, dict[str, Any]]]

#: Where the detectors of this module keep their data within the file.
DATASET = "/entry/data/data"


def documents_of(plan: Callable[[], Any]) -> Documents:
    """Run a plan (made in the RunEngine's loop) and give its documents."""
    RE = RunEngine({}, call_returns_result=False)
    found: Documents = []
    # Not a bound method of a list: the RunEngine would hold it weakly.
    RE.subscribe(lambda name, doc: found.append((name, doc)))
    RE(plan())
    return found


def path_provider(folder: Path, name: str = "frames") -> StaticPathProvider:
    return StaticPathProvider(StaticFilenameProvider(name), folder)


def blob_detector(folder: Path, name: str = "det", *, pause: float = 0.0) -> SimBlobDetector:
    """ophyd-async's simulated detector: frames (240, 320) and their sum, in HDF5.

    A frame takes ``pause`` seconds.
    """

    async def sleep(seconds: float) -> None:
        if pause:
            await asyncio.sleep(pause)

    with init_devices():
        det = SimBlobDetector(path_provider(folder), PatternGenerator(sleep=sleep), name=name)
    return det


def sim_motor(name: str = "motor") -> SimMotor:
    """An ophyd-async motor that moves at once."""
    with init_devices():
        motor = SimMotor(name=name, instant=True)
    return motor


class _Arrays:
    """Writes given arrays into HDF5, one more with each exposure."""

    def __init__(self, arrays: np.ndarray) -> None:
        self.arrays = arrays
        self.taken = 0
        self.wanted = 1
        self.file: h5py.File | None = None
        self.written, self.set_written = soft_signal_r_and_setter(int)

    def open(self, path: Path) -> None:
        self.file = h5py.File(path, "w", libver="latest")
        shape = self.arrays.shape[1:]
        self.file.create_dataset(
            DATASET, (0, *shape), self.arrays.dtype, maxshape=(None, *shape), chunks=(1, *shape)
        )
        self.file.swmr_mode = True
        self.set_written(0)

    def expose(self) -> None:
        data = self.file[DATASET]
        for _ in range(self.wanted):
            data.resize(len(data) + 1, axis=0)
            data[-1] = self.arrays[self.taken % len(self.arrays)]
            self.taken += 1
        data.flush()
        self.set_written(len(data))

    def close(self) -> None:
        if self.file is not None:
            self.file.close()
            self.file = None


class _Trigger(DetectorTriggerLogic):
    def __init__(self, arrays: _Arrays) -> None:
        self.arrays = arrays

    async def prepare_internal(self, num: int, livetime: float, deadtime: float) -> None:
        self.arrays.wanted = num


class _Acquire(DetectorAcquireLogic):
    def __init__(self, arrays: _Arrays) -> None:
        self.arrays = arrays

    async def start_acquiring(self) -> None:
        self.arrays.expose()

    async def wait_for_idle(self) -> None: ...

    async def ensure_stopped(self) -> None: ...


class _Data(DetectorDataLogic):
    def __init__(self, paths: StaticPathProvider, arrays: _Arrays) -> None:
        self.paths, self.arrays = paths, arrays

    async def prepare_unbounded(self, datakey_name: str) -> StreamResourceDataProvider:
        info = self.paths(datakey_name)
        name = f"{info.filename}.h5"
        self.arrays.open(Path(info.directory_path) / name)
        shape = self.arrays.arrays.shape[1:]
        resource = StreamResourceInfo(
            data_key=datakey_name,
            shape=shape,
            chunk_shape=(1, *shape),
            dtype_numpy=self.arrays.arrays.dtype.str,
            parameters={"dataset": DATASET},
        )
        return StreamResourceDataProvider(
            uri=f"{info.directory_uri}{name}",
            resources=[resource],
            mimetype="application/x-hdf5",
            collections_written_signal=self.arrays.written,
        )

    async def stop(self) -> None:
        self.arrays.close()

    def get_hinted_fields(self, datakey_name: str) -> list[str]:
        return [datakey_name]


class ArrayDetector(StandardDetector):
    """An ophyd-async detector that takes the given arrays, patterns (F,) or frames, in turn.

    Where there is an axis ``x``, it is its configuration, under the key ``<name>-chi_Q``.
    """

    def __init__(
        self, arrays: np.ndarray, folder: Path, name: str = "det", *, x: np.ndarray | None = None
    ) -> None:
        source = _Arrays(np.asarray(arrays))
        self.add_detector_logics(
            _Trigger(source), _Acquire(source), _Data(path_provider(folder, name), source)
        )
        if x is not None:
            self.chi_Q, _ = soft_signal_r_and_setter(Array1D[np.float64], x, units="1/angstrom")
            self.add_config_signals(self.chi_Q)
        super().__init__(name=name)


def array_detector(
    arrays: np.ndarray, folder: Path, name: str = "det", *, x: np.ndarray | None = None
) -> ArrayDetector:
    with init_devices():
        det = ArrayDetector(arrays, folder, name, x=x)
    return det


def fly(
    detector: Any,
    number: int,
    *,
    motor: SimMotor | None = None,
    collections_per_event: int = 1,
    stream: str = "primary",
    kickoffs: int = 1,
    period: float = 0.01,
    metadata: dict[str, Any] | None = None,
) -> Iterator[Any]:
    """A plan as ophyd-async documents it: declare the stream, kick off, collect while it runs.

    ``kickoffs`` times ``number`` events, each of ``collections_per_event`` exposures, while the
    motor, if there is one, goes from 0 to 1.
    """
    info = TriggerInfo(number_of_events=number, collections_per_event=collections_per_event)
    move = FlyMotorInfo(start_position=0.0, end_position=1.0, time_for_move=0.05)
    flyers = [detector] if motor is None else [detector, motor]

    @bpp.stage_decorator(flyers)
    @bpp.run_decorator(md={"plan_name": "fly", **(metadata or {})})
    def inner() -> Iterator[Any]:
        for kickoff in range(kickoffs):
            yield from bps.prepare(detector, info, wait=True)
            if motor is not None:
                yield from bps.prepare(motor, move, wait=True)
            if kickoff == 0:
                yield from bps.declare_stream(detector, name=stream, collect=True)
            yield from bps.kickoff_all(*flyers, wait=True)
            yield from bps.collect_while_completing(
                flyers=flyers, dets=[detector], flush_period=period, stream_name=stream
            )

    return inner()


def prepared(collections_per_event: int) -> Callable[[Any], Iterator[Any]]:
    """A ``per_shot`` of ``count`` that takes so many exposures for each event."""
    info = TriggerInfo(collections_per_event=collections_per_event)

    def shot(detectors: Any) -> Iterator[Any]:
        for detector in detectors:
            yield from bps.prepare(detector, info, wait=True)
        yield from bps.one_shot(detectors)

    return shot


def documents_of_count(folder: Path, number: int = 3, **options: Any) -> Documents:
    return documents_of(lambda: bp.count([blob_detector(folder)], number, **options))


def documents_of_scan(
    folder: Path, number: int = 3, *, motor: Callable[[], Any] = sim_motor
) -> Documents:
    return documents_of(lambda: bp.scan([blob_detector(folder)], motor(), 0, 1, number))


def documents_of_fly(
    folder: Path, number: int = 4, *, pause: float = 0.0, **options: Any
) -> Documents:
    return documents_of(lambda: fly(blob_detector(folder, pause=pause), number, **options))


def documents_of_arrays(
    arrays: np.ndarray,
    folder: Path,
    *,
    x: np.ndarray | None = None,
    motor: Callable[[], Any] | None = None,
    flying: bool = False,
    collections_per_event: int = 1,
    **options: Any,
) -> Documents:
    """Take the arrays with an ophyd-async detector, ``collections_per_event`` for each event.

    By ``count``; by ``scan`` where there is a motor (one array an event); or on the fly.
    """
    number = len(arrays) // collections_per_event

    def plan() -> Any:
        det = array_detector(arrays, folder, x=x)
        moved = None if motor is None else motor()
        if flying:
            return fly(
                det, number, motor=moved, collections_per_event=collections_per_event, **options
            )
        if moved is not None:
            return bp.scan([det], moved, 0, 1, number, **options)
        return bp.count([det], number, per_shot=prepared(collections_per_event), **options)

    return documents_of(plan)


class ResourceDetector(Device):
    """A detector of the older kind: events hold datum ids, Resource and Datum tell the rest.

    Its data key is ``<name>_image``; the file is as area detectors write it (spec ``AD_HDF5``),
    with ``frames_per_point`` arrays for each event, that many of the given ones in turn.
    """

    exposure = Cpt(Signal, value=0.1, kind="config")

    def __init__(
        self,
        arrays: np.ndarray,
        folder: Path,
        *,
        name: str = "det",
        spec: str = "AD_HDF5",
        frames_per_point: int = 1,
    ) -> None:
        super().__init__("", name=name)
        self._arrays, self._folder = np.asarray(arrays), Path(folder)
        self._spec, self._per_point = spec, frames_per_point
        self._assets: Documents = []
        self._resource: Any = None
        self._file: h5py.File | None = None
        self._datum_id = ""
        self._taken = 0

    def stage(self) -> list[Any]:
        path = self._folder / f"{uuid.uuid4()}.h5"
        self._file = h5py.File(path, "w", libver="latest")
        shape = self._arrays.shape[1:]
        self._file.create_dataset(
            DATASET, (0, *shape), self._arrays.dtype, maxshape=(None, *shape), chunks=(1, *shape)
        )
        self._file.swmr_mode = True
        self._taken = 0
        self._resource = compose_resource(
            spec=self._spec,
            root=str(self._folder),
            resource_path=path.name,
            resource_kwargs={"frame_per_point": self._per_point},
        )
        resource = dict(self._resource.resource_doc)
        resource.pop("run_start", None)
        self._assets = [("resource", resource)]
        return super().stage()

    def trigger(self) -> DeviceStatus:
        data = self._file[DATASET]
        point = len(data) // self._per_point
        for _ in range(self._per_point):
            data.resize(len(data) + 1, axis=0)
            data[-1] = self._arrays[self._taken % len(self._arrays)]
            self._taken += 1
        data.flush()
        datum = self._resource.compose_datum(datum_kwargs={"point_number": point})
        self._datum_id = datum["datum_id"]
        self._assets.append(("datum", dict(datum)))
        status = DeviceStatus(self)
        status.set_finished()
        return status

    def describe(self) -> dict[str, Any]:
        key = {
            "source": f"SIM:{self.name}",
            "dtype": "array",
            "shape": [self._per_point, *self._arrays.shape[1:]],
            "external": "FILESTORE:",
        }
        return {**super().describe(), f"{self.name}_image": key}

    def read(self) -> dict[str, Any]:
        reading = {"value": self._datum_id, "timestamp": 0.0}
        return {**super().read(), f"{self.name}_image": reading}

    def collect_asset_docs(self) -> Iterator[tuple[str, dict[str, Any]]]:
        assets, self._assets = self._assets, []
        yield from assets

    @property
    def hints(self) -> dict[str, list[str]]:
        return {"fields": [f"{self.name}_image"]}

    def unstage(self) -> list[Any]:
        if self._file is not None:
            self._file.close()
            self._file = None
        return super().unstage()


def documents_of_resources(
    arrays: np.ndarray, folder: Path, *, motor: Callable[[], Any] | None = None, **options: Any
) -> Documents:
    """Take the arrays with a detector that emits Resource and Datum documents."""
    det = ResourceDetector(arrays, folder, **options)
    number = len(arrays) // options.get("frames_per_point", 1)
    if motor is None:
        return documents_of(lambda: bp.count([det], number))
    return documents_of(lambda: bp.scan([det], motor(), 0, 1, number))

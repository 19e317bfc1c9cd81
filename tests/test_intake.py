"""Patterns come in every form in which a beamline sends them."""

import copy
import logging
import threading
import time
import uuid
from pathlib import Path
from typing import Any

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import event_model
import numpy as np
import pytest
from bluesky import RunEngine
from ophyd.sim import SynAxis

from bluesky_cmf import Integrator, LiveNMF, Preprocess
from bluesky_cmf.errors import CMFError, InputError
from bluesky_cmf.intake import is_dark
from bluesky_cmf.prepared import Prepared
from tests import asyncstreams as streams
from tests.streams import Collector, Detector, mixtures, run_documents

X, H, PATTERNS = mixtures(6)
FRAMES = np.random.default_rng(0).integers(0, 200, (6, 20, 30)).astype("<u2")


class Recording(Preprocess):
    """Keeps every pattern that goes into the fit."""

    def prepare(self, x: np.ndarray, y: np.ndarray, **options: Any) -> Prepared:
        found = super().prepare(x, y, **options)
        self.__dict__.setdefault("patterns", []).append(found.values.copy())
        return found


class Columns:
    """Integrates a frame over its rows: exact, so that results can be compared to the bit."""

    name, units = "column", "pixel"

    def __call__(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(frame.shape[1], dtype=float), frame.sum(axis=0).astype(float)

    def describe(self) -> dict[str, Any]:
        return {"kind": "columns"}


def sent(
    documents: Any, pattern: str = "det", *, negative: Any = "reject", **options: Any
) -> tuple[LiveNMF, Collector, list]:
    """Send documents; give the callback, what it published, and what went into the fit."""
    steps = Recording(negative=negative)
    live = LiveNMF(
        pattern, background=False, n_components=2, preprocess=steps, device="cpu", **options
    )
    out = Collector()
    live.subscribe(out)
    for name, doc in documents:
        live(name, doc)
    return live, out, steps.__dict__.get("patterns", [])


def reasons(out: Collector) -> list[str]:
    return [str(event["data"]["reason"]) for event in out.events("rejected")]


# --- values in files ---------------------------------------------------------------------------


@pytest.mark.parametrize("collections", [1, 3])
@pytest.mark.parametrize("flying", [False, True])
def test_patterns_in_the_files_of_ophyd_async_are_those_that_were_taken(
    tmp_path: Path, flying: bool, collections: int
) -> None:
    documents = streams.documents_of_arrays(
        PATTERNS, tmp_path, x=X, flying=flying, collections_per_event=collections
    )
    live, out, patterns = sent(documents, x="chi_Q")
    groups = PATTERNS.reshape(-1, collections, len(X))
    expected = groups[:, 0] if collections == 1 else groups.mean(axis=1)
    assert live.error is None
    np.testing.assert_array_equal(patterns, expected)
    assert len(out.events("primary")) == len(expected)
    assert out.named("stop")[0]["exit_status"] == "success"


def test_files_and_inline_arrays_give_the_same_weights_to_the_bit(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in ("async", "old", "swmr")]
    for folder in folders:
        folder.mkdir()
    forms = [
        (streams.documents_of_arrays(FRAMES, folders[0]), "det"),
        (streams.documents_of_resources(FRAMES, folders[1]), "det_image"),
        (streams.documents_of_resources(FRAMES, folders[2], spec="AD_HDF5_SWMR"), "image"),
        (run_documents(FRAMES), "chi_I"),
    ]
    found = [sent(documents, key, integrator=Columns()) for documents, key in forms]
    expected = [frame.sum(axis=0).astype(float) for frame in FRAMES]
    for live, _out, patterns in found:
        np.testing.assert_array_equal(patterns, expected)
        np.testing.assert_array_equal(live.result.weights, found[-1][0].result.weights)


def test_a_detector_with_files_is_fitted_while_its_scan_runs(tmp_path: Path) -> None:
    """The file is open for writing, in this process, while it is read."""
    RE = RunEngine({}, call_returns_result=False)
    live = LiveNMF("det", integrator=Columns(), n_components=2, independent="motor")
    out = Collector()
    live.subscribe(out)
    RE.subscribe(live)
    fitted = threading.Event()
    live.subscribe(lambda name, doc: fitted.set() if name == "event" else None)

    det, motor = streams.array_detector(FRAMES, tmp_path), streams.sim_motor()

    def step(detectors: Any, step: Any, pos_cache: Any) -> Any:
        yield from bps.one_nd_step(detectors, step, pos_cache)
        assert fitted.wait(30)

    RE(bp.scan([det], motor, 0, 5, 6, per_step=step))
    assert live.wait(60)
    assert out.data("primary")["motor"].tolist() == [0, 1, 2, 3, 4, 5]
    live.close()


def test_old_documents_of_files_are_left_as_they_are(tmp_path: Path) -> None:
    documents = streams.documents_of_resources(FRAMES, tmp_path)
    before = copy.deepcopy(documents)
    sent(documents, "det_image", integrator=Columns())
    assert repr(before) == repr(documents)


def test_frames_of_a_paused_and_rewound_plan_are_all_kept(tmp_path: Path) -> None:
    rewound: list[Any] = []
    for name, doc in streams.documents_of_arrays(PATTERNS[:4], tmp_path):
        # The plan goes back by a point after the second one: frames go on, numbers repeat.
        if name == "stream_datum" and doc["seq_nums"]["start"] > 2:
            doc["seq_nums"] = {key: number - 1 for key, number in doc["seq_nums"].items()}
        elif name == "event" and doc["seq_num"] > 2:
            doc["seq_num"] -= 1
        rewound.append((name, doc))
    _live, out, patterns = sent(rewound)
    np.testing.assert_array_equal(patterns, PATTERNS[:4])
    assert out.data("primary")["source_seq_num"].tolist() == [1, 2, 2, 3] and not reasons(out)


@pytest.mark.parametrize("flying", [False, True])
def test_frames_that_are_announced_twice_are_patterns_once(tmp_path: Path, flying: bool) -> None:
    documents = streams.documents_of_arrays(PATTERNS, tmp_path, flying=flying)
    doubled = [item for item in documents for _ in range(1 + (item[0] == "stream_datum"))]
    _live, out, patterns = sent(doubled)
    np.testing.assert_array_equal(patterns, PATTERNS)
    assert all("came before" in reason for reason in reasons(out))


def test_numbers_of_events_may_be_numpys(tmp_path: Path) -> None:
    documents = streams.documents_of_arrays(PATTERNS, tmp_path, motor=lambda: SynAxis(name="motor"))
    for name, doc in documents:
        if name == "event":
            doc["seq_num"] = np.int64(doc["seq_num"])
    _live, out, _ = sent(documents)
    assert out.data("primary")["source_seq_num"].tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isfinite(out.data("primary")["motor"]).all() and not reasons(out)


def test_frames_of_one_event_may_lack_different_pixels(tmp_path: Path) -> None:
    """What a detector puts in the place of a dead pixel must not become intensity."""
    azimuthal = pytest.importorskip("pyFAI.integrator.azimuthal")
    geometry = azimuthal.AzimuthalIntegrator(
        dist=0.1, poni1=0.004, poni2=0.006, pixel1=2e-4, pixel2=2e-4, wavelength=1e-10
    )
    frames = np.full((2, 40, 60), 10, dtype="<u4")
    frames[0, 10:12, 10:12] = 2**32 - 1
    integrator = Integrator(geometry, n_points=30, dummy=2**32 - 1, delta_dummy=0.5)
    documents = streams.documents_of_arrays(frames, tmp_path, collections_per_event=2)
    _live, out, patterns = sent(documents, integrator=integrator)
    assert not reasons(out)
    expected = np.mean([integrator(frame)[1] for frame in frames], axis=0)
    np.testing.assert_array_equal(patterns[0], expected)
    assert patterns[0].max() < 20


def test_what_is_masked_is_no_intensity() -> None:
    masked = np.ma.masked_array(PATTERNS[0] + 1e6 * (X > 4), mask=X > 4)
    _, out, patterns = sent(run_documents([PATTERNS[0], masked]), "chi_I")
    assert len(patterns) == 1 and "NaN or infinity" in reasons(out)[0]


@pytest.mark.parametrize(
    ("pattern", "negative"),
    [
        (-PATTERNS[0], "clip"),
        (np.full(len(X), -2.0), "offset"),
        (np.full(len(X), 1e-300), "reject"),
    ],
)
def test_a_pattern_of_which_nothing_is_left_is_rejected(pattern: Any, negative: str) -> None:
    live, out, _ = sent(run_documents([pattern, *PATTERNS]), "chi_I", negative=negative)
    assert "every point is zero" in reasons(out)[0]
    assert live.result.n_patterns == len(PATTERNS)


@pytest.mark.parametrize("missing", ["uid", "timestamps", "time", "filled", "seq_num"])
def test_a_page_that_lacks_a_column_holds_patterns_all_the_same(missing: str) -> None:
    documents = run_documents(PATTERNS, x=X, paged=True)
    for name, doc in documents:
        if name == "event_page":
            del doc[missing]
    _live, _out, patterns = sent(documents, "chi_I", x="chi_Q")
    np.testing.assert_array_equal(patterns, PATTERNS)


def test_a_handler_that_exits_costs_its_pattern_alone() -> None:
    class Leaves(Handler):
        def __call__(self, n: int) -> np.ndarray:
            if n == 2:
                raise SystemExit
            return super().__call__(n)

    _live, out, patterns = sent(image_documents(), "chi_I", handlers={"MINE": Leaves})
    assert len(patterns) == 5 and len(reasons(out)) == 1


def test_a_frame_without_event_and_an_event_without_frame_are_accounted_for(
    tmp_path: Path,
) -> None:
    documents = streams.documents_of_arrays(PATTERNS, tmp_path, motor=lambda: SynAxis(name="motor"))
    datums = [doc for name, doc in documents if name == "stream_datum"]
    events = [doc for name, doc in documents if name == "event"]
    lost = (datums[1]["uid"], events[3]["uid"])
    _live, out, patterns = sent([(n, d) for n, d in documents if d["uid"] not in lost])
    assert len(patterns) == 5
    assert reasons(out) == ["no frame of 'det' came for it"]
    positions = out.data("primary")["motor"]
    assert np.isnan(positions).sum() == 1


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    documents = streams.documents_of_arrays(PATTERNS[:2], tmp_path)
    (tmp_path / "det.h5").unlink()
    _live, out, _ = sent(documents)
    assert all("frame" in reason and "det.h5" in reason for reason in reasons(out))
    assert len(reasons(out)) == 2


@pytest.mark.parametrize("form", ["async", "old"])
def test_files_are_found_where_this_machine_has_them(tmp_path: Path, form: str) -> None:
    there, here = tmp_path / "there", tmp_path / "here"
    there.mkdir()
    make = streams.documents_of_arrays if form == "async" else streams.documents_of_resources
    documents = make(PATTERNS, there)
    there.rename(here)
    root_map = {str(there): str(here)}
    live, _, patterns = sent(documents, "det" if form == "async" else "image", root_map=root_map)
    assert live.error is None
    np.testing.assert_array_equal(patterns, PATTERNS)


def image_documents(
    *, spec: str = "MINE", late: int = 0, named: bool = True
) -> list[tuple[str, Any]]:
    """A run whose patterns are in files, with datums that come ``late`` events after theirs."""
    run = event_model.compose_run()
    resource = run.compose_resource(spec=spec, root="", resource_path="file", resource_kwargs={})
    keys = {"chi_I": {"source": "", "dtype": "array", "shape": [], "external": "FILESTORE:"}}
    stream = run.compose_descriptor(name="primary", data_keys=keys)
    documents: list[tuple[str, Any]] = [("start", run.start_doc)]
    documents += [("descriptor", stream.descriptor_doc), ("resource", resource.resource_doc)]
    datums: list[Any] = []
    for n in range(len(PATTERNS)):
        datum = resource.compose_datum(datum_kwargs={"n": n})
        datums.append(("datum", datum))
        event = stream.compose_event(
            data={"chi_I": datum["datum_id"]}, timestamps={"chi_I": 0.0}, filled={"chi_I": False}
        )
        if named and not late:
            documents.append(datums.pop())
        documents.append(("event", event))
        if named and len(datums) > late:
            documents.append(datums.pop(0))
    if named:
        page = event_model.pack_datum_page(*[doc for _, doc in datums]) if datums else None
        documents += [("datum_page", page)] if page else []
    return [*documents, ("stop", run.compose_stop())]


class Handler:
    def __init__(self, path: str) -> None:
        self.path = path

    def __call__(self, n: int) -> np.ndarray:
        return PATTERNS[n]


@pytest.mark.parametrize("late", [0, 1, 3])
def test_an_event_waits_for_its_datum_and_the_order_is_kept(late: int) -> None:
    documents = image_documents(late=late)
    live, out, patterns = sent(documents, "chi_I", handlers={"MINE": Handler})
    assert live.error is None
    np.testing.assert_array_equal(patterns, PATTERNS)
    assert out.data("primary")["source_seq_num"].tolist() == [1, 2, 3, 4, 5, 6]


def test_an_event_whose_datum_never_comes_is_rejected_at_the_end() -> None:
    live, out, _ = sent(image_documents(named=False), "chi_I", handlers={"MINE": Handler})
    assert len(reasons(out)) == len(PATTERNS)
    assert all("in a file that no document names" in reason for reason in reasons(out))
    live, out, _ = sent(image_documents(named=False)[:-1], "chi_I", handlers={"MINE": Handler})
    live.close()
    assert len(reasons(out)) == len(PATTERNS)


def test_one_datum_that_never_comes_does_not_hold_up_the_scan() -> None:
    run = event_model.compose_run()
    stream = run.compose_descriptor(
        name="primary", data_keys={"chi_I": {"source": "", "dtype": "array", "shape": []}}
    )
    live, out, _ = sent([("start", run.start_doc), ("descriptor", stream.descriptor_doc)], "chi_I")
    lost = stream.compose_event(
        data={"chi_I": "lost/0"}, timestamps={"chi_I": 0.0}, filled={"chi_I": False}
    )
    live("event", lost)
    for n in range(150):
        live("event", stream.compose_event({"chi_I": PATTERNS[n % 6]}, {"chi_I": 0.0}))
    assert len(out.events("primary")) == 150
    assert len(reasons(out)) == 1


def test_a_kind_of_file_without_handler_says_what_to_do() -> None:
    _, out, _ = sent(image_documents(spec="NEVER_HEARD_OF"), "chi_I")
    assert "no handler for files of the kind 'NEVER_HEARD_OF'" in reasons(out)[0]
    assert "handlers={'NEVER_HEARD_OF': …}" in reasons(out)[0]


def test_frames_without_integrator_are_rejected_with_what_to_do(tmp_path: Path) -> None:
    _, out, _ = sent(streams.documents_of_arrays(FRAMES[:2], tmp_path))
    assert "frames of a 2-D detector need an integrator" in reasons(out)[0]


# --- positions ---------------------------------------------------------------------------------


def monitored(values: list[float], name: str = "cryostream_temperature") -> Any:
    """A run with a monitor of the temperature beside it: one reading before each pattern."""
    run = event_model.compose_run()
    number = {"source": "", "dtype": "number", "shape": []}
    beside = run.compose_descriptor(name=f"{name}_monitor", data_keys={name: number})
    stream = run.compose_descriptor(
        name="primary", data_keys={"chi_I": {**number, "dtype": "array"}}
    )
    yield "start", run.start_doc
    yield "descriptor", beside.descriptor_doc
    yield "descriptor", stream.descriptor_doc
    for value, pattern in zip(values, PATTERNS, strict=True):
        yield "event", beside.compose_event({name: value}, {name: 0.0})
        yield "event", stream.compose_event({"chi_I": pattern}, {"chi_I": 0.0})
    yield "stop", run.compose_stop()


def test_the_position_may_be_monitored_in_another_stream() -> None:
    values = [100.0, 110.0, 120.0, 130.0, 140.0, 150.0]
    _, out, _ = sent(monitored(values), "chi_I", independent="temperature")
    assert out.data("primary")["cryostream_temperature"].tolist() == values


def test_the_position_is_found_by_its_unique_suffix() -> None:
    documents = run_documents(PATTERNS, x=X)
    _, out, _ = sent(documents, "chi_I", x="chi_Q", independent="perature")
    assert out.data("primary")["temperature"].tolist() == [0, 1, 2, 3, 4, 5]


# --- runs --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        ({"dark_frame": True}, True),
        ({"dark_frame": False}, False),
        ({"is_dark": 1}, True),
        ({"image_type": "dark frame"}, True),
        ({"purpose": "Flat-Field"}, True),
        ({"scan_type": "temperature ramp"}, False),
        ({"sample_name": "dark"}, False),
        ({"dark_frame": None, "purpose": None}, False),
        ({}, False),
    ],
)
def test_dark_frames_are_known_by_their_metadata(metadata: dict, expected: bool) -> None:
    assert is_dark(metadata) is expected


def test_dark_runs_are_passed_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    documents = run_documents(PATTERNS, x=X, metadata={"dark_frame": True})
    live, out, _ = sent(documents, "chi_I", x="chi_Q")
    assert out.documents == [] and live.error is None
    assert "is passed over, as its start document says" in caplog.text


def test_a_session_says_which_patterns_were_passed_over() -> None:
    runs = [run_documents(PATTERNS[:3]), run_documents(PATTERNS[:1], metadata={"isdark": True})]
    live, out, _ = sent([*runs[0], *runs[1]], "chi_I", scope="session")
    live.close()
    assert len(out.events("primary")) == 3
    assert reasons(out) == ["its run is passed over"]


def test_the_user_says_which_runs_are_passed_over() -> None:
    runs = [run_documents(PATTERNS, metadata={"plan_name": name}) for name in ("align", "scan")]
    _, out, patterns = sent(
        [*runs[0], *runs[1]], "chi_I", skip=lambda start: start["plan_name"] == "align"
    )
    assert len(patterns) == len(PATTERNS) and len(out.named("start")) == 1
    dark = run_documents(PATTERNS, metadata={"dark_frame": True})
    _, out, patterns = sent(dark, "chi_I", skip=lambda start: False)
    assert len(patterns) == len(PATTERNS)


def test_a_predicate_that_raises_passes_nothing_over(caplog: pytest.LogCaptureFixture) -> None:
    _, _, patterns = sent(run_documents(PATTERNS), "chi_I", skip=lambda start: start["missing"])
    assert len(patterns) == len(PATTERNS)
    assert "skip raised" in caplog.text


def test_an_event_of_an_unknown_descriptor_is_told_once_and_is_no_pattern(
    caplog: pytest.LogCaptureFixture,
) -> None:
    documents = run_documents(PATTERNS)
    stray = [(n, d) for n, d in documents if n not in ("descriptor", "start", "stop")]
    live, out, patterns = sent([documents[0], *stray, documents[-1]], "chi_I")
    assert patterns == [] and out.documents == [] and live.error is None
    assert caplog.text.count("unknown descriptor") == 1


def test_documents_before_start_and_after_stop_are_no_patterns() -> None:
    documents = run_documents(PATTERNS)
    start, descriptor, *events, stop = documents
    _, out, patterns = sent(
        [descriptor, *events[:2], start, descriptor, *events[2:], stop, events[0]], "chi_I"
    )
    assert len(patterns) == 4
    assert out.named("stop")[0]["num_events"]["primary"] == 4


def test_two_engines_in_two_threads_feed_one_callback() -> None:
    live = LiveNMF("chi_I", x="chi_Q", n_components=2)
    out = Collector()
    live.subscribe(out)
    # Documents of a RunEngine come from its own thread: these stand for others' ones.
    threads = [threading.Thread(target=feed, args=(live, 40)) for _ in range(4)]
    for thread in threads:
        thread.start()
    RE = RunEngine({}, call_returns_result=False)
    RE.subscribe(live)
    for _ in range(3):
        RE(bp.scan([Detector(np.tile(PATTERNS, (2, 1)), X)], SynAxis(name="motor"), 0, 9, 10))
    for thread in threads:
        thread.join(60)
    assert live.wait(60)
    assert len(out.events("primary")) == 4 * 40 + 30
    stops = out.named("stop")
    assert sorted(stop["num_events"]["primary"] for stop in stops) == [10, 10, 10, 40, 40, 40, 40]
    live.close()


def feed(live: LiveNMF, n: int) -> None:
    for name, doc in run_documents(np.tile(PATTERNS, (n // 6 + 1, 1))[:n], x=X):
        live(name, doc)


def test_bulk_events_of_old_are_taken() -> None:
    documents = run_documents(PATTERNS, x=X)
    events = [doc for name, doc in documents if name == "event"]
    others = [(name, doc) for name, doc in documents if name != "event"]
    bulk = ("bulk_events", {"primary": events})
    _, _, patterns = sent([*others[:-1], bulk, others[-1]], "chi_I", x="chi_Q")
    np.testing.assert_array_equal(patterns, PATTERNS)


# --- rules for doubtful patterns ---------------------------------------------------------------


def test_negative_values_are_refused_cut_off_or_lifted() -> None:
    signed = PATTERNS - 0.25
    for negative, expected in [
        ("clip", np.maximum(signed, 0)),
        ("offset", signed - signed.min(axis=1, keepdims=True)),
    ]:
        live, _, patterns = sent(run_documents(signed), "chi_I", negative=negative)
        assert live.error is None
        np.testing.assert_array_equal(patterns, expected)
    _, out, patterns = sent(run_documents(signed), "chi_I")
    assert len(reasons(out)) == len(PATTERNS) and "negative intensity" in reasons(out)[0]


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        (np.zeros(len(X)), "every point is zero"),
        ([0.0], "a placeholder"),
        ([], "expected numbers"),
        (FRAMES[0], "need an integrator"),
    ],
)
def test_what_is_no_pattern_is_rejected_also_as_the_first(pattern: Any, words: str) -> None:
    _, out, patterns = sent(run_documents([pattern, *PATTERNS]), "chi_I")
    np.testing.assert_array_equal(patterns, PATTERNS)
    assert words in reasons(out)[0] and len(reasons(out)) == 1


def test_what_lies_outside_the_region_of_interest_does_no_harm() -> None:
    broken = PATTERNS.copy()
    broken[:, X > 4] = np.nan
    broken[:, X < 1.5] = -1.0
    live = LiveNMF("chi_I", x="chi_Q", preprocess=Preprocess(roi=(1.5, 4.0)), background=False)
    for name, doc in run_documents(broken, x=X):
        live(name, doc)
    assert live.error is None and live.result.n_patterns == len(PATTERNS)


def test_a_shorter_axis_is_taken_where_it_covers_the_region_of_interest() -> None:
    live = LiveNMF("chi_I", x="chi_Q", preprocess=Preprocess(roi=(1.5, 4.0)), background=False)
    documents = run_documents([PATTERNS[0]], x=X, stop=False)
    kept = X < 4.2
    run_uid = documents[0][1]["uid"]
    event = copy.deepcopy(documents[-1][1])
    event |= {"uid": str(uuid.uuid4()), "seq_num": 2}
    event["data"] |= {"chi_I": PATTERNS[1][kept], "chi_Q": X[kept]}
    stop = {"uid": str(uuid.uuid4()), "run_start": run_uid, "time": time.time()}
    for name, doc in [*documents, ("event", event), ("stop", {**stop, "exit_status": "success"})]:
        live(name, doc)
    assert live.error is None and live.result.n_patterns == 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"skip": "dark"}, "skip: expected"),
        ({"negative": "ignore"}, "negative: expected"),
        ({"integrator": Columns(), "x": "chi_Q"}, "integrator: expected an Integrator and no x"),
        ({"integrator": 3}, "integrator: expected"),
        ({"handlers": ["AD_HDF5"]}, "handlers: expected"),
        ({"root_map": {"/data": 1}}, "root_map: expected"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        LiveNMF("chi_I", **options)
    assert issubclass(InputError, CMFError)


@pytest.mark.parametrize("join", [{}, {"join_method": "stack"}])
def test_frames_in_one_file_each_are_read(tmp_path: Path, join: dict[str, Any]) -> None:
    tifffile = pytest.importorskip("tifffile")
    run = event_model.compose_run()
    shape = [1, *FRAMES.shape[1:]]
    key = {"source": "", "dtype": "array", "shape": shape, "dtype_numpy": "<u2"}
    stream = run.compose_descriptor(
        name="primary", data_keys={"det": {**key, "external": "STREAM:"}}
    )
    place = {
        "uid": "tiff-files",
        "run_start": run.start_doc["uid"],
        "data_key": "det",
        "mimetype": "multipart/related;type=image/tiff",
        "uri": f"file://localhost{tmp_path}/",
        "parameters": {"chunk_shape": shape, "template": "img_{:06d}.tif", **join},
    }
    documents: list[tuple[str, Any]] = [("start", run.start_doc)]
    documents += [("descriptor", stream.descriptor_doc), ("stream_resource", place)]
    for n, frame in enumerate(FRAMES):
        tifffile.imwrite(tmp_path / f"img_{n:06d}.tif", frame)
        datum = {"stream_resource": "tiff-files", "uid": f"tiff-files/{n}"}
        datum |= {"descriptor": stream.descriptor_doc["uid"]}
        datum |= {"indices": {"start": n, "stop": n + 1}}
        documents.append(("stream_datum", datum | {"seq_nums": {"start": n + 1, "stop": n + 2}}))
    live, _, patterns = sent([*documents, ("stop", run.compose_stop())], integrator=Columns())
    assert live.error is None
    np.testing.assert_array_equal(patterns, FRAMES.sum(axis=1))


def test_a_frame_waits_for_the_name_of_its_file(tmp_path: Path) -> None:
    documents = streams.documents_of_arrays(PATTERNS, tmp_path, flying=True)
    resource = next(item for item in documents if item[0] == "stream_resource")
    others = [item for item in documents if item is not resource]
    live, _, patterns = sent([*others[:-1], resource, others[-1]])
    assert live.error is None
    np.testing.assert_array_equal(patterns, PATTERNS)
    _, out, patterns = sent(others)
    assert patterns == [] and len(reasons(out)) == len(PATTERNS)
    assert "in a file that no document names" in reasons(out)[0]


def test_a_file_whose_description_makes_no_sense_costs_its_frames_alone(tmp_path: Path) -> None:
    documents = streams.documents_of_arrays(PATTERNS[:3], tmp_path, flying=True)
    broken = [
        (name, {**doc, "parameters": {}} if name == "stream_resource" else doc)
        for name, doc in documents
    ]
    _, out, _ = sent(broken)
    assert len(reasons(out)) == 3 and "cannot be read: KeyError" in reasons(out)[0]


def test_files_are_read_as_documents_described_them_before(tmp_path: Path) -> None:
    old = []
    for name, new in streams.documents_of_arrays(PATTERNS, tmp_path, flying=True):
        doc = new
        if name == "stream_resource":
            doc = {key: new[key] for key in ("uid", "data_key", "run_start")}
            doc |= {"spec": "AD_HDF5_SWMR_SLICE", "root": str(tmp_path), "resource_path": "det.h5"}
            doc |= {"resource_kwargs": {"path": streams.DATASET, "multiplier": 1, "swmr": True}}
        old.append((name, doc))
    live, _, patterns = sent(old)
    assert live.error is None
    np.testing.assert_array_equal(patterns, PATTERNS)


def test_a_folder_is_not_taken_for_another_whose_name_goes_on(tmp_path: Path) -> None:
    there = tmp_path / "data2"
    there.mkdir()
    documents = streams.documents_of_arrays(PATTERNS, there)
    root_map = {str(tmp_path / "data"): str(tmp_path / "elsewhere")}
    live, _, patterns = sent(documents, root_map=root_map)
    assert live.error is None and len(patterns) == len(PATTERNS)


def test_an_old_file_that_is_missing_is_waited_for_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []
    monkeypatch.setattr("event_model.ttime.sleep", slept.append)
    documents = streams.documents_of_resources(PATTERNS, tmp_path)
    for file in tmp_path.glob("*.h5"):
        file.unlink()
    _, out, _ = sent(documents, "det_image")
    assert len(reasons(out)) == len(PATTERNS)
    assert len([seconds for seconds in slept if seconds]) <= 6


def test_a_reset_in_the_middle_counts_no_pattern_twice(tmp_path: Path) -> None:
    documents = streams.documents_of_arrays(PATTERNS, tmp_path, motor=lambda: SynAxis(name="motor"))
    datum = next(n for n, (name, _) in enumerate(documents) if name == "stream_datum")
    live, out, _ = sent(documents[: datum + 1])
    live.reset()
    for name, doc in documents[datum + 1 :]:
        live(name, doc)
    assert len(out.events("primary")) == len(PATTERNS) and not out.events("rejected")


def test_the_lag_of_a_session_is_never_negative() -> None:
    live = LiveNMF("chi_I", x="chi_Q", n_components=2, scope="session")
    out = Collector()
    live.subscribe(out)
    for _ in range(4):
        for name, doc in run_documents(np.tile(PATTERNS, (10, 1)), x=X):
            live(name, doc)
        live.reset()
    assert live.close(60)
    lags = out.data("primary")["lag"]
    assert len(lags) == 240 and lags.min() >= 0

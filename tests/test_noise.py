"""The noise of patterns, and what they are divided by, come from the documents into the fit."""

import copy
from pathlib import Path
from typing import Any

import bluesky.plans as bp
import bluesky.preprocessors as bpp
import numpy as np
import pytest
from ophyd import Component, Device, Signal

from bluesky_cmf import Integrator, LiveNMF, Phase, Preprocess, fitting
from bluesky_cmf.errors import InputError
from bluesky_cmf.nmf.results import RowFit
from bluesky_cmf.nmf.streaming import StreamingNMF
from tests import asyncstreams as streams
from tests.streams import Collector, Detector, axis, engine, mixtures, run_documents

X, H, MIXED = mixtures(6)
RNG = np.random.default_rng(2)
COUNTS = RNG.poisson(400 * MIXED + 30).astype(float)
ERRORS = np.sqrt(COUNTS) * RNG.uniform(0.5, 2.0, X.size)
KNOWN = [Phase.from_array(f"phase {k}", X, h) for k, h in enumerate(H)]


class Noisy(Detector):
    """With standard errors and the counts of a monitor in every event."""

    error = Component(Signal, kind="normal")
    i0 = Component(Signal, kind="normal", value=0.0)

    def __init__(self, patterns: Any, errors: Any, monitor: Any, **options: Any) -> None:
        super().__init__(patterns, X, **options)
        self._readings = iter(zip(errors, monitor, strict=True))
        self.error.put(errors[0])

    def trigger(self) -> Any:
        error, i0 = next(self._readings)
        self.error.put(error)
        self.i0.put(i0)
        return super().trigger()


class Fixed(Device):
    """Something that is read once, in a stream of its own."""

    i0 = Component(Signal, value=40.0, kind="hinted")


@pytest.fixture
def noises(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What the factorization is told of the noise of each pattern, in order."""
    told: list[Any] = []

    class Told(StreamingNMF):
        def rows(self, start: int = 0, stop: int | None = None, *, noises: Any = None) -> RowFit:
            if noises:
                told.extend(noises)
            return super().rows(start, stop, noises=noises)

    monkeypatch.setattr(fitting, "StreamingNMF", Told)
    return told


def fitted(documents: Any, pattern: str = "chi_I", **options: Any) -> tuple[LiveNMF, Collector]:
    live = LiveNMF(pattern, **{"device": "cpu", "background": False, **options})
    out = Collector()
    live.subscribe(out)
    for name, doc in documents:
        live(name, doc)
    return live, out


def with_keys(documents: Any, **columns: Any) -> Any:
    """Add data keys to composed documents, one value an event; None: not in this event."""
    added = copy.deepcopy(documents)
    number = 0
    for name, doc in added:
        if name == "descriptor":
            keys = {key: {"source": "det", "dtype": "array", "shape": []} for key in columns}
            doc["data_keys"] |= keys
        elif name == "event":
            doc["data"] |= {k: v[number] for k, v in columns.items() if v[number] is not None}
            number += 1
    return added


def faults(out: Collector) -> list[str]:
    return [str(event["data"]["fault"]) for event in out.events("faults")]


def reasons(out: Collector) -> list[str]:
    return [str(event["data"]["reason"]) for event in out.events("rejected")]


def assert_noises(noises: list[Any], variances: Any, steps: Any = None) -> None:
    """Compare covariances with dense ones, of patterns that are mapped by the matrix ``steps``."""
    assert len(noises) == len(variances)
    for noise, variance in zip(noises, variances, strict=True):
        J = np.eye(len(variance)) if steps is None else steps
        expected = J @ np.diag(variance) @ J.T
        np.testing.assert_allclose(noise(np.eye(len(J))), expected, rtol=1e-9, atol=1e-12)


# --- a scan ------------------------------------------------------------------------------------


def test_a_scan_with_a_monitor_and_errors_is_fitted_by_both(noises: list[Any]) -> None:
    monitor = np.array([1000.0, 400.0, 2500.0, 800.0, 1200.0, 90.0])
    flux = monitor / 1000.0
    patterns, errors = COUNTS * flux[:, None], ERRORS * flux[:, None]
    RE, motor = engine(), axis()
    live = LiveNMF(
        "chi_I",
        x="chi_Q",
        errors="error",
        phases=KNOWN,
        n_components=2,
        preprocess=Preprocess(normalize="monitor", monitor="i0"),
    )
    out = Collector()
    live.subscribe(out)
    RE.subscribe(live)
    RE(bp.scan([Noisy(patterns, errors, monitor)], motor, 300, 350, 6))
    assert live.wait(60)
    assert live.error is None and not faults(out) and not reasons(out)
    # Patterns of one flux are what is left.
    documents = run_documents(COUNTS / 1000.0, x=X)
    _, same = fitted(documents, x="chi_Q", phases=KNOWN, n_components=2)
    for k in range(2):
        key = f"weight_phase_{k}"
        np.testing.assert_allclose(out.data("primary")[key], same.data("primary")[key], rtol=1e-4)
    assert_noises(noises[:6], (ERRORS / 1000.0) ** 2)
    start = out.named("start")[0]["cmf"]
    assert start["errors"] == "error"
    assert start["preprocess"]["monitor"] == "i0"
    assert Preprocess(**start["preprocess"]) == Preprocess(normalize="monitor", monitor="i0")
    live.close()


@pytest.mark.parametrize("place", ["start", "configuration", "baseline"])
def test_the_monitor_may_stand_elsewhere(place: str) -> None:
    RE, motor = engine(), axis()
    steps = Preprocess(normalize="monitor", monitor="i0")
    live = LiveNMF("chi_I", x="chi_Q", phases=KNOWN, preprocess=steps, background=False)
    RE.subscribe(live)
    detector = Noisy(COUNTS, ERRORS, np.full(6, 40.0))
    detector.i0.kind = "config" if place == "configuration" else "omitted"
    detector.i0.put(40.0)
    plan = bp.scan([detector], motor, 0, 5, 6, md={"i0": 40.0} if place == "start" else {})
    RE(bpp.baseline_wrapper(plan, [Fixed(name="ring")]) if place == "baseline" else plan)
    assert live.error is None and live.result is not None
    same, _ = fitted(run_documents(COUNTS / 40.0, x=X), x="chi_Q", phases=KNOWN)
    np.testing.assert_allclose(live.result.objective, same.result.objective, rtol=1e-4)
    np.testing.assert_allclose(live.result.weights, same.result.weights, rtol=1e-3, atol=1e-6)


def test_a_monitor_that_is_no_positive_number_rejects_its_pattern_and_no_other() -> None:
    values = [5.0, 0.0, None, np.nan, -2.0, 5.0]
    documents = with_keys(run_documents(COUNTS, x=X), i0=values)
    steps = Preprocess(normalize="monitor", monitor="i0")
    live, out = fitted(documents, x="chi_Q", preprocess=steps, n_components=2)
    assert live.result.n_patterns == 2
    told = "cannot be normalised by the monitor 'i0', which is "
    assert reasons(out) == [told + value for value in ("0", "nan", "nan", "-2")]


def test_a_monitor_that_is_nowhere_rejects_all_patterns_and_says_what_there_is() -> None:
    steps = Preprocess(normalize="monitor", monitor="i1")
    _, out = fitted(run_documents(COUNTS, x=X), x="chi_Q", preprocess=steps, scope="session")
    _, run = fitted(run_documents(COUNTS, x=X), x="chi_Q", preprocess=steps)
    told = "monitor: no data key 'i1' in stream 'primary', configuration or start document; there"
    assert len(reasons(run)) == 6 and all(reason.startswith(told) for reason in reasons(run))
    assert not out.events("primary")


# --- errors ------------------------------------------------------------------------------------


def test_counts_have_the_variance_of_what_was_counted_and_1_where_nothing_was(
    noises: list[Any],
) -> None:
    counts = RNG.poisson(3 * MIXED).astype("<u2")
    live, out = fitted(run_documents(counts, x=X), x="chi_Q", errors="counts", phases=KNOWN)
    assert live.error is None and not faults(out)
    assert (counts == 0).any()
    assert_noises(noises, np.maximum(counts, 1.0))
    assert out.named("start")[0]["cmf"]["errors"] == "counts"


def test_without_errors_nothing_is_told_and_the_run_says_so(noises: list[Any]) -> None:
    _, out = fitted(run_documents(COUNTS, x=X), x="chi_Q")
    assert noises == [None] * 6
    assert out.named("start")[0]["cmf"]["errors"] is None


def test_errors_of_a_falling_axis_stay_with_their_points(noises: list[Any]) -> None:
    documents = run_documents(COUNTS[:, ::-1], x=X[::-1])
    fitted(with_keys(documents, err=ERRORS[:, ::-1]), x="chi_Q", errors="err", phases=KNOWN)
    assert_noises(noises, ERRORS**2)


def test_a_pattern_on_another_axis_brings_its_noise_onto_that_of_the_others(
    noises: list[Any],
) -> None:
    """Raw patterns are interpolated also where no regrid was asked for."""
    other = np.linspace(0.9, 5.2, 150)
    patterns = [COUNTS[0], np.interp(other, X, COUNTS[1])]
    variances = [ERRORS[0] ** 2, np.interp(other, X, ERRORS[1] ** 2)]
    documents = run_documents(patterns, x=X)
    documents[-2][1]["data"]["chi_Q"] = other
    documents = with_keys(documents, err=[np.sqrt(v) for v in variances])
    live, _ = fitted(documents, x="chi_Q", errors="err", phases=KNOWN)
    assert live.error is None and live.result.n_patterns == 2
    assert_noises(noises[:1], variances[:1])
    onto = np.array([np.interp(X, other, unit) for unit in np.eye(len(other))]).T
    assert_noises(noises[1:], variances[1:], onto)


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (np.full(X.size, np.nan), "NaN, infinity or a negative number at 200 of 200 points"),
        (np.where(X > 4, -1.0, 1.0), "NaN, infinity or a negative number at 50 of 200 points"),
        (np.zeros(X.size), "every one is zero"),
        (np.ones(X.size - 1), "shape (199,) for 200 points"),
        (np.ones((2, X.size)), "shape (2, 200) for 200 points"),
        ("none", "'err': expected numbers of shape (F,)"),
        (None, "no value for data key 'err' in the event"),
    ],
    ids=["nan", "negative", "zero", "length", "shape", "text", "missing"],
)
def test_errors_that_cannot_be_used_cost_no_pattern_and_are_told_once(
    noises: list[Any], caplog: pytest.LogCaptureFixture, bad: Any, told: str
) -> None:
    errors = [ERRORS[0], bad, ERRORS[2], bad, bad, ERRORS[5]]
    documents = with_keys(run_documents(COUNTS, x=X), err=errors)
    live, out = fitted(documents, x="chi_Q", errors="err", phases=KNOWN)
    assert live.result.n_patterns == 6 and not reasons(out)
    # Nothing has failed.
    assert live.error is None
    first, last = faults(out)
    assert first.startswith("errors: ") and told in first and "(pattern 2)" in first
    assert first.endswith("the noise of such patterns is estimated from the residual")
    assert last == "errors: the noise of 3 of 6 patterns was estimated from the residual"
    assert [noise is None for noise in noises] == [False, True, False, True, True, False]
    assert_noises([n for n in noises if n], ERRORS[[0, 2, 5]] ** 2)
    assert sum("estimated from the residual" in r.message for r in caplog.records) == 2


def test_errors_under_a_key_that_is_not_there_are_told_and_every_pattern_is_fitted() -> None:
    live, out = fitted(run_documents(COUNTS, x=X), x="chi_Q", errors="sigma", phases=KNOWN)
    assert live.result.n_patterns == 6 and not reasons(out)
    assert faults(out)[0].startswith("errors: no data key 'sigma' in stream 'primary'; there are [")


def test_what_lies_outside_the_region_of_interest_does_no_harm_to_the_noise(
    noises: list[Any],
) -> None:
    errors = np.where(X > 4, np.nan, ERRORS)
    documents = with_keys(run_documents(COUNTS, x=X), err=errors)
    steps = Preprocess(roi=(1.5, 4.0))
    _, out = fitted(documents, x="chi_Q", errors="err", preprocess=steps, n_components=2)
    kept = (X >= 1.5) & (X <= 4.0)
    assert not faults(out)
    assert_noises(noises, ERRORS[:, kept] ** 2)


def test_noise_is_told_with_the_first_answer_for_a_pattern_alone(noises: list[Any]) -> None:
    """Also where several patterns are fitted at once, and refits follow."""
    documents = with_keys(run_documents(COUNTS, x=X, stop=False), err=ERRORS)
    live, _ = fitted(documents, x="chi_Q", errors="err", phases=KNOWN, n_components=3)
    live.fix("unknown 1", np.ones(X.size))
    live.release("unknown 1")
    live.close()
    assert_noises(noises, ERRORS**2)


# --- errors in files ---------------------------------------------------------------------------


@pytest.mark.parametrize("collections", [1, 2])
def test_errors_in_the_files_of_ophyd_async_are_those_that_were_taken(
    tmp_path: Path, noises: list[Any], collections: int
) -> None:
    def plan() -> Any:
        det = streams.array_detector(COUNTS, tmp_path, x=X)
        err = streams.array_detector(ERRORS, tmp_path, "err")
        shot = streams.prepared(collections)
        return bp.count([det, err], 6 // collections, per_shot=shot)

    documents = streams.documents_of(plan)
    live, out = fitted(documents, "det", x="chi_Q", errors="err", phases=KNOWN)
    assert live.error is None and not faults(out) and not reasons(out)
    means = (ERRORS**2).reshape(-1, collections, X.size).mean(axis=1) / collections
    assert_noises(noises, means)


def test_counts_of_several_collections_are_averaged_with_their_noise(
    tmp_path: Path, noises: list[Any]
) -> None:
    documents = streams.documents_of_arrays(COUNTS, tmp_path, x=X, collections_per_event=3)
    fitted(documents, "det", x="chi_Q", errors="counts", phases=KNOWN)
    assert_noises(noises, np.maximum(COUNTS, 1).reshape(2, 3, -1).mean(axis=1) / 3)


def test_errors_of_the_older_kind_of_files_are_waited_for_and_read(
    tmp_path: Path, noises: list[Any]
) -> None:
    """Their datum comes after the event, as some sources of documents order them."""
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    det = streams.ResourceDetector(COUNTS, tmp_path / "a")
    err = streams.ResourceDetector(ERRORS, tmp_path / "b", name="err")
    documents = streams.documents_of(lambda: bp.count([det, err], 6))
    late = []
    for name, doc in documents:
        if name == "event":
            # Both datums of this event stood before it: the errors' now comes behind.
            datum = next(d for d in late if d[1].get("datum_id") == doc["data"]["err_image"])
            late.remove(datum)
            late += [(name, doc), datum]
        else:
            late.append((name, doc))
    _, out = fitted(late, "det_image", errors="err_image", n_components=2)
    assert not faults(out) and not reasons(out)
    assert_noises(noises, ERRORS**2)


def test_a_file_of_errors_that_cannot_be_read_costs_no_pattern(
    tmp_path: Path, noises: list[Any]
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    det = streams.ResourceDetector(COUNTS[:2], tmp_path / "a")
    err = streams.ResourceDetector(ERRORS[:2], tmp_path / "b", name="err")
    documents = streams.documents_of(lambda: bp.count([det, err], 2))
    for file in (tmp_path / "b").iterdir():
        file.unlink()
    live, out = fitted(documents, "det_image", errors="err_image", n_components=2)
    assert live.result.n_patterns == 2 and noises == [None, None] and not reasons(out)
    assert "which cannot be read" in faults(out)[0]


def test_errors_whose_frames_never_come_cost_no_pattern(tmp_path: Path, noises: list[Any]) -> None:
    def plan() -> Any:
        det = streams.array_detector(COUNTS, tmp_path, x=X)
        err = streams.array_detector(ERRORS, tmp_path, "err")
        return bp.count([det, err], 6)

    documents = streams.documents_of(plan)
    lost = {d["uid"] for n, d in documents if n == "stream_resource" and d["data_key"] == "err"}
    documents = [
        (n, d)
        for n, d in documents
        if d["uid"] not in lost and d.get("stream_resource") not in lost
    ]
    live, out = fitted(documents, "det", x="chi_Q", errors="err", phases=KNOWN)
    assert live.result.n_patterns == 6 and noises == [None] * 6 and not reasons(out)
    assert "'err'" in faults(out)[0]


# --- frames ------------------------------------------------------------------------------------


def test_frames_of_counts_bring_the_noise_that_their_integration_leaves(
    noises: list[Any],
) -> None:
    azimuthal = pytest.importorskip("pyFAI.integrator.azimuthal")
    geometry = azimuthal.AzimuthalIntegrator(
        dist=0.1, poni1=0.004, poni2=0.006, pixel1=2e-4, pixel2=2e-4, wavelength=1e-10
    )
    frames = RNG.poisson(9.0, (3, 40, 60)).astype("<u4")
    integrator = Integrator(geometry, n_points=20)
    _, out = fitted(run_documents(frames), integrator=integrator, errors="counts")
    assert not faults(out) and not reasons(out)
    assert_noises(noises, [integrator.with_variance(frame)[2] for frame in frames])
    # As frames of the same intensity scatter, but for what bins share.
    drawn = [integrator(RNG.poisson(9.0, (40, 60)))[1] for _ in range(400)]
    told = integrator.with_variance(np.full((40, 60), 9))[2]
    assert np.median(np.var(drawn, axis=0) / told) == pytest.approx(1.0, abs=0.1)


class Columns:
    """Integrates a frame over its rows, and does not know what becomes of noise."""

    name, units = "column", "pixel"

    def __call__(self, frame: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(frame.shape[1], dtype=float), frame.sum(axis=0).astype(float)

    def describe(self) -> dict[str, Any]:
        return {"kind": "columns"}


class NoisyColumns(Columns):
    def with_variance(self, frame: np.ndarray) -> tuple[np.ndarray, ...]:
        return (*self(frame), frame.sum(axis=0).astype(float))


def test_the_noise_of_several_frames_of_one_event_is_that_of_their_mean(noises: list[Any]) -> None:
    frames = RNG.poisson(9.0, (3, 4, 20, 30))
    fitted(run_documents(frames), integrator=NoisyColumns(), errors="counts")
    assert_noises(noises, frames.sum(axis=2).mean(axis=1) / 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"errors": "counts", "integrator": Columns()}, "errors: 'counts' needs an integrator"),
        ({"errors": "err", "integrator": NoisyColumns()}, "errors: patterns are made of frames by"),
        ({"errors": 3}, "errors: expected 'counts', a data key or None, got 3"),
        ({"errors": ""}, "errors: expected 'counts', a data key or None, got ''"),
    ],
)
def test_what_cannot_be_is_refused_before_the_scan(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        LiveNMF("chi_I", **options)


# --- phases ------------------------------------------------------------------------------------


def test_phases_go_through_all_steps_as_the_patterns_do() -> None:
    """Patterns that are mixtures are explained to the end, whatever is done to both."""
    steps = Preprocess(roi=(1.2, 4.8), regrid=0.037, rebin=2, normalize="area")
    documents = run_documents(MIXED, x=X)
    live, _ = fitted(documents, x="chi_Q", phases=KNOWN, preprocess=steps, n_components=2)
    mixed = np.array([steps(X, y) for y in MIXED])
    assert live.error is None and live.result.components.shape[1] == len(steps.axis(X))
    known = np.array([steps(X, h) for h in H])
    np.testing.assert_allclose(live.result.components, known, rtol=1e-6, atol=1e-30)
    np.testing.assert_allclose(live.result.weights @ live.result.components, mixed, atol=1e-5)


@pytest.mark.parametrize("rebin", [2, 5, 7])
def test_lines_of_a_crystal_are_measured_as_the_data_are_before_they_are_interpolated(
    batio3: Any, rebin: int
) -> None:
    x = batio3.two_theta
    path = batio3.path.parent / "cubic.cif"
    phase = Phase.from_cif(path, wavelength=batio3.wavelength, width=0.03)
    steps = Preprocess(roi=(x[100], x[900]), regrid=(x[1] - x[0]) * 1.37, rebin=rebin)
    documents = run_documents(batio3.intensity[:2], x=x)
    live, _ = fitted(documents, x="chi_Q", phases=[phase], preprocess=steps, n_components=2)
    assert live.error is None
    # Lines that are cropped away have no part, as without the other steps.
    kept = x[100:901]
    expected = steps(kept, phase.on(kept))
    assert np.abs(expected / steps(steps.grid(x), phase.on(steps.grid(x))) - 1).max() > 0.01
    np.testing.assert_allclose(live.result.components[0], expected, rtol=1e-3)


def test_normalised_patterns_are_no_counts_and_that_is_told(noises: list[Any]) -> None:
    documents = run_documents(COUNTS / COUNTS.max(), x=X)
    live, out = fitted(documents, x="chi_Q", errors="counts", phases=KNOWN, n_components=2)
    assert live.result.n_patterns == len(COUNTS) and not reasons(out)
    assert all(noise is None for noise in noises)
    assert "'counts': expected counts, got fractions up to" in faults(out)[0]


def test_a_few_counts_are_counts(noises: list[Any]) -> None:
    few = np.minimum(COUNTS, 1.0)
    _, out = fitted(run_documents(few, x=X), x="chi_Q", errors="counts", n_components=2)
    assert not faults(out) and all(noise is not None for noise in noises)


@pytest.mark.parametrize("background", [False, True])
def test_closing_where_an_alarm_is_told_publishes_everything(background: bool) -> None:
    known = np.vstack(
        [np.tile(400 * H[0] + 30, (12, 1)), np.tile(400 * H.sum(axis=0) + 30, (3, 1))]
    )
    counts = np.random.default_rng(1).poisson(known).astype(float)
    phases = [KNOWN[0], Phase.from_array("flat", X, np.ones_like(X))]
    closed: list[bool] = []
    live = LiveNMF(
        "chi_I",
        x="chi_Q",
        phases=phases,
        n_components=2,
        errors="counts",
        device="cpu",
        background=background,
        on_unknown=lambda alarm: closed.append(live.close()),
    )
    out = Collector()
    live.subscribe(out)
    for name, doc in run_documents(counts, x=X, stop=False):
        live(name, doc)
    assert live.close(60)
    assert closed and not any(closed)
    assert len(out.named("stop")) == len(out.named("start")) == 1
    assert len(out.events("primary")) >= 13

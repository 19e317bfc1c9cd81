from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from event_model import compose_run
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bluesky_cmf.errors import (
    AxisError,
    CMFError,
    DataKeyError,
    InputError,
    PatternFileError,
    RunNotFoundError,
)
from bluesky_cmf.patterns import write_pattern
from bluesky_cmf.phases import Phase, resample

X = np.linspace(1.0, 5.0, 41)
Y = np.abs(np.sin(3 * X))
Documents = list[tuple[str, dict[str, Any]]]


# --- on an axis -----------------------------------------------------------------------------


@settings(deadline=None)
@given(
    hnp.arrays(np.float64, 41, elements=st.floats(0, 1e300)),
    st.sampled_from([np.float32, np.float64]),
)
def test_a_phase_on_its_own_axis_is_the_same_to_the_bit(y: np.ndarray, dtype: type) -> None:
    y = np.minimum(y, np.finfo(np.float32).max).astype(dtype)
    phase = Phase.from_array("cubic", X, y)

    assert phase.on(X.copy()).tobytes() == y.tobytes()
    assert phase.on(X).dtype == dtype


def test_a_phase_on_another_axis_is_interpolated_linearly() -> None:
    onto = np.linspace(1.05, 4.95, 17)

    found = Phase.from_array("cubic", X, Y).on(onto)

    for x, y in zip(onto, found, strict=True):
        left = np.searchsorted(X, x) - 1
        share = (x - X[left]) / (X[left + 1] - X[left])
        assert y == pytest.approx((1 - share) * Y[left] + share * Y[left + 1], rel=1e-9)


def test_the_pattern_on_an_axis_may_be_written_to_and_the_phase_stays() -> None:
    phase = Phase.from_array("cubic", X, Y)

    for onto in (X, X[3:9]):
        phase.on(onto)[:] = -1

    assert np.array_equal(phase.y, Y)


@pytest.mark.parametrize(
    ("onto", "covered"),
    [
        (np.linspace(1.0, 5.0, 11), True),
        (np.linspace(2.0, 3.0, 11), True),
        # Half a step of the data's axis is rounding, no more.
        (np.arange(0.96, 5.0, 0.1), True),
        (np.arange(0.94, 5.0, 0.1), False),
        (np.arange(2.0, 5.05, 0.1), True),
        (np.arange(2.0, 5.07, 0.1) + 0.06, False),
        (np.array([3.0]), True),
        (np.array([0.99]), False),
        (np.array([5.01]), False),
        # Another unit: degrees against inverse angstrom.
        (np.linspace(10.0, 60.0, 11), False),
    ],
)
def test_a_phase_is_refused_where_it_does_not_cover_the_axis(
    onto: np.ndarray, covered: bool
) -> None:
    phase = Phase.from_array("cubic", X, Y)
    if covered:
        assert phase.on(onto).shape == onto.shape
        return
    with pytest.raises(AxisError, match=r"phase 'cubic' covers 1 to 5 but the data's axis is"):
        phase.on(onto)


def test_an_axis_without_points_is_refused() -> None:
    with pytest.raises(AxisError, match="no point at all"):
        Phase.from_array("cubic", X, Y).on([])


def test_the_message_of_an_axis_error_tells_both_ranges_and_what_to_do() -> None:
    with pytest.raises(AxisError) as caught:
        resample(X, Y, np.linspace(0.0, 6.0, 13), what="the pattern")

    assert str(caught.value) == (
        "the pattern covers 1 to 5 but the data's axis is 0 to 6; crop the data "
        "(Preprocess(roi=…)) or give a phase that covers it, in the same unit"
    )


# --- from arrays ----------------------------------------------------------------------------


def test_the_arrays_of_the_caller_are_copied() -> None:
    x, y = X.copy(), Y.copy()
    phase = Phase.from_array("cubic", x, y)

    x[:], y[:] = 0, 7

    assert np.array_equal(phase.x, X)
    assert np.array_equal(phase.y, Y)
    for array in (phase.x, phase.y):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1


def test_a_phase_of_arrays_says_so() -> None:
    phase = Phase.from_array("cubic", [1, 2, 3], [0, 5, 1])

    assert (phase.name, phase.origin) == ("cubic", "array")
    assert phase.on([1.5]).tolist() == [2.5]


@pytest.mark.parametrize(
    ("name", "x", "y", "error", "message"),
    [
        ("", [1, 2], [1, 2], InputError, "name: expected a name for the phase, got ''"),
        (3, [1, 2], [1, 2], InputError, "name: expected a name for the phase, got 3"),
        ("a", [1, 2], [1, 2, 3], InputError, "phase 'a': expected x and y of one length, got 2 "),
        ("a", [[1, 2]], [[1, 2]], InputError, r"phase 'a': x: expected numbers of shape \(F,\)"),
        ("a", [1, 2], ["b", "c"], InputError, r"phase 'a': y: expected numbers of shape \(F,\)"),
        ("a", [], [], InputError, r"phase 'a': x: expected numbers of shape \(F,\)"),
        ("a", [1, np.nan], [1, 2], InputError, "phase 'a': x: expected finite values, got NaN"),
        ("a", [1, 2], [1, np.inf], InputError, "phase 'a': y: expected finite values"),
        ("a", [1, 2], [1, -2], InputError, "phase 'a': expected non-negative .* got -2; subtract"),
        ("a", [2, 1], [1, 2], AxisError, "phase 'a': expected an x that increases throughout"),
        ("a", [1, 1], [1, 2], AxisError, "phase 'a': expected an x that increases throughout"),
        (
            "a",
            np.array([1, 3, 2], dtype=np.uint8),
            [1, 2, 3],
            AxisError,
            "phase 'a': expected an x that increases throughout",
        ),
    ],
)
def test_arrays_that_are_no_pattern_are_refused_by_the_name_of_the_phase(
    name: Any, x: Any, y: Any, error: type[CMFError], message: str
) -> None:
    with pytest.raises(error, match=message):
        Phase.from_array(name, x, y)


# --- from files -----------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".xy", ".dat", ".chi", ".csv", ".txt", ".npz"])
def test_a_phase_comes_from_every_kind_of_file_to_the_bit(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cubic 300K{suffix}"
    write_pattern(path, X, Y)

    phase = Phase.from_file(path)

    assert phase.name == "cubic 300K"
    assert phase.origin == f"file cubic 300K{suffix}"
    assert phase.on(X).tobytes() == Y.tobytes()
    assert Phase.from_file(str(path), name="mine").name == "mine"


def test_a_phase_comes_from_a_file_with_errors_and_from_a_bare_array(tmp_path: Path) -> None:
    np.savetxt(tmp_path / "a.xye", np.column_stack([X, Y, np.sqrt(Y)]), fmt="%.17g")
    np.save(tmp_path / "b.npy", np.stack([X, Y]))

    for name in ("a.xye", "b.npy"):
        assert Phase.from_file(tmp_path / name).on(X).tobytes() == Y.tobytes()


def test_a_file_that_is_missing_or_negative_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PatternFileError, match=r"nowhere\.xy: no such file"):
        Phase.from_file(tmp_path / "nowhere.xy")
    write_pattern(tmp_path / "a.xy", X, -Y)
    with pytest.raises(InputError, match="phase 'a': expected non-negative"):
        Phase.from_file(tmp_path / "a.xy")


# --- from a stored run ----------------------------------------------------------------------


class Catalog:
    """What a phase needs of a catalog."""

    def __init__(self, documents: Documents) -> None:
        self._documents = documents
        self.uid = str(documents[0][1]["uid"])

    def documents(self, uid: str) -> Documents:
        assert uid == self.uid
        return self._documents


def stored(
    patterns: list[Any],
    *,
    axes: list[Any] | None = None,
    configured: Any = None,
    stream: str = "primary",
) -> Catalog:
    """A run with one pattern an event, its axis in each event or in the configuration."""
    run = compose_run()
    key = {"source": "det", "dtype": "array", "shape": [len(X)]}
    keys = {"chi_I": key} if axes is None else {"chi_I": key, "chi_Q": key}
    configuration = {}
    if configured is not None:
        configuration["det"] = {
            "data": {"chi_Q": configured},
            "timestamps": {"chi_Q": 0.0},
            "data_keys": {"chi_Q": key},
        }
    documents: Documents = [("start", run.start_doc)]
    other = run.compose_descriptor(name="other", data_keys={"chi_I": key})
    wanted = run.compose_descriptor(name=stream, data_keys=keys, configuration=configuration)
    documents += [("descriptor", bundle.descriptor_doc) for bundle in (other, wanted)]
    for n, pattern in enumerate(patterns):
        data = {"chi_I": pattern} if axes is None else {"chi_I": pattern, "chi_Q": axes[n]}
        documents.append(("event", other.compose_event({"chi_I": 100 * X}, {"chi_I": 0.0})))
        documents.append(("event", wanted.compose_event(data, dict.fromkeys(data, 0.0))))
    return Catalog([*documents, ("stop", run.compose_stop())])


@pytest.mark.parametrize("where", ["event", "configuration"])
@pytest.mark.parametrize("kind", [np.asarray, list])
def test_a_phase_of_a_run_is_the_mean_of_its_patterns(
    where: str, kind: Callable[[Any], Any]
) -> None:
    options = {"axes": [kind(X)] * 3} if where == "event" else {"configured": kind(X)}
    catalog = stored([kind(n * Y) for n in (1, 2, 6)], **options)

    phase = Phase.from_run(catalog, catalog.uid, "chi_I", x="chi_Q")

    np.testing.assert_allclose(phase.on(X), 3 * Y, rtol=1e-12)
    assert np.array_equal(phase.x, X)
    assert phase.name == f"run {catalog.uid[:8]}"
    assert phase.origin == f"run {catalog.uid}"


def test_a_phase_may_be_one_event_of_a_run_to_the_bit() -> None:
    catalog = stored([Y, 2 * Y, 3 * Y], configured=X)

    phase = Phase.from_run(catalog, catalog.uid, "chi_I", x="chi_Q", seq_num=2, name="hot")

    assert phase.name == "hot"
    assert phase.on(X).tobytes() == (2 * Y).tobytes()


def test_the_axis_of_one_event_is_the_one_in_that_event() -> None:
    catalog = stored([Y, 2 * Y], axes=[X, X + 1])

    phase = Phase.from_run(catalog, catalog.uid, "chi_I", x="chi_Q", seq_num=1)

    assert np.array_equal(phase.x, X)


def test_a_phase_is_read_from_the_stream_that_was_asked_for() -> None:
    catalog = stored([Y], configured=X, stream="dark")

    phase = Phase.from_run(catalog, catalog.uid, "chi_I", x="chi_Q", stream="dark")

    assert phase.y.tobytes() == Y.tobytes()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"seq_num": 7}, RunNotFoundError, "uid: run '.*' has no event with seq_num 7 in stream"),
        ({"stream": "dark"}, RunNotFoundError, "uid: run '.*' has no event in stream 'dark'"),
        ({"x": "theta"}, DataKeyError, "x: no data key 'theta' in stream 'primary' of run"),
        (
            {"pattern": "image"},
            DataKeyError,
            r"pattern: no data key 'image' in stream 'primary'; there are \['chi_I'\]",
        ),
    ],
)
def test_a_run_that_does_not_hold_the_phase_says_what_is_missing(
    options: dict[str, Any], error: type[CMFError], message: str
) -> None:
    catalog = stored([Y], configured=X)

    with pytest.raises(error, match=message):
        Phase.from_run(catalog, catalog.uid, **{"pattern": "chi_I", "x": "chi_Q", **options})


def test_a_run_without_events_holds_no_phase() -> None:
    catalog = stored([], configured=X)

    with pytest.raises(RunNotFoundError, match="has no event in stream 'primary'"):
        Phase.from_run(catalog, catalog.uid, "chi_I", x="chi_Q")


def test_what_is_no_array_of_numbers_is_told_with_its_name() -> None:
    with pytest.raises(InputError, match=r"phase 'p': x: expected numbers of shape \(F,\)"):
        Phase.from_array("p", [[1.0], [1.0, 2.0]], [1.0, 2.0])
    with pytest.raises(AxisError, match=r"phase 'p': expected an axis \(F,\) of numbers"):
        Phase.from_array("p", [1.0, 2.0], [1.0, 2.0]).on("abc")

"""The simulated ramp and the devices that play it."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine
from bluesky.protocols import Configurable, Movable, Readable, Triggerable
from event_model import DocumentNames, schema_validators

from bluesky_cmf.errors import AxisError, InputError
from bluesky_cmf.simulation import HeatingRamp, Ramp, StoredRamp, heat, simulated_beamline

Documents = list[tuple[str, dict[str, Any]]]


@pytest.fixture
def RE() -> RunEngine:
    # Without signal handlers, as a test may run beside the main thread.
    return RunEngine(context_managers=[])


def scan(RE: RunEngine, ramp: Ramp, **options: Any) -> Documents:
    documents: Documents = []
    beamline = simulated_beamline(ramp, exposure=0.0, travel=0.0, **options)
    plan = heat([beamline.det], beamline.stage, ramp.positions)
    RE(plan, lambda name, doc: documents.append((name, doc)))
    return documents


def of(documents: Documents, kind: str) -> list[dict[str, Any]]:
    return [doc for name, doc in documents if name == kind]


def patterns(documents: Documents) -> np.ndarray:
    return np.array([doc["data"]["det_intensity"] for doc in of(documents, "event")])


def peak(x: np.ndarray, y: np.ndarray, low: float, high: float) -> np.ndarray:
    """Positions of the maxima between two angles that reach a fifth of the highest there."""
    inside = (x[1:-1] > low) & (x[1:-1] < high)
    top = (y[1:-1] > y[:-2]) & (y[1:-1] >= y[2:]) & (y[1:-1] > 0.2 * y[1:-1][inside].max())
    return x[1:-1][inside & top]


# --- the computed ramp


def test_the_same_seed_gives_the_same_counts_and_another_seed_others() -> None:
    first, again, other = (HeatingRamp(seed=seed).pattern(400.0, shot=3) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_two_exposures_at_one_temperature_have_noise_of_their_own() -> None:
    ramp = HeatingRamp()
    assert not np.array_equal(ramp.pattern(400.0, shot=0), ramp.pattern(400.0, shot=1))


def test_counts_are_whole_and_scatter_as_poisson_does() -> None:
    ramp = HeatingRamp()
    counts, expected = ramp.pattern(400.0), ramp.expected(400.0)
    np.testing.assert_array_equal(counts, np.round(counts))
    # Chi squared per point of 2000 points: 1 with a standard deviation of 0.03.
    assert np.mean((counts - expected) ** 2 / expected) == pytest.approx(1.0, abs=0.2)


def test_without_noise_the_pattern_is_what_is_expected() -> None:
    ramp = HeatingRamp(noise=False)
    np.testing.assert_array_equal(ramp.pattern(400.0, shot=5), ramp.expected(400.0))


def test_a_reflection_of_the_tetragonal_phase_is_split_and_that_of_the_cubic_one_is_not() -> None:
    ramp = HeatingRamp()
    tetragonal, cubic = ramp.references
    assert (tetragonal.name, cubic.name) == ("tetragonal", "cubic")
    assert len(peak(tetragonal.x, tetragonal.y, 4.5, 4.95)) == 2
    assert len(peak(cubic.x, cubic.y, 4.5, 4.95)) == 1


def test_reflections_shift_to_smaller_angles_on_heating() -> None:
    ramp = HeatingRamp(n_features=20_000, noise=False)
    cold, hot = (peak(ramp.x, ramp.expected(t), 8.0, 8.5)[-1] for t in (480.0, 560.0))
    assert hot < cold


def test_the_undeclared_phase_appears_half_way_and_no_reference_names_it() -> None:
    ramp = HeatingRamp()
    first, last = ramp.temperatures
    assert ramp.fractions((first + last) / 2)[ramp.undeclared] == 0.0
    assert ramp.fractions(last)[ramp.undeclared] > 0.5
    assert ramp.undeclared not in [reference.name for reference in ramp.references]


def test_amounts_of_all_phases_make_one_at_every_temperature() -> None:
    ramp = HeatingRamp()
    for temperature in ramp.positions:
        assert sum(ramp.fractions(temperature).values()) == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_patterns": 1}, "n_patterns must be at least 2, got 1"),
        ({"n_features": 3}, "n_features must be at least 100, got 3"),
        ({"temperatures": (300.0, 300.0)}, "temperatures must differ"),
    ],
)
def test_an_impossible_ramp_is_refused_with_its_argument(
    options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        HeatingRamp(**options)


# --- the stored ramp

X, T, Y = np.linspace(1.0, 2.0, 7), np.linspace(300.0, 320.0, 3), np.arange(21.0).reshape(3, 7)


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., Path]:
    def save(**arrays: Any) -> Path:
        path = tmp_path / "ramp.npz"
        np.savez(path, **arrays)
        return path

    return save


def test_arrays_of_a_file_are_told_apart_by_their_shapes(npz: Callable[..., Path]) -> None:
    ramp = StoredRamp.from_npz(npz(whatever=X, T=T, counts=Y, wavelength=np.float64(0.2)))
    assert (ramp.name, ramp.variable, ramp.axis) == ("ramp", "T", "whatever")
    np.testing.assert_array_equal(ramp.x, X)
    np.testing.assert_array_equal(ramp.positions, T)
    np.testing.assert_array_equal(ramp.pattern(310.0), Y[1])


def test_first_and_last_pattern_are_the_known_phases_of_a_stored_ramp(
    npz: Callable[..., Path],
) -> None:
    first, last = StoredRamp.from_npz(npz(x=X, T=T, y=Y)).references
    assert (first.name, last.name) == ("first", "last")
    np.testing.assert_array_equal(first.y, Y[0])
    np.testing.assert_array_equal(last.y, Y[-1])


def test_a_stored_ramp_that_comes_back_to_a_position_gives_each_pattern(
    npz: Callable[..., Path],
) -> None:
    ramp = StoredRamp.from_npz(npz(x=X, T=[300.0, 310.0, 300.0], y=Y))
    np.testing.assert_array_equal(ramp.pattern(300.0, shot=2), Y[2])


def test_between_stored_positions_the_nearest_pattern_is_given(npz: Callable[..., Path]) -> None:
    np.testing.assert_array_equal(StoredRamp.from_npz(npz(x=X, T=T, y=Y)).pattern(306.0), Y[1])


def test_names_choose_among_arrays_of_one_shape(npz: Callable[..., Path]) -> None:
    path = npz(x=X, T=T, time=T, y=Y)
    with pytest.raises(InputError, match=r"the variable: 3 values.*more than one.*\(T, time\)"):
        StoredRamp.from_npz(path)
    assert StoredRamp.from_npz(path, variable="time").variable == "time"


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": X, "T": T}, "must hold patterns: an array.*none has this shape"),
        ({"x": X, "T": T, "y": Y, "z": Y}, r"patterns.*more than one has this shape \(y, z\)"),
        ({"x": X, "y": Y}, r"must hold the variable: 3 values.*x \(7,\)"),
        ({"T": T, "y": Y}, "must hold the axis: 7 values"),
        ({"x": T, "T": T, "y": Y[:, :3]}, "cannot be told apart by their lengths; name both"),
        ({"x": X, "T": T[:1], "y": Y[:1]}, "N of at least 2"),
        ({"x": X, "T": np.full(3, np.nan), "y": Y}, "'T' must be finite"),
    ],
)
def test_a_file_whose_arrays_do_not_make_a_ramp_is_refused_with_the_reason(
    npz: Callable[..., Path], arrays: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        StoredRamp.from_npz(npz(**arrays))


def test_a_name_that_is_not_in_the_file_is_refused_with_those_that_are(
    npz: Callable[..., Path],
) -> None:
    with pytest.raises(InputError, match=r"no array 'temp'; there are x \(7,\), T \(3,\)"):
        StoredRamp.from_npz(npz(x=X, T=T, y=Y), variable="temp")


def test_an_axis_that_does_not_increase_is_refused(npz: Callable[..., Path]) -> None:
    with pytest.raises(AxisError, match="'x' must increase"):
        StoredRamp.from_npz(npz(x=X[::-1], T=T, y=Y))


def test_what_is_not_a_file_of_arrays_is_refused(tmp_path: Path) -> None:
    text = tmp_path / "notes.npz"
    text.write_text("not numpy")
    single = tmp_path / "single.npy"
    np.save(single, Y)
    with pytest.raises(InputError, match=r"must be an \.npz file"):
        StoredRamp.from_npz(text)
    with pytest.raises(InputError, match=r"must be an \.npz file"):
        StoredRamp.from_npz(single)
    single.write_bytes(b"")
    with pytest.raises(InputError, match=r"must be an \.npz file"):
        StoredRamp.from_npz(single)
    with pytest.raises(InputError, match="there is no such file"):
        StoredRamp.from_npz(tmp_path / "missing.npz")


# --- the devices


def test_the_devices_are_what_bluesky_asks_of_devices() -> None:
    det, stage, *_ = simulated_beamline(HeatingRamp())
    assert isinstance(det, Readable)
    assert isinstance(det, Triggerable)
    assert isinstance(det, Configurable)
    assert isinstance(stage, Movable)


def test_every_document_of_a_scan_is_valid_and_there_is_an_event_for_each_position(
    RE: RunEngine,
) -> None:
    ramp = HeatingRamp(n_patterns=5)
    documents = scan(RE, ramp)
    for name, doc in documents:
        schema_validators[DocumentNames[name]].validate(doc)
    assert [name for name, _ in documents] == ["start", "descriptor", *["event"] * 5, "stop"]
    temperatures = [doc["data"]["temperature"] for doc in of(documents, "event")]
    np.testing.assert_array_equal(temperatures, ramp.positions)


def test_descriptors_tell_the_truth_about_shape_number_type_units_and_dimensions(
    RE: RunEngine,
) -> None:
    documents = scan(RE, HeatingRamp(n_patterns=2))
    (descriptor,), event = of(documents, "descriptor"), of(documents, "event")[-1]
    configuration = descriptor["configuration"]["det"]
    for keys, data in (
        (descriptor["data_keys"], event["data"]),
        (configuration["data_keys"], configuration["data"]),
    ):
        assert set(keys) == set(data)
        for name, key in keys.items():
            value = np.asarray(data[name])
            assert tuple(key["shape"]) == value.shape, name
            assert np.dtype(key["dtype_numpy"]) == value.dtype, name
            assert key["dtype"] == ("array" if value.ndim else "number"), name
    intensity, axis = descriptor["data_keys"]["det_intensity"], "det_two_theta"
    assert (intensity["units"], intensity["dims"]) == ("counts", ["two_theta"])
    assert configuration["data_keys"][axis]["units"] == "deg"
    assert descriptor["data_keys"]["temperature"]["units"] == "K"


def test_the_pattern_follows_the_stage(RE: RunEngine) -> None:
    ramp = HeatingRamp(n_patterns=4, noise=False)
    expected = [ramp.expected(temperature) for temperature in ramp.positions]
    np.testing.assert_array_equal(patterns(scan(RE, ramp)), expected)


def test_every_run_of_one_seed_gives_the_same_patterns(RE: RunEngine) -> None:
    ramp = HeatingRamp(n_patterns=4, seed=7)
    beamline = simulated_beamline(ramp, exposure=0.0, travel=0.0)
    runs: list[Documents] = [[], []]
    for documents in runs:
        plan = heat([beamline.det], beamline.stage, ramp.positions)
        RE(plan, lambda name, doc, documents=documents: documents.append((name, doc)))
    np.testing.assert_array_equal(*map(patterns, runs))


def test_published_arrays_are_not_changed_by_the_next_exposure(RE: RunEngine) -> None:
    ramp = HeatingRamp(n_patterns=3)
    first, *_ = patterns(scan(RE, ramp))
    np.testing.assert_array_equal(first, ramp.pattern(ramp.positions[0], shot=0))


def test_data_keys_of_a_stored_ramp_bear_the_names_of_its_arrays(
    RE: RunEngine, npz: Callable[..., Path]
) -> None:
    documents = scan(RE, StoredRamp.from_npz(npz(q=X, pressure=T, y=Y.astype(np.float32))))
    (descriptor,) = of(documents, "descriptor")
    assert descriptor["data_keys"]["det_intensity"]["dtype_numpy"] == "<f4"
    assert descriptor["configuration"]["det"]["data_keys"]["det_q"]["units"] == "1/A"
    assert [doc["data"]["pressure"] for doc in of(documents, "event")] == list(T)
    np.testing.assert_array_equal(patterns(documents), Y)


def test_a_failing_exposure_fails_its_status_with_the_cause(npz: Callable[..., Path]) -> None:
    ramp = StoredRamp.from_npz(npz(x=X, T=T, y=Y))
    det, *_ = simulated_beamline(ramp, exposure=0.0)
    object.__setattr__(ramp, "patterns", None)
    with pytest.raises(TypeError):
        det.trigger().wait(timeout=10)


def test_a_negative_time_is_refused() -> None:
    with pytest.raises(InputError, match="exposure must be a time in seconds, 0 or more, got -1"):
        simulated_beamline(HeatingRamp(), exposure=-1)


def test_without_ophyd_the_ramp_works_and_the_devices_name_the_extra() -> None:
    code = (
        "import sys; sys.modules['ophyd'] = None\n"
        "from bluesky_cmf.errors import MissingExtraError\n"
        "from bluesky_cmf.simulation import HeatingRamp, simulated_beamline\n"
        "assert HeatingRamp().pattern(300.0).shape == (2000,)\n"
        "try: simulated_beamline(HeatingRamp())\n"
        "except MissingExtraError as error: assert 'bluesky-cmf[sim]' in str(error)\n"
        "else: raise SystemExit('no error')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)

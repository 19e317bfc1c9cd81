"""Analysis runs as files for other programs: the table and the NeXus file."""

import csv
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bluesky_cmf import LiveNMF, Phase, Preprocess, open_catalog
from bluesky_cmf.documents import AnalysisArchive, read_analysis
from bluesky_cmf.errors import InputError
from bluesky_cmf.exports import result_table, write_csv, write_nexus
from bluesky_cmf.patterns import read_pattern_file
from tests.streams import Collector, mixtures, run_documents


class Run:
    """An analysis run with a known phase, a free one and a rejected pattern."""

    def __init__(self, *, n: int = 12, positions: Any = None, metadata: Any = None) -> None:
        self.x, self.H, self.raw = mixtures(n, noise=0.02)
        patterns = [*self.raw]
        patterns.insert(5, np.full(len(self.x), np.nan))
        known = Phase.from_array("phase A (known)", self.x, self.H[0])
        self.live = LiveNMF("chi_I", x="chi_Q", n_components=2, phases=[known], background=False)
        self.collector = Collector()
        self.live.subscribe(self.collector)
        metadata = {"sample_name": "mixture", **(metadata or {})}
        for name, doc in run_documents(patterns, x=self.x, positions=positions, metadata=metadata):
            self.live(name, doc)
        assert self.live.result is not None and self.live.patterns is not None
        self.result, self.patterns = self.live.result, self.live.patterns

    @property
    def analysis(self) -> AnalysisArchive:
        return read_analysis(self.collector.documents)


@pytest.fixture(scope="module")
def run() -> Run:
    return Run()


def read_csv(path: Path) -> dict[str, list[str]]:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return {key: [row[key] for row in rows] for key in rows[0]}


def numbers(column: list[str]) -> np.ndarray:
    return np.array([float(cell) if cell else np.nan for cell in column])


# --- the table


def test_the_table_has_a_row_for_each_pattern_with_the_weights_of_the_end(
    run: Run, tmp_path: Path
) -> None:
    write_csv(tmp_path / "new" / "a.csv", run.analysis)
    table = read_csv(tmp_path / "new" / "a.csv")
    keys = ["weight_phase_A__known_", "weight_unknown_1"]
    assert list(table)[:2] == ["pattern", "temperature"]
    assert {*keys, *(f"{key}_error" for key in keys)} < table.keys()
    primary = run.collector.data("primary")
    assert primary.keys() < table.keys() | {"time"}
    for key, weights in zip(keys, run.result.weights.T, strict=True):
        np.testing.assert_allclose(numbers(table[key]), weights, rtol=1e-6)
        errors = numbers(table[f"{key}_error"])
        np.testing.assert_array_equal(errors, primary[f"{key}_error"])
    assert numbers(table["pattern"]).tolist() == [*range(1, 13)]
    # The sixth pattern was rejected: what comes after it keeps its place in the raw run.
    assert numbers(table["source_seq_num"]).tolist() == [1, 2, 3, 4, 5, *range(7, 14)]
    assert numbers(table["r_factor"]).tolist() == primary["r_factor"].tolist()
    assert set(table["source_stream"]) == {"primary"}


def test_with_the_patterns_the_r_factor_is_that_of_the_weights_in_the_table(run: Run) -> None:
    table = result_table(run.analysis, patterns=run.patterns)
    np.testing.assert_allclose(table["r_factor"], run.result.r_factor, rtol=1e-4)
    X = run.patterns.astype(float)
    rest = np.maximum(X - run.result.weights @ run.result.components.astype(float), 0)
    np.testing.assert_allclose(table["unexplained"], rest.sum(1) / X.sum(1), rtol=1e-4)


def test_a_run_from_pattern_files_names_the_file_of_each_pattern() -> None:
    names = [f"T{n}.xy" for n in range(13)]
    run = Run(metadata={"pattern_files": {"folder": "/data", "names": names}})
    files = result_table(run.analysis)["file"].tolist()
    assert files == [name for name in names if name != "T5.xy"]


def test_a_run_that_continues_another_has_its_rows_too_with_gaps_where_nothing_was_published(
    tmp_path: Path,
) -> None:
    x, _, patterns = mixtures(10, noise=0.02)
    documents = run_documents(patterns, x=x)
    collector = Collector()
    live = LiveNMF("chi_I", x="chi_Q", n_components=2, background=False)
    live.subscribe(collector)
    for name, doc in documents[:6]:
        live(name, doc)
    live.add_component("late")
    for name, doc in documents[6:]:
        live(name, doc)
    # The last run alone, as a catalog gives it.
    last = max(n for n, (name, _doc) in enumerate(collector.documents) if name == "start")
    analysis = read_analysis(collector.documents[last:])
    assert analysis.names == ("unknown 1", "unknown 2", "late")
    write_csv(tmp_path / "a.csv", analysis, patterns=live.patterns)
    write_nexus(tmp_path / "a.h5", analysis, patterns=live.patterns)
    table = read_csv(tmp_path / "a.csv")
    assert len(table["pattern"]) == 10
    weights = numbers(table["weight_late"])
    assert live.result is not None
    np.testing.assert_allclose(weights, live.result.weights[:, 2], rtol=1e-6, atol=1e-12)
    assert np.isnan(numbers(table["lag"])[:4]).all() and table["source_run"][0] == ""


def test_where_the_runs_before_came_by_too_nothing_is_missing(tmp_path: Path) -> None:
    x, _, patterns = mixtures(10, noise=0.02)
    patterns = np.insert(patterns, 3, np.nan, axis=0)
    names = [f"T{n}.xy" for n in range(11)]
    metadata = {"pattern_files": {"folder": "/data", "names": names}}
    live = LiveNMF("chi_I", x="chi_Q", n_components=2, background=False)
    analysis = AnalysisArchive()
    live.subscribe(analysis)
    *documents, stop = run_documents(patterns, x=x, metadata=metadata)
    for name, doc in documents:
        live(name, doc)
    live.remove_component("unknown 1")
    live.add_component("late")
    live(*stop)
    assert live.result is not None and analysis.names == ("unknown 2", "late")
    write_csv(tmp_path / "a.csv", analysis, patterns=live.patterns)
    table = read_csv(tmp_path / "a.csv")
    # No pattern came after the change: all of them were published by the first of the runs.
    for key, weights in zip(("unknown_2", "late"), live.result.weights.T, strict=True):
        np.testing.assert_allclose(numbers(table[f"weight_{key}"]), weights, rtol=1e-6)
        assert f"fraction_{key}" in table
    assert not [key for key in table if "unknown_1" in key]
    assert table["file"] == [name for name in names if name != "T3.xy"]
    assert np.isfinite(numbers(table["temperature"])).all()
    assert np.isfinite(numbers(table["lag"])).all()
    assert [seq_num for seq_num, _reason in analysis.rejected] == [4]
    write_nexus(tmp_path / "a.h5", analysis, patterns=live.patterns)
    with h5py.File(tmp_path / "a.h5") as file:
        assert {"weights", "fractions", "rejected"} < {*check_nexus(file), *file["entry"]}
        assert file["entry/weights"].attrs["axes"].tolist() == ["temperature"]


# --- NeXus


def check_nexus(file: Any) -> list[str]:
    """Follow the rules of NXdata through a file; give the groups, the default one first."""
    assert file.attrs["NX_class"] == "NXroot"
    entry = file[file.attrs["default"]]
    assert entry.attrs["NX_class"] == "NXentry"
    found = [entry.attrs["default"]]
    for name, group in entry.items():
        if not isinstance(group, h5py.Group):
            continue
        assert group.attrs["NX_class"].startswith("NX"), name
        if group.attrs["NX_class"] == "NXdata":
            check_data(group)
            found += [name] if name != found[0] else []
    return found


def check_data(group: Any) -> None:
    signal = group[group.attrs["signal"]]
    axes = list(group.attrs["axes"])
    assert len(axes) == signal.ndim
    for dimension, axis in enumerate(axes):
        assert group[axis].shape == (signal.shape[dimension],)
        assert group.attrs[f"{axis}_indices"] == dimension
    for name in group.attrs.get("auxiliary_signals", ()):
        assert group[name].shape == signal.shape
    for name in group:
        if name.endswith("_errors"):
            assert group[name].shape == group[name.removesuffix("_errors")].shape


def test_the_nexus_file_shows_weights_first_and_holds_all_there_is_to_look_at(
    run: Run, tmp_path: Path
) -> None:
    write_nexus(tmp_path / "a.h5", run.analysis, patterns=run.patterns)
    with h5py.File(tmp_path / "a.h5") as file:
        first, *others = check_nexus(file)
        assert first == "weights"
        assert set(others) == {
            "components",
            "fractions",
            "patterns",
            "reconstruction",
            "difference",
            "quality",
        }
        entry = file["entry"]
        weights = entry["weights"]
        key = weights.attrs["signal"]
        assert weights[key].attrs["long_name"] == "phase A (known)"
        np.testing.assert_allclose(weights[key][()], run.result.weights[:, 0], rtol=1e-6)
        assert list(weights.attrs["axes"]) == ["temperature"]
        assert weights["temperature"].attrs["units"] == "K"
        components = entry["components"]
        assert components["chi_Q"].attrs["units"] == "1/angstrom"
        np.testing.assert_array_equal(components["chi_Q"][()], run.x)
        held = components[components.attrs["signal"]]
        assert held.attrs["held"] and np.array_equal(held[()], run.H[0].astype(np.float32))
        images = {n: entry[n][n][()] for n in ("patterns", "reconstruction", "difference")}
        np.testing.assert_array_equal(images["patterns"], run.patterns)
        product = run.result.weights @ run.result.components
        np.testing.assert_allclose(images["reconstruction"], product, atol=1e-5)
        np.testing.assert_allclose(images["difference"], run.patterns - product, atol=1e-5)
        assert entry["sample"]["name"][()] == b"mixture"
        recipe = json.loads(entry["fit"]["configuration"]["data"][()])
        assert recipe["loss"] == "frobenius" and entry["fit"]["converged"][()]
        assert entry["rejected"]["source_seq_num"][()].tolist() == [6]
        assert b"NaN" in entry["rejected"]["reason"][0]
        assert entry["columns"]["source_stream"][0] == b"primary"


def test_the_default_plot_of_the_file_is_found_by_other_readers(run: Run, tmp_path: Path) -> None:
    nexus = pytest.importorskip("nexusformat.nexus", reason="nexusformat is not installed")
    write_nexus(tmp_path / "a.h5", run.analysis, patterns=run.patterns)
    root = nexus.nxload(str(tmp_path / "a.h5"))
    assert root.plottable_data.nxpath == "/entry/weights"
    assert root["entry/patterns"].is_plottable()


def test_a_variable_that_goes_to_and_fro_is_no_axis_of_a_map_but_stays_beside_it(
    tmp_path: Path,
) -> None:
    positions = [*range(7), *range(6)]
    run = Run(positions=[float(n) for n in positions])
    write_nexus(tmp_path / "a.h5", run.analysis, patterns=run.patterns)
    with h5py.File(tmp_path / "a.h5") as file:
        check_nexus(file)
        patterns = file["entry/patterns"]
        assert list(patterns.attrs["axes"]) == ["pattern", "chi_Q"]
        expected = [n for k, n in enumerate(positions) if k != 5]
        assert patterns["temperature"][()].tolist() == expected


def test_without_patterns_there_are_no_maps(run: Run, tmp_path: Path) -> None:
    write_nexus(tmp_path / "a.h5", run.analysis)
    with h5py.File(tmp_path / "a.h5") as file:
        assert check_nexus(file) == ["weights", "components", "fractions", "quality"]


def test_a_component_of_an_exported_run_is_a_phase_for_the_next_one(
    run: Run, tmp_path: Path
) -> None:
    write_nexus(tmp_path / "a.h5", run.analysis)
    with h5py.File(tmp_path / "a.h5", "r+") as file:
        file["entry"].attrs["default"] = "components"
    found = read_pattern_file(tmp_path / "a.h5")
    assert np.array_equal(found.y, run.H[0].astype(np.float32))
    assert found.metadata == {"axis": "q", "units": "1/angstrom"}


def test_a_strained_phase_is_reconstructed_as_it_lies_in_each_pattern(tmp_path: Path) -> None:
    x = np.linspace(1.0, 5.0, 1500)

    def lines(strain: float) -> np.ndarray:
        places = (1.5, 2.2, 3.1, 4.2)
        return sum(np.exp(-(((x * (1 + strain) - p) / 0.03) ** 2)) for p in places)

    strains = np.linspace(0.0, 0.008, 8)
    patterns = [100 * lines(strain) for strain in strains]
    # Patterns shrink to lower q as the lattice grows: the phase has to reach beyond them.
    known = np.where((x > 1.2) & (x < 4.8), lines(0.0), 0.0)
    phase = Phase.from_array("A", x, known, strain=(-0.01, 0.02), axis="q")
    inside = Preprocess(roi=(1.1, 4.85))
    collector = Collector()
    live = LiveNMF(
        "chi_I", x="chi_Q", n_components=1, phases=[phase], background=False, preprocess=inside
    )
    live.subscribe(collector)
    for name, doc in run_documents(patterns, x=x):
        live(name, doc)
    assert live.reconstruction is not None and live.patterns is not None
    np.testing.assert_allclose(live.reconstruction, live.patterns, atol=2)
    analysis = read_analysis(collector.documents)
    given = {"patterns": live.patterns, "reconstruction": live.reconstruction}
    table = result_table(analysis, **given)
    np.testing.assert_allclose(table["strain_A"], strains, atol=2e-4)
    assert table["r_factor"].max() < 0.02
    write_nexus(tmp_path / "a.h5", analysis, **given)
    with h5py.File(tmp_path / "a.h5") as file:
        assert {"strains", "difference"} < set(check_nexus(file))
        assert abs(file["entry/difference/difference"][()]).max() < 2
    # Weights times components are no reconstruction here: without one there are no maps.
    write_nexus(tmp_path / "b.h5", analysis, patterns=live.patterns)
    with h5py.File(tmp_path / "b.h5") as file:
        assert "difference" not in check_nexus(file)
    published = collector.data("primary")["r_factor"]
    without = result_table(analysis, patterns=live.patterns)
    assert without["r_factor"].tolist() == published.tolist()


# --- both


@pytest.mark.parametrize("write", [write_csv, write_nexus])
def test_a_file_that_is_there_is_not_replaced_unless_asked(
    run: Run, tmp_path: Path, write: Any
) -> None:
    path = tmp_path / "a.h5"
    path.write_text("mine")
    with pytest.raises(InputError, match=r"a\.h5: is there already"):
        write(path, run.analysis)
    assert path.read_text() == "mine" and len(list(tmp_path.iterdir())) == 1
    write(path, run.analysis, overwrite=True)
    assert path.stat().st_size > 100
    with pytest.raises(InputError, match="cannot be written"):
        write(path / "below.h5", run.analysis)


@pytest.mark.parametrize("write", [write_csv, write_nexus])
def test_a_run_without_patterns_and_patterns_of_another_run_are_refused(
    run: Run, tmp_path: Path, write: Any
) -> None:
    with pytest.raises(InputError, match="expected a run with fitted patterns, got one without"):
        write(tmp_path / "a.h5", AnalysisArchive())
    with pytest.raises(InputError, match=r"expected shape \(N, G\) = \(12, 200\), got \(11, 200\)"):
        write(tmp_path / "a.h5", run.analysis, patterns=run.patterns[1:])
    assert not list(tmp_path.iterdir())


def test_a_stored_run_gives_the_same_table_as_the_documents(run: Run, tmp_path: Path) -> None:
    with open_catalog(tmp_path / "catalog") as catalog:
        writer = catalog.writer()
        for name, doc in run.collector.documents:
            writer(name, doc)
        writer.flush()
        stored = result_table(read_analysis(catalog.documents(run.analysis.uid)))
    direct = result_table(run.analysis)
    assert plain(stored) == plain(direct)


def plain(table: Mapping[str, np.ndarray]) -> dict[str, Any]:
    return {key: values.tolist() for key, values in sorted(table.items())}

import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import databroker
import numpy as np
import pytest
from event_model import DocumentNames, compose_run, schema_validators, unpack_event_page
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_cmf.catalogs import open_catalog
from bluesky_cmf.documents import (
    PATTERN_NUMBER,
    AnalysisReader,
    AnalysisRun,
    Axis,
    Independent,
    Point,
    component_record,
    fraction_keys,
    independents,
    is_analysis,
    read_analysis,
    weight_keys,
)
from bluesky_cmf.documents import run as run_module
from bluesky_cmf.nmf.streaming import FitResult, StreamingNMF
from tests.streams import Collector

F = 12
AXIS = Axis("chi_Q", "1/angstrom", np.linspace(1.0, 5.0, F))
NAMES = ("BaTiO3 (cubic)", "unknown 1")
TEMPERATURE = Independent("temperature", "temperature", "K")
RAW = {
    "uid": "raw-1",
    "time": 1.0,
    "scan_id": 7,
    "plan_name": "scan",
    "plan_type": "generator",
    "plan_args": {"num": 3},
    "detectors": ["det"],
    "motors": ["stage"],
    "num_points": 3,
    "sample": {"name": "BaTiO3"},
    "hints": {"dimensions": [[["temperature"], "primary"]]},
}
PUBLISHED = ("errors", "fraction_errors", "r_factor", "unexplained", "lag", "fit_seconds")
KNOWN = ("positions", "weights", "fractions", *PUBLISHED)


def patterns(n: int) -> np.ndarray:
    return 0.1 + np.random.default_rng(0).random((n, F))


def model(names: tuple[str, ...] = NAMES) -> StreamingNMF:
    fixed = [True] + [False] * (len(names) - 1)
    return StreamingNMF(F, len(names), names=names, components=[np.ones(F)], fixed=fixed)


def point(n: int, run: str = "raw-1") -> Point:
    return Point(run, "primary", n + 1, (300.0 + n,))


class Session:
    """A factorization whose documents are collected and checked."""

    def __init__(
        self,
        *,
        names: tuple[str, ...] = NAMES,
        variables: tuple[Independent, ...] = (TEMPERATURE,),
        raw: dict[str, Any] = RAW,
        **metadata: Any,
    ) -> None:
        self.out = Collector()
        self.model = model(names)
        self.points: list[Point] = []
        records = [
            component_record(name, fixed=not k, origin="array", values=None)
            for k, name in enumerate(names)
        ]
        self.run = AnalysisRun(
            self.out,
            raw_start=raw,
            names=names,
            variables=variables,
            metadata={"components": records, **metadata},
            axis=AXIS,
        )

    def add(self, n: int, *, run: str = "raw-1") -> FitResult:
        """Publish n more patterns with one refit."""
        first = len(self.points)
        self.points += [point(first + i, run) for i in range(n)]
        self.model.append(patterns(first + n)[first:])
        result = self.model.refit()
        self.run.primary(
            self.points[first:],
            self.model.rows(first),
            components=result.components,
            n_patterns=result.n_patterns,
            lag=n - 1,
            seconds=result.seconds,
        )
        return result

    def snapshot(self, *, converge: bool = False) -> FitResult:
        result = self.model.refit(converge=converge)
        self.run.snapshot(result, self.points)
        return result

    def show(self) -> None:
        newest = self.model.patterns(len(self.points) - 1)[0]
        row = self.model.rows(len(self.points) - 1)
        self.run.latest(newest, row.reconstruction, self.points[-1])


@pytest.fixture(scope="module")
def everything() -> Session:
    """One analysis run with an event in every stream."""
    session = Session(seed=3)
    session.add(3)
    session.snapshot()
    session.run.reject("raw-1", 4, "NaN at 1 of 12 points")
    session.run.constraint("fix", "unknown 1", 3)
    session.add(2)
    session.show()
    session.snapshot(converge=True)
    session.run.close()
    return session


def feed(reader: AnalysisReader, documents: list[tuple[str, dict[str, Any]]]) -> set[bool]:
    """Hand every document to the reader; gather what it answers."""
    return {reader(name, doc) for name, doc in documents}


def split(documents: list[tuple[str, dict[str, Any]]]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The same documents with single events instead of pages, as a store gives them back."""
    for name, doc in documents:
        if name == "event_page":
            yield from (("event", event) for event in unpack_event_page(doc))
        else:
            yield name, doc


# --- what is emitted ------------------------------------------------------------------------


def test_every_event_holds_what_its_descriptor_promises(everything: Session) -> None:
    # The collector validates each document against the schema of event-model.
    descriptors = everything.out.named("descriptor")

    assert sorted(d["name"] for d in descriptors) == [
        "components",
        "constraints",
        "latest",
        "primary",
        "rejected",
        "weights",
    ]
    for descriptor in descriptors:
        events = everything.out.events(descriptor["name"])
        assert events
        for event in events:
            assert event["data"].keys() == event["timestamps"].keys()
            assert event["data"].keys() == descriptor["data_keys"].keys()
            for key, value in event["data"].items():
                promised = descriptor["data_keys"][key]
                assert list(np.shape(value)) == promised["shape"], key
                assert len(promised["dims"]) == len(promised["shape"]), key
                kind = np.asarray(value).dtype
                assert kind.kind == np.dtype(promised["dtype_numpy"]).kind, key
                if promised["dtype"] == "array":
                    assert kind.str == promised["dtype_numpy"], key


def test_no_key_is_called_time_or_seq_num_and_each_tells_its_source(everything: Session) -> None:
    for descriptor in everything.out.named("descriptor"):
        assert not {"time", "seq_num"} & descriptor["data_keys"].keys()
        for key in descriptor["data_keys"].values():
            assert key["source"]
            assert {"dtype", "dtype_numpy", "shape", "units", "dims"} <= key.keys()


def test_only_the_weights_are_hinted_and_only_in_primary(everything: Session) -> None:
    weights = ["weight_BaTiO3__cubic_", "weight_unknown_1"]
    for descriptor in everything.out.named("descriptor"):
        fields = weights if descriptor["name"] == "primary" else []
        assert descriptor["hints"] == {"cmf": {"fields": fields}}
        assert descriptor["object_keys"] == {"cmf": list(descriptor["data_keys"])}


def test_primary_holds_one_event_for_each_pattern_in_order(everything: Session) -> None:
    data = everything.out.data("primary")

    assert data["temperature"].tolist() == [300, 301, 302, 303, 304]
    assert data["source_seq_num"].tolist() == [1, 2, 3, 4, 5]
    assert set(data["source_run"]) == {"raw-1"}
    assert set(data["source_stream"]) == {"primary"}
    assert data["n_patterns"].tolist() == [3, 3, 3, 5, 5]
    assert data["lag"].tolist() == [2, 2, 2, 1, 1]
    keys = everything.out.named("descriptor")[0]["data_keys"]
    assert keys["temperature"]["units"] == "K"
    assert keys["fit_seconds"]["units"] == "s"
    assert keys["weight_BaTiO3__cubic_"]["source"] == "BaTiO3 (cubic)"


def test_a_snapshot_is_the_components_and_one_page_of_all_weights(everything: Session) -> None:
    result = everything.model.result
    assert result is not None
    last = everything.out.events("components")[-1]["data"]

    assert last["components"].tobytes() == result.components.tobytes()
    assert last["x"].tobytes() == AXIS.values.tobytes()
    assert (last["fit_id"], last["n_patterns"], last["converged"]) == (2, 5, True)
    assert last["objective"] == result.objective
    pages = everything.out.named("event_page")
    assert [len(page["seq_num"]) for page in pages] == [3, 5]
    data = pages[-1]["data"]
    assert data["fit_id"] == [2] * 5
    assert data["pattern"] == [1, 2, 3, 4, 5]
    assert data["temperature"] == [300, 301, 302, 303, 304]
    assert data["weight_unknown_1"] == result.weights[:, 1].astype(float).tolist()


def test_the_axis_goes_with_the_arrays_by_name_and_unit(everything: Session) -> None:
    keys = {d["name"]: d["data_keys"] for d in everything.out.named("descriptor")}

    assert keys["components"]["components"]["dims"] == ["component", "chi_Q"]
    assert keys["components"]["x"]["dims"] == ["chi_Q"]
    assert keys["components"]["x"]["units"] == "1/angstrom"
    assert keys["latest"]["pattern"]["dims"] == ["chi_Q"]


def test_the_start_carries_the_sample_and_not_the_plan_of_the_raw_run(everything: Session) -> None:
    start = everything.out.named("start")[0]

    assert start["uid"] not in ("raw-1", "")
    assert start["original_run_uid"] == "raw-1"
    assert start["parent_uids"] == ["raw-1"]
    assert start["analysis_stage"] == "cmf"
    assert is_analysis(start)
    assert not is_analysis(RAW)
    for key in ("scan_id", "plan_name", "plan_type", "sample"):
        assert start[key] == RAW[key]
    assert not {"plan_args", "detectors", "motors", "num_points"} & start.keys()
    assert start["time"] > RAW["time"]
    assert start["hints"] == {"dimensions": [[["temperature"], "primary"]]}
    assert start["cmf"]["seed"] == 3
    assert [record["name"] for record in start["cmf"]["components"]] == list(NAMES)


def test_a_raw_run_that_tells_nothing_gets_what_other_callbacks_look_up() -> None:
    session = Session(raw={"uid": "bare", "time": 0.0}, variables=(PATTERN_NUMBER,))

    start = session.out.named("start")[0]
    assert (start["plan_name"], start["plan_type"]) == ("unknown", "generator")
    assert start["hints"] == {"dimensions": [[["pattern"], "primary"]]}


@pytest.mark.parametrize(
    ("variables", "carried"), [(2, True), (1, False)], ids=["all dimensions", "one of two"]
)
def test_the_gridding_of_a_map_is_carried_where_all_its_dimensions_are(
    variables: int, carried: bool
) -> None:
    dimensions = [[["x_stage"], "primary"], [["y_stage"], "primary"]]
    raw = {**RAW, "hints": {"dimensions": dimensions, "gridding": "rectilinear"}}

    session = Session(raw=raw, variables=independents([["x_stage"], ["y_stage"]])[:variables])

    assert ("gridding" in session.out.named("start")[0]["hints"]) is carried


def test_variables_of_one_dimension_stand_together_in_the_hints() -> None:
    session = Session(variables=independents([["time"], ["x_stage", "y_stage"]]))

    assert session.out.named("start")[0]["hints"]["dimensions"] == [
        [["elapsed"], "primary"],
        [["x_stage", "y_stage"], "primary"],
    ]


def test_the_stop_counts_the_events_and_lists_every_raw_run() -> None:
    session = Session()
    session.add(2)
    session.add(1, run="raw-2")
    session.run.reject("raw-3", 1, "negative intensity")
    session.add(1, run="raw-1")
    session.snapshot()

    session.run.close("abort", "beam dump")

    stop = session.out.named("stop")[0]
    assert (stop["exit_status"], stop["reason"]) == ("abort", "beam dump")
    assert stop["cmf"]["parent_uids"] == ["raw-1", "raw-2", "raw-3"]
    assert stop["num_events"] == {"primary": 4, "rejected": 1, "components": 1, "weights": 4}


def test_a_run_without_a_usable_pattern_tells_why() -> None:
    out = Collector()
    run = AnalysisRun(out, raw_start=RAW, names=NAMES, variables=(PATTERN_NUMBER,), metadata={})
    run.reject("raw-1", 1, "NaN everywhere")
    run.close()

    assert out.events("rejected")[0]["data"] == {
        "source_run": "raw-1",
        "source_seq_num": 1,
        "reason": "NaN everywhere",
    }
    with pytest.raises(RuntimeError, match="without an axis"):
        run.latest(np.ones(3), np.ones(3), point(0))


def test_a_later_refit_does_not_reach_into_documents_that_are_out() -> None:
    session = Session()
    session.add(3)
    session.snapshot()
    before = session.out.events("components")[0]["data"]["components"].copy()

    session.add(3)
    session.model.refit(converge=True)

    assert np.array_equal(session.out.events("components")[0]["data"]["components"], before)
    assert len(session.out.named("event_page")[0]["seq_num"]) == 3


# --- fractions and errors -------------------------------------------------------------------


def trapezoids(components: np.ndarray) -> np.ndarray:
    return np.array([np.trapezoid(component, AXIS.values) for component in components])


def test_fractions_are_the_parts_of_the_area_as_of_the_fit_that_is_published() -> None:
    session = Session()
    area = trapezoids(session.add(3).components.astype(float))
    parts = session.model.rows().weights * area
    later = session.snapshot(converge=True)
    revised = later.weights.astype(float) * trapezoids(later.components.astype(float))

    for stream, expected in (("primary", parts), ("weights", revised)):
        data = session.out.data(stream)
        found = np.stack([data["fraction_BaTiO3__cubic_"], data["fraction_unknown_1"]], 1)
        np.testing.assert_allclose(found, expected / expected.sum(1, keepdims=True), rtol=1e-6)
        np.testing.assert_allclose(found.sum(1), 1.0)


def test_errors_of_two_fractions_are_one_error_for_they_add_up_to_one() -> None:
    session = Session()
    area = trapezoids(session.add(3).components.astype(float))
    rows = session.model.rows()
    a, b = (rows.weights * area).T
    # Of a/(a + b): (b da - a db)/(a + b)²
    slope = np.stack([b * area[0], -a * area[1]], 1) / ((a + b) ** 2)[:, None]
    expected = np.sqrt(np.einsum("nj,njk,nk->n", slope, rows.covariance, slope))

    data = session.out.data("primary")
    for key in ("fraction_BaTiO3__cubic__error", "fraction_unknown_1_error"):
        np.testing.assert_allclose(data[key], expected, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize(
    ("metadata", "noise"),
    [
        ({}, "taken from the residual"),
        ({"errors": None}, "taken from the residual"),
        ({"errors": "counts"}, "of counting, taken from the residual where a pattern has none"),
        (
            {"errors": "chi_sigma"},
            "from the standard errors in 'chi_sigma', taken from the residual where a pattern has "
            "none",
        ),
    ],
)
def test_a_key_tells_what_its_error_takes_as_exact_and_where_its_noise_is_from(
    metadata: dict[str, Any], noise: str
) -> None:
    session = Session(**metadata)
    session.add(1)

    keys = session.out.named("descriptor")[0]["data_keys"]

    for key in ("weight_unknown_1_error", "fraction_unknown_1_error"):
        assert keys[key]["source"] == (
            f"standard error, given the components' shapes at this fit; noise {noise}"
        )
    assert keys["fraction_unknown_1"]["source"].endswith("unknown 1")


def empty_and_twice() -> Session:
    """A pattern of nothing, whose parts are not defined, and phases that cannot be told apart."""
    session = Session(names=("known", "twin"))
    session.model = StreamingNMF(F, 2, components=[np.ones(F)] * 2, fixed=[True, True])
    session.points = [point(0), point(1)]
    session.model.append(np.stack([np.zeros(F), patterns(1)[0]]))
    result = session.model.refit()
    session.run.primary(
        session.points,
        session.model.rows(),
        components=result.components,
        n_patterns=2,
        lag=0,
        seconds=0.0,
    )
    session.snapshot()
    session.run.close()
    return session


def test_what_is_not_defined_is_nan() -> None:
    reader = read_analysis(empty_and_twice().out.documents)

    np.testing.assert_allclose(reader.fractions, [[np.nan] * 2, [0.5] * 2], rtol=1e-3)
    np.testing.assert_array_equal(reader.fraction_errors, [[np.nan] * 2, [np.nan] * 2])
    np.testing.assert_array_equal(reader.errors, [[0.0] * 2, [np.nan] * 2])


@pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")
@pytest.mark.filterwarnings("ignore::zarr.errors.UnstableSpecificationWarning")
@pytest.mark.parametrize("store", ["folder", "databroker"])
def test_fractions_and_errors_come_back_from_a_catalog(
    store: str, everything: Session, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BLUESKY_CMF_SPOOL", str(tmp_path / "spool"))
    where = tmp_path / "catalog" if store == "folder" else databroker.temp()
    with open_catalog(where) as catalog:
        for session in (everything, empty_and_twice()):
            writer = catalog.writer()
            for name, doc in session.out.documents:
                writer(name, doc)
            assert writer.flush(30) and writer.error is None
            writer.close()

            stored = list(catalog.documents(session.run.uid))

            for name, doc in stored:
                schema_validators[DocumentNames[name]].validate(doc)
            live, back = read_analysis(session.out.documents), read_analysis(stored)
            for key in KNOWN:
                np.testing.assert_array_equal(getattr(back, key), getattr(live, key), key)


def test_a_run_that_was_written_without_fractions_is_read() -> None:
    session = Session()
    session.add(2)
    session.snapshot()
    session.add(1)
    documents = [(name, dict(doc)) for name, doc in session.out.documents]
    for name, doc in documents:
        if name in ("event", "event_page"):
            doc["data"] = {k: v for k, v in doc["data"].items() if not k.startswith("fraction_")}

    for given_back in (documents, list(split(documents))):
        reader = read_analysis(given_back)

        assert np.isnan(reader.fractions).all() and reader.fractions.shape == (3, 2)
        assert np.isnan(reader.fraction_errors).all()
        known = read_analysis(session.out.documents)
        np.testing.assert_array_equal(reader.weights, known.weights)
        np.testing.assert_array_equal(reader.positions, known.positions)


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["cubic"], ["weight_cubic"]),
        (["BaTiO3 (cubic)"], ["weight_BaTiO3__cubic_"]),
        (["α/β.γ"], ["weight______"]),
        (["a b", "a.b", "a/b"], ["weight_a_b", "weight_a_b_2", "weight_a_b_3"]),
        (["a_2", "a", "a"], ["weight_a_2", "weight_a", "weight_a_3"]),
        # The error of one is never the weight of another.
        (["a", "a_error"], ["weight_a", "weight_a_error_2"]),
        (["a_error", "a"], ["weight_a_error", "weight_a_2"]),
        ([""], ["weight_"]),
        ([], []),
    ],
)
def test_a_component_name_becomes_a_key(names: list[str], expected: list[str]) -> None:
    assert weight_keys(names) == expected


@settings(deadline=None)
@given(st.lists(st.sampled_from(["a", "a_error", "a_2", "a_2_error", "a.", "a/"]) | st.text()))
def test_keys_are_plain_and_differ_from_each_other_and_from_the_errors(names: list[str]) -> None:
    keys = weight_keys(names)
    every = [*keys, *fraction_keys(names)]
    every += [f"{key}_error" for key in every]

    assert len(keys) == len(names)
    assert len(set(every)) == len(every)
    assert all(re.fullmatch(r"weight_[A-Za-z0-9_]*", key) for key in keys)
    # Who finds the one key finds the other.
    assert [f"fraction_{key.removeprefix('weight_')}" for key in keys] == fraction_keys(names)


def test_the_keys_of_components_do_not_change_where_others_follow() -> None:
    names = ["a", "a.", "a_error", "b"]

    for n in range(len(names)):
        assert weight_keys(names[:n]) == weight_keys(names)[:n]


@pytest.mark.parametrize(
    ("dimensions", "expected"),
    [
        ([["temperature"]], [("temperature", "temperature", "", 0)]),
        ([["time"]], [("time", "elapsed", "s", 0)]),
        ([["time"], ["elapsed"]], [("time", "elapsed", "s", 0), ("elapsed", "raw_elapsed", "", 1)]),
        ([["x", "y"]], [("x", "raw_x", "", 0), ("y", "y", "", 0)]),
        ([["raw_x"], ["x"]], [("raw_x", "raw_x", "", 0), ("x", "raw_raw_x", "", 1)]),
        ([["weight_kg"]], [("weight_kg", "raw_weight_kg", "", 0)]),
        ([["fraction_a"]], [("fraction_a", "raw_fraction_a", "", 0)]),
        ([["seq_num"], ["lag"]], [("seq_num", "raw_seq_num", "", 0), ("lag", "raw_lag", "", 1)]),
        ([["t"], ["t"]], [("t", "t", "", 0)]),
        ([], []),
        ([[]], []),
    ],
)
def test_a_dimension_of_the_scan_becomes_a_key(
    dimensions: list[list[str]], expected: list[tuple[str, str, str, int]]
) -> None:
    assert independents(dimensions) == tuple(Independent(*each) for each in expected)


@settings(deadline=None)
@given(
    st.lists(
        st.lists(
            st.sampled_from(["time", "elapsed", "raw_elapsed", "x", "raw_x", "pattern"])
            | st.text(min_size=1)
        )
    )
)
def test_each_field_becomes_one_key_that_nothing_else_claims(dimensions: list[list[str]]) -> None:
    variables = independents(dimensions)

    fields = [field for dimension in dimensions for field in dimension]
    assert [variable.field for variable in variables] == list(dict.fromkeys(fields))
    keys = [variable.key for variable in variables]
    assert len(set(keys)) == len(keys)
    session = {"r_factor", "pattern", "fit_id", "n_patterns", "lag", "time", "seq_num", "x"}
    assert not session & set(keys)


def test_the_hash_of_a_component_tells_its_values_apart() -> None:
    values = np.arange(4.0)

    def digest(array: np.ndarray | None) -> Any:
        return component_record("a", fixed=True, origin="array", values=array)["sha256"]

    assert digest(values) == digest(values.copy()) == digest(np.arange(8.0)[:4])
    assert digest(values) == digest(np.repeat(values, 2)[::2])
    assert digest(values) != digest(values + np.finfo(float).eps)
    assert digest(None) is None


# --- when -----------------------------------------------------------------------------------


class Clock:
    """Stands where the module looks the time up."""

    now = 1000.0

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        stand_in = SimpleNamespace(monotonic=lambda: self.now, time=time.time)
        monkeypatch.setattr(run_module, "time", stand_in)


def test_a_snapshot_is_due_after_a_second_and_a_quarter_more_patterns(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, session = Clock(monkeypatch), Session()
    session.add(8)
    assert session.run.wants_snapshot(8)
    session.snapshot()

    clock.now += 0.9
    assert not session.run.wants_snapshot(100)
    clock.now += 0.2
    assert not session.run.wants_snapshot(10)
    assert session.run.wants_snapshot(11)
    assert session.run.fit_id == 1


def test_snapshots_grow_in_proportion_to_the_patterns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, session = Clock(monkeypatch), Session(names=("known",))
    n_patterns, fitted, stored = 2000, 0, 0
    session.points = [point(n) for n in range(n_patterns)]
    for n in range(1, n_patterns + 1):
        clock.now += 2.0
        if session.run.wants_snapshot(n):
            session.model.append(patterns(n)[fitted:])
            session.snapshot()
            fitted, stored = n, stored + n

    assert stored <= 6 * n_patterns
    assert session.run.fit_id > 20


def test_the_newest_pattern_is_shown_a_few_times_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, session = Clock(monkeypatch), Session()
    session.add(1)
    shown = 0
    for _ in range(1000):
        clock.now += 0.01
        if session.run.wants_latest():
            session.show()
            shown += 1

    assert 30 <= shown <= 40


# --- read back ------------------------------------------------------------------------------


@pytest.mark.parametrize("single", [False, True], ids=["as emitted", "row by row"])
def test_what_was_written_is_read_back(everything: Session, single: bool) -> None:
    documents = everything.out.documents
    result = everything.model.result
    assert result is not None

    reader = read_analysis(split(documents) if single else documents)

    assert reader.start == everything.out.named("start")[0]
    assert reader.stop == everything.out.named("stop")[0]
    assert reader.uid == everything.run.uid
    assert reader.names == NAMES
    assert reader.fixed == (True, True)
    assert reader.changes == [(3, "fix", "unknown 1")]
    assert reader.rejected == [(4, "NaN at 1 of 12 points")]
    assert reader.variables == ("temperature",)
    assert reader.units == {"temperature": "K"}
    assert (reader.n_patterns, reader.n_before) == (5, 0)
    assert reader.positions.tolist() == [[300], [301], [302], [303], [304]]
    assert reader.weights.astype(np.float32).tobytes() == result.weights.tobytes()
    data = everything.out.data("primary")
    for key in ("r_factor", "unexplained", "lag", "fit_seconds"):
        assert np.array_equal(getattr(reader, key), data[key])
    assert np.array_equal(reader.errors[:, 1], data["weight_unknown_1_error"])
    assert reader.components is not None
    assert reader.components.tobytes() == result.components.tobytes()
    assert (reader.objective, reader.converged) == (result.objective, True)
    assert (reader.fit_id, reader.fit_patterns) == (2, 5)
    assert reader.axis is not None
    assert (reader.axis.name, reader.axis.units) == ("chi_Q", "1/angstrom")
    assert np.array_equal(reader.axis.values, AXIS.values)
    assert reader.latest is not None
    assert reader.latest.source_seq_num == 5
    np.testing.assert_array_equal(reader.latest.pattern, everything.model.patterns(4)[0])


def test_a_page_of_primary_is_read_as_its_events_are(everything: Session) -> None:
    session = Session()
    session.add(4)
    events = session.out.events("primary")
    page = {
        "descriptor": events[0]["descriptor"],
        **{key: [event[key] for event in events] for key in ("uid", "time", "seq_num")},
        **{
            part: {key: [event[part][key] for event in events] for key in events[0][part]}
            for part in ("data", "timestamps")
        },
        "filled": {},
    }

    one_by_one = read_analysis(session.out.documents)
    paged = read_analysis([*session.out.documents[:2], ("event_page", page)])

    for key in KNOWN:
        assert np.array_equal(getattr(paged, key), getattr(one_by_one, key), equal_nan=True)


def test_a_run_that_has_just_begun_is_empty_and_has_its_shapes() -> None:
    reader = read_analysis(Session().out.documents)

    assert reader.weights.shape == (0, 2)
    assert reader.positions.shape == (0, 1)
    assert reader.errors.shape == reader.fraction_errors.shape == (0, 2)
    assert reader.fractions.shape == (0, 2)
    assert reader.r_factor.shape == (0,)
    assert (reader.components, reader.latest, reader.axis, reader.stop) == (None,) * 4


def test_a_reader_that_has_seen_nothing_can_be_asked() -> None:
    reader = AnalysisReader()

    assert reader.uid is None
    assert reader.n_patterns == 0
    assert reader.weights.shape == reader.fractions.shape == reader.positions.shape == (0, 0)
    assert not reader("stop", {"run_start": "other"})


@pytest.mark.parametrize("single", [False, True])
def test_weights_are_those_of_the_last_snapshot_and_then_those_published(single: bool) -> None:
    session = Session()
    session.add(3)
    revised = session.snapshot(converge=True).weights
    session.add(2)
    documents = session.out.documents

    reader = read_analysis(split(documents) if single else documents)

    assert np.array_equal(reader.weights[:3], revised)
    data = session.out.data("primary")
    assert np.array_equal(reader.weights[3:, 0], data["weight_BaTiO3__cubic_"][3:])


def test_a_snapshot_of_which_half_has_been_read_leaves_no_pattern_out() -> None:
    session = Session()
    session.add(4)
    session.snapshot()
    session.add(2)
    session.snapshot()
    documents = list(split(session.out.documents))
    reader = AnalysisReader()
    for name, doc in documents[:-3]:
        reader(name, doc)

    assert reader.weights.shape == (6, 2)
    assert reader.positions[:, 0].tolist() == [300, 301, 302, 303, 304, 305]


@pytest.mark.parametrize("single", [False, True])
def test_a_run_that_continues_another_holds_all_patterns(single: bool) -> None:
    first = Session()
    first.add(3)
    first.run.close()
    names = (*NAMES, "late")
    second = Session(names=names, continues=first.run.uid)
    second.points = list(first.points)
    second.model.append(patterns(3))
    second.snapshot()
    second.add(2)
    last = second.snapshot().weights
    second.add(1)
    documents = second.out.documents

    reader = read_analysis(split(documents) if single else documents)

    assert reader.names == names
    assert (reader.n_patterns, reader.n_before) == (6, 3)
    assert reader.positions[:, 0].tolist() == [300, 301, 302, 303, 304, 305]
    assert np.array_equal(reader.weights[:5], last)
    assert reader.weights.shape == (6, 3)
    # What is published with a pattern is there for the patterns of this run.
    assert reader.r_factor.shape == (3,)


def test_who_subscribed_late_knows_the_weights_before_once_a_snapshot_has_come() -> None:
    session = Session()
    session.add(3)
    opening = [(name, doc) for name, doc in session.out.documents if name != "event"]
    before = len(session.out.documents)
    session.add(2)
    reader = read_analysis([*opening, *session.out.documents[before:]])
    assert (reader.n_patterns, reader.n_before) == (5, 3)
    assert np.isnan(reader.weights[:3]).all()
    assert np.array_equal(reader.weights[3:, 0], session.out.data("primary")[NAME][3:])

    before = len(session.out.documents)
    revised = session.snapshot().weights
    for name, doc in session.out.documents[before:]:
        reader(name, doc)

    assert np.array_equal(reader.weights, revised)


NAME = "weight_BaTiO3__cubic_"


def test_a_reader_follows_the_analysis_that_started_last_and_nothing_else() -> None:
    one, two = Session(), Session(names=("other",))
    reader = AnalysisReader()
    raw = compose_run(metadata={"plan_name": "scan"})
    assert not reader("start", raw.start_doc)
    assert reader(*one.out.documents[0])
    one.add(1)
    assert feed(reader, one.out.documents[1:]) == {True}

    assert reader(*two.out.documents[0])

    assert reader.names == ("other",)
    assert reader.n_patterns == 0
    one.add(1)
    one.run.close()
    assert feed(reader, one.out.documents[3:]) == {False}
    assert not reader("descriptor", one.out.named("descriptor")[0])
    assert not reader("stop", raw.compose_stop())
    two.add(2)
    assert feed(reader, two.out.documents[1:]) == {True}
    assert reader.weights.shape == (2, 1)
    assert reader.stop is None


def test_a_change_of_constraints_is_followed() -> None:
    session = Session()
    session.add(1)
    for action, name in (("fix", "unknown 1"), ("release", NAMES[0]), ("add", "late")):
        session.run.constraint(action, name, 1)

    reader = read_analysis(session.out.documents)

    assert reader.fixed == (False, True)
    assert [action for _, action, _ in reader.changes] == ["fix", "release", "add"]


def test_the_documents_are_left_as_they_are(everything: Session) -> None:
    before = [(name, repr(doc)) for name, doc in everything.out.documents]

    reader = read_analysis(everything.out.documents)
    reader.weights[:] = 0
    reader.positions[:] = 0

    assert [(name, repr(doc)) for name, doc in everything.out.documents] == before


@settings(deadline=None, max_examples=25)
@given(st.lists(st.sampled_from(["add", "add more", "snapshot"]), max_size=6))
def test_live_and_row_by_row_tell_the_same(steps: list[str]) -> None:
    session = Session()
    for step in ["add", *steps]:
        if step == "snapshot":
            session.snapshot()
        else:
            session.add(1 if step == "add" else 3)
    live = read_analysis(session.out.documents)

    stored = read_analysis(split(session.out.documents))

    assert live.n_patterns == len(session.points)
    for key in KNOWN:
        assert np.array_equal(getattr(live, key), getattr(stored, key), equal_nan=True)
    assert live.positions[:, 0].tolist() == [p.position[0] for p in session.points]

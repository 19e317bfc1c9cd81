"""LiveNMF: documents in, an analysis run out, and a scan that notices nothing."""

import contextlib
import copy
import logging
import subprocess
import sys
import threading

import bluesky.plan_stubs as bps
import bluesky.plans as bp
import numpy as np
import pytest
import torch
from bluesky.utils import RunEngineInterrupted

from bluesky_cmf import LiveNMF, Phase, Preprocess, StreamingNMF
from bluesky_cmf.errors import ComponentError, DataKeyError, InputError
from bluesky_cmf.nmf.divergences import beta_divergence
from tests.streams import (
    Collector,
    Detector,
    EventAxisDetector,
    axis,
    engine,
    mixtures,
    run_documents,
)

X, H, PATTERNS = mixtures()
PURE = Phase.from_array("cubic", X, H[0])


@pytest.fixture
def live():
    made = []

    def make(pattern="chi_I", **kwargs):
        callback = LiveNMF(pattern, **{"x": "chi_Q", "device": "cpu", **kwargs})
        collector = Collector()
        callback.subscribe(collector)
        made.append(callback)
        return callback, collector

    yield make
    for callback in made:
        assert callback.close(30)


def feed(callback, documents):
    for name, doc in documents:
        callback(name, doc)


def replayed(live, documents, **kwargs):
    callback, collector = live(background=False, **kwargs)
    feed(callback, documents)
    return callback, collector


# --- a real RunEngine ----------------------------------------------------------------------


@pytest.mark.parametrize("detector", [Detector, EventAxisDetector])
def test_a_scan_becomes_an_analysis_run(live, detector):
    callback, out = live(phases=[PURE], n_components=2)
    RE = engine()
    RE.subscribe(callback)
    RE(bp.scan([detector(PATTERNS, X)], axis(), 300, 400, len(PATTERNS)), sample="BaTiO3")
    assert callback.wait(30)
    assert callback.error is None

    (start,) = out.named("start")
    assert start["analysis_stage"] == "cmf"
    assert start["sample"] == "BaTiO3"
    assert start["plan_name"] == "scan"
    assert start["hints"] == {"dimensions": [[["temperature"], "primary"]]}
    primary = out.data("primary")
    assert primary["source_seq_num"].tolist() == list(range(1, len(PATTERNS) + 1))
    np.testing.assert_allclose(primary["temperature"], np.linspace(300, 400, len(PATTERNS)))
    assert out.named("stop")[-1]["exit_status"] == "success"
    last = out.events("components")[-1]["data"]
    assert last["n_patterns"] == len(PATTERNS)
    np.testing.assert_array_equal(last["components"][0], H[0].astype("f4"))
    weights = [row["data"]["weight_cubic"] for row in out.events("weights")][-len(PATTERNS) :]
    np.testing.assert_allclose(weights, np.linspace(1, 0, len(PATTERNS)), atol=1e-3)


def test_known_phases_are_bit_identical_and_real_data_reach_the_objective(live, batio3):
    phases = [
        Phase.from_array("first", batio3.two_theta, batio3.intensity[0]),
        Phase.from_array("last", batio3.two_theta, batio3.intensity[-1]),
    ]
    callback, out = live(phases=phases, n_components=4)
    RE = engine()
    RE.subscribe(callback)
    detector = Detector(batio3.intensity, batio3.two_theta)
    RE(bp.list_scan([detector], axis(), list(batio3.temperature)))
    assert callback.wait(60)
    last = out.events("components")[-1]["data"]
    assert last["objective"] <= 0.1965
    assert last["converged"]
    np.testing.assert_array_equal(last["components"][0], batio3.intensity[0])
    np.testing.assert_array_equal(last["components"][1], batio3.intensity[-1])

    again, _ = live(phases=phases, n_components=4, background=False)
    documents = run_documents(batio3.intensity, x=batio3.two_theta, paged=True)
    feed(again, documents)
    assert again.result.objective == pytest.approx(last["objective"], rel=1e-3)


def test_counts_are_fitted_by_their_likelihood_in_a_scan(live):
    counts = np.random.default_rng(0).poisson(200 * PATTERNS)
    callback, out = live(phases=[PURE], n_components=2, loss="kullback-leibler")
    RE = engine()
    RE.subscribe(callback)
    RE(bp.scan([Detector(counts, X)], axis(), 300, 400, len(counts)))
    assert callback.wait(60)

    assert callback.error is None
    assert out.named("start")[0]["cmf"]["loss"] == "kullback-leibler"
    last = out.events("components")[-1]["data"]
    WH = callback.result.weights.astype(float) @ callback.result.components
    expected = beta_divergence(torch.tensor(counts), torch.tensor(WH), 1.0)
    assert last["objective"] == pytest.approx(float(expected), rel=1e-4)
    assert last["converged"]


def test_a_fit_slower_than_the_events_loses_no_pattern(live, monkeypatch):
    """The scan ends while the first refit still runs: the rest is fitted in one go."""
    refit, may_go_on = StreamingNMF.refit, threading.Event()

    def slow(model, *args, **kwargs):
        assert may_go_on.wait(30)
        return refit(model, *args, **kwargs)

    monkeypatch.setattr(StreamingNMF, "refit", slow)
    callback, out = live(n_components=2)
    RE = engine()
    RE.subscribe(callback)
    RE(bp.scan([Detector(PATTERNS, X)], axis(), 1, 2, len(PATTERNS)))
    assert not callback.wait(0.0)
    may_go_on.set()
    assert callback.wait(30)
    seen = out.data("primary")
    assert seen["source_seq_num"].tolist() == list(range(1, len(PATTERNS) + 1))
    assert seen["n_patterns"][-1] == callback.result.n_patterns == len(PATTERNS)
    assert (np.diff(seen["n_patterns"]) == 0).any(), "refits were not coalesced"


def test_a_paused_and_rewound_plan_keeps_every_measured_pattern(live):
    callback, out = live(n_components=2)
    RE = engine()
    RE.subscribe(callback)
    detector, motor = Detector(np.repeat(PATTERNS, 2, axis=0), X), axis()

    def plan():
        yield from bps.open_run({"hints": {"dimensions": [[["temperature"], "primary"]]}})
        yield from bps.checkpoint()
        yield from bps.trigger_and_read([detector, motor])
        yield from bps.trigger_and_read([detector, motor])
        yield from bps.pause()
        yield from bps.trigger_and_read([detector, motor])
        yield from bps.close_run()

    with pytest.raises(RunEngineInterrupted):
        RE(plan())
    RE.resume()
    assert callback.wait(30)
    # Two events before the pause, and the same two again after the rewind.
    assert out.data("primary")["source_seq_num"].tolist() == [1, 2, 1, 2, 3]


def test_an_aborted_scan_gives_an_aborted_analysis_of_what_was_measured(live):
    callback, out = live(n_components=2)
    RE = engine()
    RE.subscribe(callback)
    with pytest.raises(RuntimeError, match="StopIteration"):
        RE(bp.scan([Detector(PATTERNS[:5], X)], axis(), 1, 2, 10))
    assert callback.wait(30)
    assert len(out.events("primary")) == 5
    assert out.named("stop")[0]["exit_status"] == "fail"
    assert out.events("components")[-1]["data"]["n_patterns"] == 5


# --- the same data, the same answer --------------------------------------------------------


def test_events_and_pages_and_the_background_end_alike(live):
    documents = run_documents(mixtures(noise=0.02)[2], x=X)
    one, _ = replayed(live, documents, n_components=2)
    paged, _ = replayed(
        live, run_documents(mixtures(noise=0.02)[2], x=X, paged=True), n_components=2
    )
    background, _ = live(n_components=2)
    feed(background, documents)
    assert background.wait(30)
    for other in (paged, background):
        assert other.result.objective == pytest.approx(one.result.objective, rel=1e-3)
        unit = [
            r.components / np.linalg.norm(r.components, axis=1)[:, None]
            for r in (one.result, other.result)
        ]
        overlap = unit[0] @ unit[1].T
        assert overlap.max(1).min() > 0.999


def test_documents_are_left_as_they_are(live):
    documents = run_documents(PATTERNS, x=X)
    before = copy.deepcopy(documents)
    replayed(live, documents, n_components=2)
    for (_, was), (_, now) in zip(before, documents, strict=True):
        np.testing.assert_equal(now, was)


def test_a_detector_may_use_its_buffer_again(live):
    callback, _ = live(n_components=2)
    buffer = np.zeros_like(X)
    documents = run_documents([buffer] * len(PATTERNS), x=X)
    patterns = iter(PATTERNS)
    for name, doc in documents:
        if name == "event":
            buffer[:] = next(patterns)
        callback(name, doc)
        if name == "event":
            buffer[:] = 777.0
    assert callback.wait(30)
    np.testing.assert_allclose(
        callback.result.weights @ callback.result.components, PATTERNS, atol=1e-3
    )


def test_interleaved_runs_are_kept_apart(live):
    callback, out = live(n_components=2, background=False)
    one, two = run_documents(PATTERNS, x=X), run_documents(2 * PATTERNS[:, ::-1], x=X)
    for pair in zip(one, two, strict=True):
        feed(callback, pair)
    starts, stops = out.named("start"), out.named("stop")
    assert [s["original_run_uid"] for s in starts] == [one[0][1]["uid"], two[0][1]["uid"]]
    assert len(stops) == 2
    sources = out.data("primary")["source_run"]
    assert (sources[::2] == one[0][1]["uid"]).all() and (sources[1::2] == two[0][1]["uid"]).all()


def test_analysis_runs_are_passed_over(live):
    callback, out = live(background=False, n_components=2)
    callback.subscribe(callback)
    feed(callback, run_documents(PATTERNS, x=X))
    assert len(out.named("start")) == 1


# --- where things stand in the documents ---------------------------------------------------


def test_a_data_key_is_found_by_its_unique_suffix(live):
    documents = run_documents(PATTERNS, x=X, key="xpd_det_chi_I", x_key="xpd_det_chi_Q")
    callback, out = replayed(live, documents, n_components=2)
    assert callback.error is None
    key = out.named("descriptor")[1]["data_keys"]["x"]
    assert (key["units"], key["dims"]) == ("1/angstrom", ["xpd_det_chi_Q"])


def test_an_ambiguous_suffix_names_the_keys(live):
    documents = run_documents(PATTERNS, x=X, key="a_chi_I", x_key="b_chi_I")
    callback, _out = replayed(live, documents, x=None)
    assert isinstance(callback.error, DataKeyError)
    assert "['a_chi_I', 'b_chi_I']" in str(callback.error)


def test_a_missing_data_key_is_reported_once_with_the_keys_that_are_there(live, caplog):
    documents = run_documents(PATTERNS, x=X)
    with caplog.at_level(logging.ERROR):
        callback, out = replayed(live, documents, pattern="chi_X")
    assert isinstance(callback.error, DataKeyError)
    assert "['chi_I', 'chi_Q', 'temperature']" in str(callback.error)
    assert len(caplog.records) == 1
    (rejected,) = out.events("rejected")
    assert "chi_X" in rejected["data"]["reason"]
    assert callback.result is None


@pytest.mark.parametrize("given", [X, list(X)])
def test_the_axis_may_be_given(live, given):
    callback, out = replayed(live, run_documents(PATTERNS), x=given, n_components=2)
    assert callback.error is None
    np.testing.assert_array_equal(out.events("components")[0]["data"]["x"], X)


def test_without_an_axis_the_index_is_the_axis(live):
    _, out = replayed(live, run_documents(PATTERNS), x=None, n_components=2)
    np.testing.assert_array_equal(out.events("components")[0]["data"]["x"], np.arange(len(X)))


def test_the_position_may_stand_in_the_start_document(live):
    callback, out = live(scope="session", independent="setpoint", n_components=2, background=False)
    for n, pattern in enumerate(PATTERNS[:4]):
        feed(callback, run_documents([pattern], x=X, metadata={"setpoint": 100.0 + n}))
    callback.reset()
    assert out.data("primary")["setpoint"].tolist() == [100.0, 101.0, 102.0, 103.0]
    assert len(out.named("start")) == len(out.named("stop")) == 1
    assert len(out.named("stop")[0]["cmf"]["parent_uids"]) == 4
    assert len(set(out.data("primary")["source_run"])) == 4


def test_time_becomes_elapsed_and_no_dimension_the_pattern_number(live):
    counted = {"hints": {"dimensions": [[["time"], "primary"]]}}
    _, out = replayed(live, run_documents(PATTERNS, x=X, metadata=counted), n_components=2)
    assert out.named("start")[0]["hints"]["dimensions"] == [[["elapsed"], "primary"]]
    assert (out.data("primary")["elapsed"] >= 0).all()
    _, out = replayed(live, run_documents(PATTERNS, x=X, metadata={"hints": {}}), n_components=2)
    assert out.named("start")[0]["hints"]["dimensions"] == [[["pattern"], "primary"]]
    assert out.data("primary")["pattern"].tolist() == list(range(1, len(PATTERNS) + 1))


def test_every_dimension_of_a_grid_becomes_a_key(live):
    callback, out = live(n_components=2)
    RE = engine()
    RE.subscribe(callback)
    RE(bp.grid_scan([Detector(PATTERNS, X)], axis("y"), 0, 1, 4, axis("x"), 0, 1, 5))
    assert callback.wait(30)
    (start,) = out.named("start")
    assert start["hints"]["dimensions"] == [[["y"], "primary"], [["raw_x"], "primary"]]
    assert start["shape"] == [4, 5] or tuple(start["shape"]) == (4, 5)
    assert {"y", "raw_x"} <= set(out.data("primary"))


# --- patterns that cannot be used ----------------------------------------------------------


def test_bad_patterns_are_rejected_with_a_reason_and_the_rest_is_used(live):
    nan, negative = PATTERNS[0].copy(), PATTERNS[0].copy()
    nan[3], negative[:2] = np.nan, -0.25
    bad = [nan, negative, PATTERNS[0][:-1], "not a pattern", [[1.0, 2.0]], [0.0]]
    callback, out = replayed(live, run_documents([*PATTERNS, *bad], x=X), n_components=2)
    rejected = out.data("rejected")
    assert len(out.events("primary")) == len(PATTERNS)
    assert rejected["source_seq_num"].tolist() == list(range(len(PATTERNS) + 1, len(PATTERNS) + 7))
    for reason, words in zip(
        rejected["reason"],
        [
            "NaN or infinity at 1 of 200 points",
            "negative intensity at 2 of 200 points, the lowest -0.25",
            "got 200 for 199",
            "expected numbers of shape (F,)",
            "got 200 for 2",
            "a placeholder stands in the place of the pattern: [0.0]",
        ],
        strict=True,
    ):
        assert words in reason
    assert callback.result.n_patterns == len(PATTERNS)


def test_a_phase_that_does_not_cover_the_data_is_refused(live):
    half = Phase.from_array("half", X[:100], H[0][:100])
    callback, out = replayed(live, run_documents(PATTERNS, x=X), phases=[half])
    assert "phase 'half' covers 1 to 2.98995 but the data's axis is 1 to 5" in str(callback.error)
    assert len(out.events("rejected")) == len(PATTERNS)
    cropped, _ = replayed(
        live, run_documents(PATTERNS, x=X), phases=[half], preprocess=Preprocess(roi=(1.0, 2.9))
    )
    assert cropped.error is None
    np.testing.assert_array_equal(cropped.result.components[0], H[0][X <= 2.9].astype("f4"))


def test_another_axis_is_interpolated(live):
    callback, _ = live(n_components=2, background=False)
    documents = run_documents(PATTERNS, x=X)
    wider = np.linspace(0.5, 5.5, 700)
    event = next(doc for name, doc in documents if name == "event")
    event["data"] |= {"chi_Q": wider, "chi_I": np.interp(wider, X, PATTERNS[0])}
    # The first pattern sets the axis; the others do not cover it and are rejected.
    feed(callback, documents)
    assert callback.result.n_patterns == 1


def test_an_event_that_came_before_is_not_a_second_pattern(live):
    callback, out = live(n_components=2, background=False)
    for name, doc in run_documents(PATTERNS, x=X):
        callback(name, doc)
        callback(name, doc)
    assert callback.result.n_patterns == len(PATTERNS)
    assert len(out.events("rejected")) == len(PATTERNS)
    assert "came before" in out.events("rejected")[0]["data"]["reason"]


def test_an_unsigned_axis_that_turns_back_is_rejected(live):
    zigzag = np.r_[np.arange(100), 50, np.arange(101, 200)].astype("u4")
    _, out = replayed(live, run_documents(PATTERNS, x=zigzag), n_components=2)
    assert len(out.events("rejected")) == len(PATTERNS)


def test_integers_are_normalised_as_numbers(live):
    counts = (60_000 * PATTERNS).astype("u2")
    ends = [
        replayed(live, run_documents(values, x=X), preprocess=Preprocess(normalize="area"))[0]
        for values in (counts, counts.astype(float))
    ]
    assert ends[0].result.objective == ends[1].result.objective


@pytest.mark.parametrize(
    "hints",
    [
        "junk",
        {"dimensions": [["T"]]},
        {"dimensions": [(None, "primary")]},
        {"dimensions": [([["T"]], "primary")]},
    ],
)
def test_hints_that_cannot_be_read_cost_no_pattern(live, hints):
    callback, out = live(n_components=2, background=False)
    documents = run_documents(PATTERNS, x=X)
    documents[0][1]["hints"] = hints
    feed(callback, documents)
    assert len(out.events("primary")) == len(PATTERNS)
    assert out.named("start")[0]["hints"]["dimensions"] == [[["pattern"], "primary"]]


def test_odd_events_are_accounted_for(live):
    callback, out = live(n_components=2, background=False)
    documents = run_documents(PATTERNS, x=X)
    events = [doc for name, doc in documents if name == "event"]
    events[3]["seq_num"] = None
    events[4]["time"] = None
    events[5]["data"]["temperature"] = [1, [2]]
    feed(callback, documents)
    # None of these are needed: the patterns are measured, and what is missing is NaN or 0.
    assert len(out.events("primary")) == len(PATTERNS) and not out.events("rejected")
    data = out.data("primary")
    assert data["source_seq_num"][3] == 0 and np.isnan(data["temperature"][5])


def test_other_scans_do_not_decide_what_a_session_is_drawn_against(live, caplog):
    callback, out = live(scope="session", independent="setpoint", n_components=2, background=False)
    feed(callback, run_documents([[1.0, 2.0]], key="slit"))
    assert isinstance(callback.error, DataKeyError)
    assert not out.documents
    for n, pattern in enumerate(PATTERNS[:3]):
        feed(callback, run_documents([pattern], x=X, metadata={"setpoint": 100.0 + n}))
    callback.reset()
    assert out.data("primary")["setpoint"].tolist() == [100.0, 101.0, 102.0]


# --- faults --------------------------------------------------------------------------------


def test_a_fit_that_fails_once_keeps_the_patterns_for_the_next(live, monkeypatch, caplog):
    refit, calls = StreamingNMF.refit, []

    def flaky(model, *args, **kwargs):
        calls.append(1)
        if len(calls) == 3:
            raise RuntimeError("no memory left")
        return refit(model, *args, **kwargs)

    monkeypatch.setattr(StreamingNMF, "refit", flaky)
    with caplog.at_level(logging.ERROR):
        callback, out = replayed(live, run_documents(PATTERNS, x=X), n_components=2)
    assert out.data("primary")["source_seq_num"].tolist() == list(range(1, len(PATTERNS) + 1))
    assert "no memory left" in str(callback.error)
    assert out.named("stop")[0]["exit_status"] == "success"


def test_a_fit_that_always_fails_rejects_the_patterns_and_says_why(live, monkeypatch, caplog):
    def broken(model, *args, **kwargs):
        raise RuntimeError("no memory left")

    monkeypatch.setattr(StreamingNMF, "refit", broken)
    with caplog.at_level(logging.ERROR):
        _, out = replayed(live, run_documents(PATTERNS, x=X), n_components=2)
    assert len(out.events("rejected")) == len(PATTERNS)
    (stop,) = out.named("stop")
    assert stop["exit_status"] == "fail" and "no memory left" in stop["reason"]
    assert len(caplog.records) == 1


def test_an_error_in_one_pattern_costs_only_that_pattern(live, monkeypatch):
    append, calls = StreamingNMF.append, []

    def flaky(model, patterns):
        calls.append(1)
        if len(calls) == 3:
            raise MemoryError("no room for this one")
        append(model, patterns)

    monkeypatch.setattr(StreamingNMF, "append", flaky)
    callback, out = live(n_components=2)
    feed(callback, run_documents(PATTERNS, x=X))
    assert callback.wait(30)
    assert len(out.events("primary")) == len(PATTERNS) - 1
    (rejected,) = out.events("rejected")
    assert rejected["data"]["source_seq_num"] == 3
    assert "no room for this one" in rejected["data"]["reason"]


def test_a_last_fit_that_fails_is_not_called_a_success(live, monkeypatch):
    refit = StreamingNMF.refit

    def broken(model, converge=False):
        if converge:
            raise RuntimeError("no memory left")
        return refit(model)

    monkeypatch.setattr(StreamingNMF, "refit", broken)
    _, out = replayed(live, run_documents(PATTERNS, x=X), n_components=2)
    (stop,) = out.named("stop")
    assert (stop["exit_status"], stop["reason"]) == ("fail", "the fit failed: no memory left")
    assert len(out.events("primary")) == len(PATTERNS)


def test_a_subscriber_may_wait_or_exit_without_harm(live):
    callback, out = live(n_components=2)
    answers = []

    def odd(name, doc):
        answers.append(callback.wait())
        raise SystemExit

    callback.subscribe(odd)
    feed(callback, run_documents(PATTERNS, x=X))
    assert callback.wait(30)
    assert answers[0] is False
    assert out.named("stop")


def test_a_subscriber_that_changes_a_document_does_not_change_the_next(live):
    seen = []

    def spoil(name, doc):
        if "components" in doc.get("data", {}):
            seen.append(doc["data"]["x"][0])
            doc["data"]["x"] *= 10

    callback, _ = live(n_components=2, background=False)
    callback.subscribe(spoil)
    feed(callback, run_documents(PATTERNS, x=X))
    assert len(seen) > 1 and set(seen) == {X[0]}


def test_a_subscriber_that_raises_is_logged_once_and_the_others_go_on(live, caplog):
    callback, out = live(n_components=2)

    def broken(name, doc):
        raise OSError("disk full")

    callback.subscribe(broken)
    with caplog.at_level(logging.ERROR):
        feed(callback, run_documents(PATTERNS, x=X))
        assert callback.wait(30)
    assert len(caplog.records) == 1
    assert len(out.events("primary")) == len(PATTERNS)


def test_nonsense_never_raises(live):
    callback, out = live(background=False)
    for name, doc in [("event", {}), ("descriptor", {}), ("stop", {"run_start": "x"}), ("odd", {})]:
        callback(name, doc)
    assert out.documents == []
    assert isinstance(callback.error, KeyError)


# --- subscribers ---------------------------------------------------------------------------


def test_a_lambda_is_called(live):
    callback, _ = live(n_components=2)
    names = []
    callback.subscribe(lambda name, doc: names.append(name))
    feed(callback, run_documents(PATTERNS, x=X))
    assert callback.wait(30)
    assert names[0] == "start" and names[-1] == "stop"


def test_a_late_subscriber_gets_start_and_descriptors_first(live):
    callback, _ = live(n_components=2)
    documents = run_documents(PATTERNS, x=X)
    feed(callback, documents[:10])
    assert callback.wait(30)
    late = Collector()
    callback.subscribe(late)
    feed(callback, documents[10:])
    assert callback.wait(30)
    names = [name for name, _ in late.documents]
    assert names[:2] == ["start", "descriptor"]
    assert len(late.events("primary")) == len(PATTERNS) - 8


def test_who_has_unsubscribed_hears_nothing_more(live):
    callback, out = live(n_components=2, background=False)
    heard = []
    token = callback.subscribe(lambda name, doc: heard.append(name))
    callback.unsubscribe(token)
    callback.unsubscribe(12345)
    feed(callback, run_documents(PATTERNS, x=X))
    assert not heard and out.documents


def test_documents_come_in_order_from_one_thread_that_is_not_the_scans(live):
    callback, _ = live(n_components=2)
    threads = set()
    callback.subscribe(lambda name, doc: threads.add(threading.get_ident()))
    feed(callback, run_documents(PATTERNS, x=X))
    assert callback.wait(30)
    assert len(threads) == 1 and threading.get_ident() not in threads


# --- constraints while running -------------------------------------------------------------


def test_holding_and_releasing_goes_on_in_the_same_run(live):
    callback, out = live(n_components=2, background=False)
    documents = run_documents(PATTERNS, x=X)
    feed(callback, documents[:12])
    callback.fix("unknown 1", Phase.from_array("pure", X, H[0]))
    held = callback.result.components[0].copy()
    feed(callback, documents[12:-1])
    np.testing.assert_array_equal(callback.result.components[0], held)
    np.testing.assert_array_equal(held, H[0].astype("f4"))
    assert callback.result.fixed == (True, False)
    callback.release("unknown 1")
    feed(callback, documents[-1:])
    assert callback.result.fixed == (False, False)
    assert [e["data"]["action"] for e in out.events("constraints")] == ["fix", "release"]
    assert len(out.named("start")) == 1
    assert len(out.events("primary")) == len(PATTERNS)


def test_adding_and_removing_continues_in_another_run(live):
    callback, out = live(n_components=2, background=False)
    documents = run_documents(PATTERNS, x=X)
    feed(callback, documents[:12])
    assert callback.add_component() == "unknown 3"
    feed(callback, documents[12:15])
    callback.remove_component("unknown 3")
    feed(callback, documents[15:])
    starts = out.named("start")
    assert [s["cmf"].get("continues") for s in starts] == [None, starts[0]["uid"], starts[1]["uid"]]
    assert [len(s["cmf"]["components"]) for s in starts] == [2, 3, 2]
    assert out.data("primary")["source_seq_num"].tolist() == list(range(1, len(PATTERNS) + 1))
    assert len(out.named("stop")) == 3


def test_changes_before_a_run_hold_for_the_runs_to_come(live):
    callback, _out = live(n_components=2, background=False)
    callback.fix("unknown 1", PURE)
    callback.add_component("extra")
    feed(callback, run_documents(PATTERNS, x=X))
    assert callback.result.names == ("unknown 1", "unknown 2", "extra")
    assert callback.result.fixed == (True, False, False)


def test_an_array_that_is_held_has_the_origin_that_was_told_until_another_takes_its_place(live):
    callback, out = live(n_components=1, background=False)
    callback.add_component("cold", H[0], True, origin="pattern 3 of the data")
    feed(callback, run_documents(PATTERNS, x=X))
    records = out.named("start")[-1]["cmf"]["components"]
    assert records[-1]["origin"] == "pattern 3 of the data"
    callback.fix("cold", H[1])
    feed(callback, run_documents(PATTERNS, x=X))
    assert out.named("start")[-1]["cmf"]["components"][-1]["origin"] == "array"
    with pytest.raises(InputError, match="origin: expected with a pattern that is an array"):
        callback.add_component("new", origin="nowhere")


def test_fix_holds_the_shape_that_there_is_at_the_call(live):
    callback, _ = live(n_components=2, phases=[PURE])
    documents = run_documents(mixtures(noise=0.3)[2], x=X)
    feed(callback, documents[:12])
    assert callback.wait(30)
    callback.release("cubic")
    callback.fix("cubic")
    feed(callback, documents[12:])
    assert callback.wait(30)
    np.testing.assert_array_equal(callback.result.components[0], H[0].astype("f4"))


def test_an_array_of_another_length_is_not_held(live, caplog):
    callback, _out = live(n_components=2, background=False)
    documents = run_documents(PATTERNS, x=X)
    callback.fix("unknown 1", np.ones(7))
    feed(callback, documents)
    assert "component 'unknown 1' is held at an array of 7 points, but 200" in str(callback.error)
    assert [record.levelname for record in caplog.records] == ["ERROR", "WARNING"]
    callback.fix("unknown 1", H[0])
    documents = run_documents(PATTERNS, x=X)
    feed(callback, documents[:10])
    with pytest.raises(
        InputError, match="the 200 points that are fitted for component 'unknown 2'"
    ):
        callback.fix("unknown 2", np.ones(7))
    feed(callback, documents[10:])
    assert callback.result.fixed == (True, False)


def test_impossible_changes_are_refused_at_once(live):
    callback, _ = live(n_components=2, phases=[PURE])
    with pytest.raises(
        ComponentError, match=r"expected one of \['cubic', 'unknown 1'\], got 'cub'"
    ):
        callback.fix("cub")
    with pytest.raises(ComponentError, match="'cubic' is taken"):
        callback.add_component("cubic")
    with pytest.raises(InputError, match="'unknown 1' has no shape while no pattern is fitted"):
        callback.fix("unknown 1")
    with pytest.raises(InputError, match="needs a pattern to hold"):
        callback.add_component("new", fixed=True)
    callback.remove_component("cubic")
    with pytest.raises(InputError, match="only component"):
        callback.remove_component("unknown 1")


def test_a_component_without_a_shape_is_never_held(live):
    """The run is over when the change comes: it must not spoil the runs to come."""
    callback, out = live(n_components=2)
    feed(callback, run_documents(PATTERNS, x=X))
    with contextlib.suppress(InputError):
        callback.fix("unknown 1")
    assert callback.wait(30)
    feed(callback, run_documents(PATTERNS, x=X))
    assert callback.wait(30)
    assert len(out.events("primary")) == 2 * len(PATTERNS)


def test_a_change_that_waits_with_the_first_patterns_is_made_once(live, monkeypatch):
    refit, may_go_on = StreamingNMF.refit, threading.Event()
    monkeypatch.setattr(
        StreamingNMF, "refit", lambda model, **kw: may_go_on.wait(30) and refit(model, **kw)
    )
    callback, _ = live(n_components=2)
    documents = run_documents(PATTERNS, x=X)
    feed(callback, documents[:5])
    callback.add_component("impurity")
    feed(callback, documents[5:])
    may_go_on.set()
    assert callback.wait(30)
    assert callback.error is None
    assert callback.result.names == ("unknown 1", "unknown 2", "impurity")


def test_a_component_can_be_added_before_the_first_usable_pattern(live):
    callback, out = live(n_components=2, background=False)
    documents = run_documents([np.full_like(X, np.nan), *PATTERNS], x=X)
    feed(callback, documents[:3])
    callback.add_component("extra")
    feed(callback, documents[3:])
    assert len(out.named("start")) == len(out.named("stop")) == 2
    assert len(out.events("primary")) == len(PATTERNS)


def test_constraints_changed_from_another_thread_do_not_lock_up(live):
    callback, _ = live(n_components=2, background=False)

    def change():
        for _ in range(50):
            callback.release("unknown 1")

    thread = threading.Thread(target=change)
    thread.start()
    for _ in range(3):
        feed(callback, run_documents(PATTERNS, x=X))
    thread.join(30)
    assert not thread.is_alive()
    assert callback.wait(30)


def test_with_two_open_runs_the_latest_is_changed(live):
    callback, _ = live(n_components=2, background=False)
    one = run_documents(PATTERNS, x=X, metadata={"array": np.arange(3.0)})
    two = run_documents(PATTERNS, x=X, metadata={"array": np.arange(3.0)})
    feed(callback, one[:8])
    feed(callback, two[:8])
    callback.fix("unknown 1", PURE)
    feed(callback, two[8:])
    assert callback.result.fixed == (True, False)
    callback.fix("unknown 2")
    feed(callback, one[8:])
    assert callback.result.fixed == (False, True)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"device": "cuad"}, "device: expected 'auto' or a torch device"),
        ({"dtype": "float32"}, "dtype: expected torch.float32 or torch.float64"),
        ({"seed": "a"}, "seed: expected an integer"),
        ({"preprocess": {"normalize": "max"}}, "preprocess: expected a Preprocess"),
        ({"independent": 5}, "independent: expected data keys, got 5"),
        ({"phases": PURE}, "phases: expected a list of phases"),
        ({"n_components": 2.5}, "n_components: expected a number from 1"),
        ({"x": np.zeros(3)}, "x: expected finite numbers that increase or decrease"),
        ({"x": ""}, "x: expected a data key"),
        ({"loss": "poisson"}, r"loss: expected one of \['frobenius', .* got 'poisson'"),
        ({"scope": "week"}, "scope: expected 'run' or 'session', got 'week'"),
        ({"n_components": 0}, "n_components: expected a number from 1"),
        ({"phases": [PURE], "n_components": 0}, "from 1 \\(there are 1 phases\\) to 1000, got 0"),
        ({"phases": [PURE, PURE]}, "names that differ"),
        ({"phases": ["cubic.cif"]}, "phases\\[0\\]: expected a Phase, got str"),
        ({"x": [[1.0]]}, "x: expected a data key or numbers"),
        ({"stream": ""}, "stream: expected a name"),
    ],
)
def test_bad_arguments_are_named(kwargs, words):
    with pytest.raises(InputError, match=words):
        LiveNMF("chi_I", **kwargs)


# --- the end -------------------------------------------------------------------------------


def test_a_run_without_stop_ends_as_abort_at_close(live):
    callback, out = live(n_components=2)
    feed(callback, run_documents(PATTERNS, x=X, stop=False))
    assert callback.wait(30)
    assert not out.named("stop")
    assert callback.close(30)
    (stop,) = out.named("stop")
    assert stop["exit_status"] == "abort"
    assert callback.result.n_patterns == len(PATTERNS)


def test_pending_work_is_drained_at_interpreter_exit():
    script = """
from tests.streams import mixtures, run_documents
from bluesky_cmf import LiveNMF
live = LiveNMF("chi_I", n_components=2, device="cpu")
live.subscribe(lambda name, doc: print(name, flush=True))
for name, doc in run_documents(mixtures()[2]):
    live(name, doc)
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    names = done.stdout.split()
    assert names[0] == "start" and names[-1] == "stop"
    assert done.stderr == ""

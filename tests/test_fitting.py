"""Faults of the fit and its device cost no pattern, and are told."""

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bluesky_cmf import LiveNMF, LiveNMFPlot, Phase, fitting
from bluesky_cmf.documents import AnalysisReader
from bluesky_cmf.nmf.streaming import StreamingNMF
from bluesky_cmf.preprocess import Preprocess
from bluesky_cmf.recipe import Component, Recipe
from bluesky_cmf.unknowns import Watch
from tests.streams import Collector, mixtures, run_documents
from tests.structures import cif, written

X, H, PATTERNS = mixtures(20, noise=0.01)
KNOWN = Phase.from_array("known", X, H[0])


class Failing:
    """A factorization whose method fails from the n-th call on; a device fails as a whole."""

    def __init__(self, model: StreamingNMF, method: str, calls: int, error: Exception) -> None:
        self._model, self._method, self._calls, self._error = model, method, calls, error
        self.device = torch.device("cuda")

    def __getattr__(self, name: str) -> Any:
        if name == self._method:
            self._calls -= 1
        if self._calls < 0 and (name == self._method or isinstance(self._error, RuntimeError)):
            raise self._error
        return getattr(self._model, name)


FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB\nmore lines")
LOST = torch.AcceleratorError("CUDA error: unspecified launch failure")
OLD = RuntimeError("CUDA error: device-side assert triggered")


@pytest.mark.parametrize("error", [FULL, LOST, OLD])
@pytest.mark.parametrize(
    ("method", "calls"),
    [("append", 0), ("append", 7), ("refit", 0), ("refit", 9), ("refit", 20), ("rows", 5)],
)
def test_a_device_that_fails_hands_over_to_the_cpu_and_every_pattern_is_kept(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
    method: str,
    calls: int,
) -> None:
    def failing(*args: Any, device: Any, **kwargs: Any) -> Any:
        model = StreamingNMF(*args, device="cpu", **kwargs)
        return model if device == "cpu" else Failing(model, method, calls, error)

    undisturbed = fit()
    monkeypatch.setattr(fitting, "StreamingNMF", failing)
    out = Collector()
    live = fit(out)
    assert len(out.events("primary")) == len(PATTERNS) and not out.events("rejected")
    assert live.result.objective == pytest.approx(undisturbed.result.objective, rel=1e-3)
    np.testing.assert_array_equal(live.result.components[0], undisturbed.result.components[0])
    (fault,) = [event["data"]["fault"] for event in out.events("faults")]
    assert "the device failed (CUDA" in fault and "goes on on the CPU" in fault
    (stop,) = out.named("stop")
    assert stop["exit_status"] == "success"
    assert stop["cmf"]["device"] == "cpu" and stop["cmf"]["faults"] == [fault]
    assert "goes on on the CPU" in str(live.error)
    assert [r.levelno for r in caplog.records if "the device failed" in r.message] == [
        logging.ERROR
    ]


def test_a_device_that_is_full_from_the_beginning_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*args: Any, device: Any, **kwargs: Any) -> Any:
        if device != "cpu":
            raise FULL
        return StreamingNMF(*args, device=device, **kwargs)

    monkeypatch.setattr(fitting, "StreamingNMF", full)
    out = Collector()
    live = fit(out)
    assert live.result.n_patterns == len(PATTERNS)
    assert len(out.events("faults")) == 1
    assert out.named("stop")[0]["cmf"]["device"] == "cpu"


def test_other_errors_are_not_taken_for_the_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, device: Any, **kwargs: Any) -> Any:
        return Failing(StreamingNMF(*args, device="cpu", **kwargs), "refit", 0, ValueError("no"))

    monkeypatch.setattr(fitting, "StreamingNMF", broken)
    out = Collector()
    live = fit(out)
    assert str(live.error) == "no"
    assert len(out.events("rejected")) == len(PATTERNS)
    assert [event["data"]["fault"] for event in out.events("faults")] == [
        "the fit failed: ValueError: no"
    ]
    assert out.named("stop")[0]["exit_status"] == "fail"


def test_a_fault_is_read_back_and_stands_on_the_figure(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*args: Any, device: Any, **kwargs: Any) -> Any:
        model = StreamingNMF(*args, device="cpu", **kwargs)
        return model if device == "cpu" else Failing(model, "refit", 3, FULL)

    monkeypatch.setattr(fitting, "StreamingNMF", failing)
    reader, plot = AnalysisReader(), LiveNMFPlot()
    fit(reader, plot)
    assert len(reader.faults) == 1
    texts = [
        text.get_text() for text in plot.figure.findobj(match=lambda a: hasattr(a, "get_text"))
    ]
    assert any("the device failed" in text for text in texts)


def fit(*subscribers: Any) -> LiveNMF:
    live = LiveNMF("chi_I", x="chi_Q", n_components=2, phases=[KNOWN], background=False)
    for subscriber in subscribers:
        live.subscribe(subscriber)
    for name, doc in run_documents(PATTERNS, x=X):
        live(name, doc)
    return live


def test_phases_from_cifs_get_the_width_of_the_first_patterns_lines(batio3: Any) -> None:
    folder = batio3.path.parent
    names = ["rhomb", "ortho", "tetra", "cubic"]
    phases = [
        Phase.from_cif(folder / f"{name}.cif", wavelength=batio3.wavelength) for name in names
    ]
    live = LiveNMF("chi_I", x="chi_Q", phases=phases, n_components=5, background=False)
    out = Collector()
    live.subscribe(out)
    patterns = batio3.intensity[[0, 15, 35, 59]]
    for name, doc in run_documents(patterns, x=batio3.two_theta):
        live(name, doc)
    assert live.error is None
    assert live.result.weights[:, :4].argmax(axis=1).tolist() == [0, 1, 2, 3]
    assert out.named("start")[0]["cmf"]["width"].startswith("width 0.0")


def test_four_crystal_structures_tell_the_phases_of_a_real_ramp(batio3: Any) -> None:
    names = ("rhomb", "ortho", "tetra", "cubic")
    folder = batio3.path.parent
    phases = [Phase.from_cif(folder / f"{n}.cif", wavelength=batio3.wavelength) for n in names]
    live = LiveNMF("chi_I", x="chi_Q", phases=phases, n_components=4, background=False)
    documents = run_documents(batio3.intensity, x=batio3.two_theta, positions=batio3.temperature)
    for name, doc in documents:
        live(name, doc)

    assert live.result is not None and live.error is None
    transitions = np.array([185, 280, 400])
    clear = (np.abs(batio3.temperature[:, None] - transitions) > 15).all(axis=1)
    expected = np.digitize(batio3.temperature, transitions)
    right = live.result.weights.argmax(axis=1) == expected
    assert right[clear].mean() >= 0.95


def crystal(folder: Path) -> tuple[Phase, np.ndarray, np.ndarray]:
    """A phase whose lines have no width yet, an axis, and three patterns with lines."""
    path = written(folder, cif("4 4 4 90 90 90", ["Ba Ba 0 0 0 1"], group="P m -3 m"))
    x = np.linspace(15.0, 60.0, 1500)
    lines = Phase.from_cif(path, wavelength=1.54, width=0.3).on(x)
    counts = np.random.default_rng(4).poisson(np.outer([1000, 1500, 2000], lines) + 20)
    return Phase.from_cif(path, wavelength=1.54), x, counts.astype(float)


@pytest.mark.parametrize("background", [False, True])
@pytest.mark.parametrize("scope", ["run", "session"])
def test_patterns_before_the_first_lines_wait_for_their_width_and_keep_their_place(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, background: bool, scope: Any
) -> None:
    phase, x, lines = crystal(tmp_path)
    flat = np.random.default_rng(5).poisson(20, (2, x.size)).astype(float)
    patterns = np.vstack([flat, lines])
    out = Collector()
    live = LiveNMF(
        "chi_I", x="chi_Q", phases=[phase], device="cpu", background=background, scope=scope
    )
    live.subscribe(out)
    for name, doc in run_documents(patterns, x=x):
        live(name, doc)
    assert live.close(60) and live.error is None
    assert out.data("primary")["source_seq_num"].tolist() == [1, 2, 3, 4, 5]
    assert out.data("primary")["temperature"].tolist() == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert not out.events("rejected")
    assert caplog.text.count("kept until one with lines has come") == 1
    np.testing.assert_allclose(live.result.weights[:2, 0], 0.0, atol=30.0)
    np.testing.assert_allclose(live.result.weights[2:, 0], [1000, 1500, 2000], rtol=0.1)


def test_patterns_of_a_run_without_any_lines_are_rejected_with_the_reason(tmp_path: Path) -> None:
    phase, x, _ = crystal(tmp_path)
    flat = np.random.default_rng(5).poisson(20, (3, x.size)).astype(float)
    flat[0] = 0.0
    out = Collector()
    live = LiveNMF("chi_I", x="chi_Q", phases=[phase], device="cpu", background=False)
    live.subscribe(out)
    for name, doc in run_documents(flat, x=x):
        live(name, doc)
    reasons = [str(event["data"]["reason"]) for event in out.events("rejected")]
    assert out.data("rejected")["source_seq_num"].tolist() == [1, 2, 3]
    assert reasons[0] == "every point is zero"
    assert all("expected patterns with lines of these phases" in reason for reason in reasons[1:])
    assert len(out.named("stop")) == 1 and not out.events("primary")


def test_where_others_wait_the_newest_patterns_are_looked_at_and_some_remembered(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked: list[tuple[int, int, int]] = []

    def look(
        self: Watch, patterns: Any, *args: Any, first: int, passed: int, **_: Any
    ) -> list[Any]:
        looked.append((first, first + passed, first + len(patterns)))
        return []

    monkeypatch.setattr(Watch, "look", look)
    recipe = Recipe(Preprocess(), None, "cpu", torch.float32, 0, "frobenius", {})
    model = fitting.Fitting(recipe, [Component("known", True, KNOWN)], X, PATTERNS[0], given=True)
    for hurried, count in ((False, 6), (True, 6), (True, 2), (True, 100)):
        for k in range(count):
            model.append(model.prepared(X, PATTERNS[k % len(PATTERNS)]))
        model.refit()
        model.look(model.rows(model.n_patterns - count), hurried=hurried)

    # The first that is remembered, the first that is looked at, and the end.
    assert looked == [(1, 1, 7), (7, 9, 13), (13, 13, 15), (115 - 68, 111, 115)]

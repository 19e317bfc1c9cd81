"""`LiveNMFPlot`: what stands in the figure, when it is drawn and where it is saved."""

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
from event_model import pack_event_page
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from matplotlib.backend_bases import TimerBase
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import same_color
from matplotlib.figure import Figure

from bluesky_cmf.documents import (
    PATTERN_NUMBER,
    AnalysisRun,
    Axis,
    Point,
    component_record,
    independents,
)
from bluesky_cmf.errors import InputError
from bluesky_cmf.figure import LiveNMFPlot
from bluesky_cmf.figure.artists import TROUBLE, abbreviated, outline
from bluesky_cmf.nmf.results import FitResult, RowFit
from bluesky_cmf.nmf.rows import Frozen, Rows

Emit = Callable[[str, dict[str, Any]], None]


class Clock:
    """A clock that stands until it is told to go on."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def frozen(values: np.ndarray) -> Frozen:
    rows = Rows(values.shape[1], device=torch.device("cpu"))
    rows.replace(torch.tensor(values, dtype=torch.float64))
    return rows.frozen()


@dataclass
class Scan:
    """An analysis run of a scan that never was: what the documents say is known beforehand."""

    emit: Emit
    names: Sequence[str] = ("cubic", "tetragonal", "unknown 1")
    fixed: Sequence[bool] = (True, True, False)
    dimensions: Sequence[Sequence[str]] = (("temperature",),)
    n: int = 12
    points: int = 40
    uid: str = "raw-uid"
    continues: str | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    heights: Sequence[float] = (1.0, 2.0, 1.0)

    def __post_init__(self) -> None:
        rng = np.random.default_rng(0)
        k = len(self.names)
        self.x = np.linspace(1.0, 5.0, self.points)
        shapes = rng.random((k, self.points))
        heights = np.resize(np.asarray(self.heights), k)[:, None]
        self.H = shapes / shapes.max(axis=1, keepdims=True) * heights
        self.W = rng.random((self.n, k)) + 0.1
        self.errors = rng.random((self.n, k)) * 0.1
        self.r = rng.random(self.n) * 0.01 + 0.02
        self.lag = np.arange(self.n) % 3
        ramp = np.arange(self.n) * 5.0 + 150 if self.dimensions else np.arange(self.n) + 1.0
        self.positions = np.column_stack([ramp] * max(len(self.dimensions), 1))
        self.variables = [replace(v, units="K") for v in independents(self.dimensions)]
        self.variables = self.variables or [PATTERN_NUMBER]
        records = [
            component_record(name, fixed=held, origin="array", values=None)
            for name, held in zip(self.names, self.fixed, strict=True)
        ]
        cmf: dict[str, Any] = {"components": records}
        if self.continues is not None:
            cmf["continues"] = self.continues
        self.run = AnalysisRun(
            self.emit,
            {
                "uid": self.uid,
                "time": 0.0,
                "hints": {"dimensions": [[list(d), "primary"] for d in self.dimensions]},
                "scan_id": 42,
                "plan_name": "ramp",
                "sample_name": "BaTiO3",
                **self.metadata,
            },
            self.names,
            self.variables,
            cmf,
            Axis("two_theta", "deg", self.x),
        )

    def point(self, i: int) -> Point:
        return Point(self.uid, "primary", i + 1, tuple(map(float, self.positions[i])))

    def measure(self, *numbers: int) -> None:
        for i in numbers:
            self.run.primary(
                [self.point(i)],
                RowFit(
                    self.W[i : i + 1],
                    self.errors[i : i + 1, :, None] ** 2 * np.eye(len(self.names)),
                    self.r[i : i + 1],
                    self.r[i : i + 1],
                    self.W[i] @ self.H,
                ),
                components=self.H,
                n_patterns=i + 1,
                lag=int(self.lag[i]),
                seconds=0.0125,
            )

    def snapshot(self, n: int | None = None, *, converged: bool = False) -> None:
        n = self.n if n is None else n
        result = FitResult(
            tuple(self.names),
            tuple(self.fixed),
            0.19654321,
            n,
            converged,
            0.0125,
            frozen(self.W[:n]),
            torch.tensor(self.H),
            (),
            frozen(self.r[:n, None] ** 2),
            torch.ones(n),
        )
        self.run.snapshot(result, [self.point(i) for i in range(self.n)])

    def latest(self, i: int) -> None:
        self.run.latest(self.W[i] @ self.H + 0.01, self.W[i] @ self.H, self.point(i))

    def whole(self) -> "Scan":
        self.measure(*range(self.n))
        self.latest(self.n - 1)
        self.snapshot(converged=True)
        self.run.close()
        return self


def line(plot: LiveNMFPlot, panel: str, name: str) -> Any:
    (found,) = (line for line in plot.axes[panel].get_lines() if line.get_label() == name)
    return found


def texts(plot: LiveNMFPlot) -> str:
    return "\n".join(t.get_text() for t in plot.figure.texts)


def trouble(plot: LiveNMFPlot) -> str:
    shown = (t for t in plot.figure.texts if same_color(t.get_color(), TROUBLE))
    return "\n".join(t.get_text() for t in shown)


# What is drawn


def test_weights_are_drawn_against_the_scanned_variable_with_its_unit() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot).whole()
    for k, name in enumerate(scan.names):
        x, y = line(plot, "weights", name).get_data()
        np.testing.assert_array_equal(x, scan.positions[:, 0])
        np.testing.assert_array_equal(y, scan.W[:, k])
    assert plot.axes["weights"].get_xlabel() == "temperature (K)"
    assert plot.axes["weights"].get_ylabel() == "weight"


def test_the_band_of_a_weight_is_its_published_standard_error() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot, names=("a",), fixed=(True,)).whole()
    band = plot.axes["weights"].collections[-2]
    outlined = np.concatenate([path.vertices for path in band.get_paths()])
    assert outlined[:, 1].max() == pytest.approx((scan.W + scan.errors).max())


def test_fractions_are_drawn_from_nothing_to_all_with_their_errors() -> None:
    plot = LiveNMFPlot(show="fractions")
    scan = Scan(plot).whole()
    area = np.trapezoid(scan.H, scan.x)
    whole = scan.W @ area
    parts = scan.W * area / whole[:, None]
    for k, name in enumerate(scan.names):
        np.testing.assert_allclose(line(plot, "weights", name).get_ydata(), parts[:, k])
    axes = plot.axes["weights"]
    assert axes.get_ylabel() == "fraction of the intensity"
    low, high = axes.get_ylim()
    assert -0.1 < low < 0 and 1 < high < 1.1
    # Weights whose errors are independent: each moves the last fraction by its own slope.
    slopes = area * (np.eye(3)[2] - parts[:, 2:]) / whole[:, None]
    errors = np.sqrt((slopes**2 * scan.errors**2).sum(1))
    # Three bands, then the bars that stand for them where positions jump.
    band = axes.collections[-4]
    outlined = np.concatenate([path.vertices for path in band.get_paths()])
    assert outlined[:, 1].max() == pytest.approx((parts[:, 2] + errors).max())
    assert trouble(plot) == ""


def test_the_band_of_a_fraction_ends_at_all_of_it() -> None:
    plot = LiveNMFPlot(show="fractions")
    scan = Scan(plot, names=("a", "b"), fixed=(True, True))
    scan.errors *= 30
    scan.whole()
    for band in plot.axes["weights"].collections:
        for path in band.get_paths():
            assert (path.vertices[:, 1] >= 0).all() and (path.vertices[:, 1] <= 1).all()
    assert plot.error is None


def test_a_pattern_without_any_weight_is_a_gap_among_fractions_and_said_to_be() -> None:
    plot = LiveNMFPlot(show="fractions")
    scan = Scan(plot)
    scan.W[4] = 0.0
    scan.whole()
    drawn = line(plot, "weights", "cubic").get_ydata()
    assert np.flatnonzero(np.isnan(drawn)).tolist() == [4]
    assert "1 pattern is not drawn: fractions not received, or no numbers" in trouble(plot)


@pytest.mark.parametrize("panel", ["weights", "components"])
def test_held_components_are_solid_and_free_ones_dashed_in_one_colour_each(panel: str) -> None:
    plot = LiveNMFPlot()
    Scan(plot).whole()
    lines = [line(plot, panel, name) for name in ("cubic", "tetragonal", "unknown 1")]
    assert [curve.is_dashed() for curve in lines] == [False, False, True]
    assert len({curve.get_color() for curve in lines}) == 3
    assert lines[0].get_color() == line(plot, "weights", "cubic").get_color()


def test_a_component_that_is_held_later_turns_solid_and_the_change_is_marked() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot)
    scan.measure(*range(6))
    scan.run.constraint("fix", "unknown 1", 6)
    scan.measure(*range(6, 12))
    scan.snapshot(converged=True)
    scan.run.close()
    assert not line(plot, "weights", "unknown 1").is_dashed()
    (note,) = (t for t in plot.axes["weights"].texts if "unknown 1" in t.get_text())
    assert note.get_text().strip() == "fix unknown 1 (after 6)"
    assert note.get_position()[0] == pytest.approx(
        (scan.positions[5, 0] + scan.positions[6, 0]) / 2
    )


def test_positions_to_and_fro_are_not_joined_by_lines() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot)
    scan.positions = scan.positions[[0, 5, 3, 1, 2, 4, 6, 7, 11, 10, 9, 8]]
    scan.whole()
    curve = line(plot, "weights", "cubic")
    np.testing.assert_array_equal(curve.get_xdata(), scan.positions[:, 0])
    assert curve.get_linestyle() == "None"
    assert curve.get_markersize() > 0


def test_a_grid_scan_is_drawn_against_the_pattern_number_and_says_so() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot, dimensions=(("stage_y",), ("stage_z",))).whole()
    np.testing.assert_array_equal(line(plot, "weights", "cubic").get_xdata(), np.arange(12) + 1)
    label = plot.axes["weights"].get_xlabel()
    assert label == "pattern number, of a scan over stage_y (K) × stage_z (K)"
    assert line(plot, "weights", "cubic").get_ydata()[3] == scan.W[3, 0]


def test_a_scan_of_nothing_is_drawn_against_the_pattern_number() -> None:
    plot = LiveNMFPlot()
    Scan(plot, dimensions=(), n=3).whole()
    np.testing.assert_array_equal(line(plot, "weights", "cubic").get_xdata(), [1, 2, 3])
    assert plot.axes["weights"].get_xlabel() == "pattern number"


def test_a_position_that_is_no_number_hides_no_pattern() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot)
    scan.positions[4] = np.nan
    scan.whole()
    assert len(line(plot, "weights", "cubic").get_xdata()) == 12
    assert plot.axes["weights"].get_xlabel() == "pattern number (temperature not known for some)"


def test_components_are_drawn_on_their_axis_each_with_its_name() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot).whole()
    axes = plot.axes["components"]
    assert axes.get_xlabel() == "two_theta (deg)"
    for k, name in enumerate(scan.names):
        curve = line(plot, "components", name)
        np.testing.assert_array_equal(curve.get_xdata(), scan.x)
        height = curve.get_ydata() - curve.get_ydata().min()
        expected = (scan.H[k] - scan.H[k].min()) / scan.H[k].max()
        np.testing.assert_allclose(height, expected, atol=1e-12)
        (label,) = (t for t in axes.texts if t.get_text() == name)
        assert label.get_color() == curve.get_color()


def test_weights_of_components_of_unlike_size_are_drawn_as_heights_and_the_axis_says_so() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot, heights=(100.0, 20.0, 1.0)).whole()
    np.testing.assert_allclose(
        line(plot, "weights", "cubic").get_ydata(), scan.W[:, 0] * 100.0, rtol=1e-12
    )
    assert plot.axes["weights"].get_ylabel() == "weight × maximum of component"


def test_the_newest_pattern_stands_with_its_fit_difference_number_and_r_factor() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot)
    scan.measure(*range(12))
    scan.latest(7)
    scan.snapshot(converged=True)
    scan.run.close()
    fitted = scan.W[7] @ scan.H
    measured, fit = plot.axes["pattern"].get_lines()
    np.testing.assert_array_equal(measured.get_xdata(), scan.x)
    np.testing.assert_allclose(measured.get_ydata(), fitted + 0.01)
    np.testing.assert_allclose(fit.get_ydata(), fitted)
    np.testing.assert_allclose(plot.axes["difference"].get_lines()[0].get_ydata(), 0.01)
    r = np.sqrt(len(fitted) * 0.01**2 / np.sum((fitted + 0.01) ** 2))
    assert plot.axes["pattern"].get_title("left") == f"pattern seq_num 8,  R = {r:.3g}"


def test_without_a_newest_pattern_the_panel_says_that_it_is_not_stored() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot)
    scan.measure(0)
    scan.snapshot(1, converged=True)
    scan.run.close()
    shown = [t.get_text() for t in plot.axes["pattern"].texts]
    assert "the newest pattern is not in these documents" in shown


def test_r_factor_and_lag_are_drawn_for_each_pattern() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot).whole()
    (curve,) = plot.axes["r_factor"].get_lines()
    np.testing.assert_array_equal(curve.get_ydata(), scan.r)
    (bars,) = plot.axes["lag"].collections
    np.testing.assert_array_equal([top for _foot, (_x, top) in bars.get_segments()], scan.lag)
    assert plot.axes["r_factor"].get_yscale() == "linear"
    assert plot.axes["lag"].get_visible()


def test_the_scale_of_the_lag_is_drawn_only_where_a_pattern_waited() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot)
    scan.lag[:] = 0
    scan.whole()
    assert not plot.axes["lag"].get_visible()


@pytest.mark.parametrize(("least", "scale"), [(1e-4, "log"), (0.0, "linear")])
def test_r_factors_over_decades_get_a_logarithmic_scale_unless_one_is_zero(
    least: float, scale: str
) -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot)
    scan.r[-2] = least
    scan.whole()
    low, high = plot.axes["r_factor"].get_ylim()
    assert plot.axes["r_factor"].get_yscale() == scale
    assert low <= scan.r.min() < scan.r.max() <= high


@pytest.mark.parametrize("n", [1, 2])
def test_a_run_of_one_component_and_hardly_a_pattern_is_drawn(n: int) -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot, names=("unknown 1",), fixed=(False,), n=n).whole()
    np.testing.assert_array_equal(line(plot, "weights", "unknown 1").get_ydata(), scan.W[:, 0])
    assert plot.error is None


def test_names_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    names = ("_hidden", "$x_1$ {a} \\frac", "über 25 °C")
    plot = LiveNMFPlot(save=tmp_path / "figure")
    Scan(plot, names=names, metadata={"sample_name": "$a", "plan_name": "b$"}).whole()
    legend = plot.axes["weights"].get_legend()
    assert [t.get_text() for t in legend.get_texts()[:3]] == list(names)
    assert plot.error is None and plot.path is not None and plot.path.exists()


def test_a_long_curve_is_drawn_with_few_points_and_all_its_peaks() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot, names=("a",), fixed=(True,), points=50_001)
    scan.H[0] = 0.0
    scan.H[0, 33_333] = 1.0
    scan.whole()
    x, y = line(plot, "components", "a").get_data()
    assert len(x) < 4000
    assert x[np.argmax(y)] == scan.x[33_333]


@given(
    arrays(np.float64, st.integers(1, 400), elements=st.floats(-10, 10) | st.just(np.nan)),
    st.integers(4, 50),
)
def test_an_outline_keeps_the_ends_and_the_extremes(values: np.ndarray, points: int) -> None:
    kept = outline(values, points)
    assert kept[0] == 0 and kept[-1] == len(values) - 1
    assert (np.diff(kept) > 0).all()
    assert len(kept) <= points + 2
    if np.isfinite(values).any():
        assert np.nanmax(values[kept]) == np.nanmax(values)
        assert np.nanmin(values[kept]) == np.nanmin(values)


@given(st.text(max_size=60), st.integers(3, 40))
def test_an_abbreviated_name_fits(name: str, length: int) -> None:
    assert len(abbreviated(name, length)) <= length


# What is said


def test_the_headline_says_what_was_measured_and_how_the_fit_stands() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot)
    scan.measure(*range(12))
    scan.snapshot(8)
    plot.draw()
    assert plot.figure.get_suptitle() == "BaTiO3  ·  scan 42  ·  ramp"
    running = texts(plot)
    for part in (
        f"analysis {scan.run.uid[:8]} of run raw-uid",
        "12 patterns",
        "objective 0.1965 (first 8 patterns)",
        "running",
        "fit 12.5 ms",
    ):
        assert part in running
    scan.snapshot(converged=True)
    scan.run.close()
    assert "objective 0.1965  ·  converged" in texts(plot)
    assert trouble(plot) == ""


def test_a_run_that_ends_before_its_fit_converged_says_so() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot)
    scan.measure(*range(12))
    scan.snapshot()
    scan.run.close()
    assert "not converged" in texts(plot)
    assert "ended before its fit converged" in trouble(plot)


def test_rejected_patterns_and_an_abort_stand_in_the_figure_with_their_reasons() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot)
    scan.measure(0, 1)
    scan.run.reject("raw-uid", 3, "a dark frame")
    scan.run.reject("raw-uid", 4, "2 values are not finite")
    scan.run.close("abort", "the beam was lost")
    assert "2 patterns rejected, last seq_num 4: 2 values are not finite" in trouble(plot)
    assert "abort: the beam was lost" in trouble(plot)


def test_a_run_of_rejected_patterns_only_says_that_none_could_be_used() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot)
    scan.run.reject("raw-uid", 1, "a dark frame")
    scan.run.close()
    assert "1 pattern rejected, seq_num 1: a dark frame" in trouble(plot)
    assert "no pattern could be used" in [t.get_text() for t in plot.axes["weights"].texts]


def test_trouble_takes_room_of_its_own() -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot)
    scan.measure(0, 1)
    scan.snapshot(2)
    scan.run.close("fail", "word " * 80)
    plot.figure.canvas.draw()
    (warning,) = (t for t in plot.figure.texts if same_color(t.get_color(), TROUBLE))
    box = warning.get_window_extent()
    assert box.x1 <= plot.figure.bbox.x1
    for axes in plot.axes.values():
        assert axes.get_tightbbox().y1 <= box.y0


@pytest.mark.parametrize("k", [1, 2, 4, 10])
def test_the_names_over_the_weights_cover_nothing(k: int) -> None:
    plot = LiveNMFPlot()
    Scan(plot, names=[f"a phase, number {i}" for i in range(k)], fixed=[True] * k).whole()
    plot.figure.canvas.draw()
    names = plot.axes["weights"].get_legend().get_window_extent()
    above = min(t.get_window_extent().y0 for t in plot.figure.texts if t.get_text())
    below, beside = plot.axes["weights"].bbox.y1, plot.axes["components"].get_tightbbox().x0
    assert below <= names.y0 and names.y1 <= above and names.x1 <= beside


def test_the_first_patterns_that_a_late_subscriber_missed_are_not_made_up() -> None:
    documents: list[tuple[str, dict[str, Any]]] = []
    scan = Scan(lambda name, doc: documents.append((name, doc)))
    scan.measure(*range(12))
    late = [d for d in documents if d[0] != "event"] + documents[-4:]
    plot = LiveNMFPlot()
    for name, doc in late:
        plot(name, doc)
    plot.draw()
    assert "12 patterns" in texts(plot)
    assert "8 patterns are not drawn" in trouble(plot)
    x, y = line(plot, "weights", "cubic").get_data()
    np.testing.assert_array_equal(x, np.arange(12) + 1)
    np.testing.assert_array_equal(y[8:], scan.W[8:, 0])
    assert np.isnan(y[:8]).all()
    scan.emit = scan.run.emit = plot
    scan.snapshot(converged=True)
    scan.run.close()
    assert trouble(plot) == ""
    np.testing.assert_array_equal(line(plot, "weights", "cubic").get_ydata(), scan.W[:, 0])


# Which runs


def test_a_stored_run_is_drawn_as_the_live_one_was() -> None:
    documents: list[tuple[str, dict[str, Any]]] = []
    live, replayed = LiveNMFPlot(), LiveNMFPlot()

    def both(name: str, doc: dict[str, Any]) -> None:
        documents.append((name, doc))
        live(name, doc)

    Scan(both).whole()
    for name, doc in documents:
        # Stores give pages where there were events.
        if name == "event":
            replayed("event_page", pack_event_page(doc))
        else:
            replayed(name, doc)
    for panel, axes in live.axes.items():
        for one, other in zip(axes.get_lines(), replayed.axes[panel].get_lines(), strict=True):
            np.testing.assert_array_equal(one.get_xydata(), other.get_xydata())
    assert texts(live) == texts(replayed)


def test_runs_that_are_no_analysis_are_passed_over() -> None:
    plot = LiveNMFPlot()
    plot("start", {"uid": "a", "time": 0.0})
    plot("descriptor", {"uid": "b", "run_start": "a", "name": "primary", "data_keys": {}})
    plot("event", {"descriptor": "b", "data": {}, "uid": "c"})
    plot("stop", {"uid": "d", "run_start": "a", "exit_status": "fail"})
    assert (plot.draws, plot.error) == (0, None)


def test_a_run_that_continues_another_goes_on_in_the_same_picture() -> None:
    plot = LiveNMFPlot(max_rate=np.inf, clock=Clock())
    first = Scan(plot, names=("cubic", "unknown 1"), fixed=(True, False))
    first.measure(*range(5))
    first.snapshot(5, converged=True)
    first.run.close()
    colour = line(plot, "weights", "unknown 1").get_color()
    second = Scan(
        plot,
        names=("cubic", "new", "unknown 1"),
        fixed=(True, False, False),
        continues=first.run.uid,
    )
    second.snapshot(5)
    second.r = second.r + 1
    second.measure(*range(5, 12))
    second.snapshot(converged=True)
    second.run.close()
    assert line(plot, "weights", "unknown 1").get_color() == colour
    assert line(plot, "weights", "new").get_color() not in (
        colour,
        line(plot, "weights", "cubic").get_color(),
    )
    (curve,) = plot.axes["r_factor"].get_lines()
    np.testing.assert_array_equal(curve.get_ydata(), [*first.r[:5], *second.r[5:]])
    assert any(t.get_text().strip() == "add new (after 5)" for t in plot.axes["weights"].texts)


@pytest.mark.parametrize("show", ["weights", "fractions"])
def test_errors_that_were_published_before_a_run_was_continued_stay_in_the_picture(
    show: Any,
) -> None:
    plot = LiveNMFPlot(show=show, max_rate=np.inf, clock=Clock())
    names, every = ("a", "b"), ("a", "b", "new")
    first = Scan(plot, names=names, fixed=(True, True))
    first.measure(*range(5))
    first.snapshot(5, converged=True)
    first.run.close()
    second = Scan(plot, names=every, fixed=(True, True, False), continues=first.run.uid)
    second.snapshot(5)
    second.measure(*range(5, 12))
    second.snapshot(converged=True)
    second.run.close()

    banded = [
        {float(x) for path in band.get_paths() for x in path.vertices[:, 0]}
        for band in plot.axes["weights"].collections[-6:]
        if band.get_paths() and len(band.get_paths()[0].vertices) > 4
    ]
    temperatures = set(second.positions[:, 0])
    assert [places & temperatures == temperatures for places in banded] == [True, True, False]


def test_another_run_begins_a_new_picture() -> None:
    plot = LiveNMFPlot()
    Scan(plot, n=9).whole()
    second = Scan(plot, names=("other",), fixed=(False,), n=4, uid="second").whole()
    assert [curve.get_label() for curve in plot.axes["components"].get_lines()] == ["other"]
    np.testing.assert_array_equal(line(plot, "weights", "other").get_ydata(), second.W[:, 0])


def test_of_runs_that_interleave_each_is_saved_as_it_was(tmp_path: Path) -> None:
    plot = LiveNMFPlot(save=tmp_path / "{raw_uid}.png", max_rate=np.inf, clock=Clock())
    one = Scan(plot, uid="one", n=6)
    one.measure(0, 1)
    other = Scan(plot, uid="other", names=("other",), fixed=(True,), n=4)
    one.measure(2, 3)
    other.measure(0, 1)
    one.snapshot(4, converged=True)
    one.run.close()
    assert (tmp_path / "one.png").exists()
    assert len(line(plot, "weights", "other").get_xdata()) <= 2
    other.measure(2, 3)
    other.snapshot(converged=True)
    other.run.close()
    assert (tmp_path / "other.png").exists()
    np.testing.assert_array_equal(line(plot, "weights", "other").get_ydata(), other.W[:, 0])


# When and where it is drawn


def test_drawing_keeps_to_its_rate_and_the_end_is_always_drawn() -> None:
    clock = Clock()
    plot = LiveNMFPlot(max_rate=5, clock=clock)
    scan = Scan(plot)
    scan.measure(*range(6))
    assert plot.draws == 1
    clock.now += 0.19
    scan.measure(6)
    assert plot.draws == 1
    clock.now += 0.02
    scan.measure(7)
    assert plot.draws == 2
    assert len(line(plot, "weights", "cubic").get_xdata()) == 8
    scan.measure(*range(8, 12))
    scan.run.close()
    assert plot.draws == 3
    assert len(line(plot, "weights", "cubic").get_xdata()) == 12


def test_slow_drawing_takes_a_quarter_of_the_time_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    plot = LiveNMFPlot(max_rate=5, clock=clock)

    def slow(_view: object) -> None:
        clock.now += 2.0

    monkeypatch.setattr(plot._panels, "show", slow)
    scan = Scan(plot)
    for i in range(12):
        scan.measure(i)
        clock.now += 1.0
    assert plot.draws == 2


def test_an_axis_that_was_zoomed_stays_zoomed() -> None:
    plot = LiveNMFPlot(max_rate=np.inf, clock=Clock())
    scan = Scan(plot)
    scan.measure(0, 1)
    plot.axes["weights"].set_xlim(100, 200)
    scan.measure(2, 3)
    scan.run.close()
    assert plot.axes["weights"].get_xlim() == (100, 200)


def test_another_dataset_is_shown_whole_after_zooming_into_the_last() -> None:
    plot = LiveNMFPlot()
    Scan(plot).whole()
    plot.axes["weights"].set_xlim(151, 152)
    Scan(plot, uid="second").whole()
    low, high = plot.axes["weights"].get_xlim()
    assert low < 150 and high > 205


def test_an_error_in_drawing_is_logged_once_kept_and_shown(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    plot = LiveNMFPlot(max_rate=np.inf, clock=Clock())
    scan = Scan(plot)

    def fails(_view: object) -> None:
        raise RuntimeError("out of ink")

    with monkeypatch.context() as patch, caplog.at_level(logging.ERROR):
        patch.setattr(plot._panels, "show", fails)
        scan.measure(*range(5))
    assert [record.message.count("out of ink") for record in caplog.records] == [1]
    assert isinstance(plot.error, RuntimeError)
    scan.run.close()
    assert "this figure: RuntimeError: out of ink" in trouble(plot)


def test_a_document_that_cannot_be_read_raises_nothing(caplog: pytest.LogCaptureFixture) -> None:
    plot = LiveNMFPlot()
    scan = Scan(plot)
    scan.measure(0)
    descriptor = scan.run._streams["primary"].descriptor_doc["uid"]
    plot("event", {"descriptor": descriptor, "data": {}, "uid": "x", "seq_num": 2})
    assert isinstance(plot.error, KeyError)
    assert "cannot be shown" in caplog.text
    scan.run.close()
    assert "this figure: KeyError" in trouble(plot)


def test_without_a_display_no_window_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.platform", "linux")
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.setattr(matplotlib, "get_backend", lambda **_kwargs: "qtagg")
    plot = LiveNMFPlot()
    assert type(plot.figure.canvas) is FigureCanvasAgg
    assert plot.figure.canvas.manager is None


def test_a_display_that_does_not_answer_raises_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(**_kwargs: object) -> str:
        raise ImportError("cannot connect to display")

    monkeypatch.setattr(matplotlib, "get_backend", refused)
    assert type(LiveNMFPlot().figure.canvas) is FigureCanvasAgg


def test_it_can_be_made_and_fed_in_any_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.setattr(matplotlib, "get_backend", lambda **_kwargs: "qtagg")
    plots: list[LiveNMFPlot] = []

    def work() -> None:
        plots.append(LiveNMFPlot(save=tmp_path / "thread.png"))
        Scan(plots[0]).whole()

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(timeout=60)
    assert plots[0].error is None
    assert (tmp_path / "thread.png").exists()


class WindowTimer(TimerBase):
    """The timer of a window whose loop runs when a test says so."""

    def fire(self) -> None:
        self._on_timer()


class WindowCanvas(FigureCanvasAgg):
    """A canvas like a window's: it has a loop, and remembers which thread drew it."""

    def __init__(self, figure: Figure) -> None:
        super().__init__(figure)
        self.timers: list[WindowTimer] = []
        self.drawn_by: list[threading.Thread] = []

    def new_timer(self, interval: Any = None, callbacks: Any = None) -> TimerBase:
        self.timers.append(WindowTimer(interval=interval, callbacks=callbacks))
        return self.timers[-1]

    def draw(self) -> None:
        self.drawn_by.append(threading.current_thread())
        super().draw()


def test_a_window_is_drawn_by_its_own_loop_and_saved_without_it(tmp_path: Path) -> None:
    figure = Figure()
    canvas = WindowCanvas(figure)
    plot = LiveNMFPlot(fig=figure, save=tmp_path / "window.png")
    thread = threading.Thread(target=lambda: Scan(plot).whole())
    thread.start()
    thread.join(timeout=60)
    assert canvas.drawn_by == []
    assert (tmp_path / "window.png").exists()
    canvas.timers[-1].fire()
    assert canvas.drawn_by == [threading.main_thread()]
    assert len(line(plot, "weights", "cubic").get_xdata()) == 12
    canvas.timers[-1].fire()
    assert len(canvas.drawn_by) == 1


def test_after_its_window_was_closed_runs_are_still_saved(tmp_path: Path) -> None:
    figure = Figure()
    WindowCanvas(figure)
    plot = LiveNMFPlot(fig=figure, save=tmp_path / "{raw_uid}")
    scan = Scan(plot)
    scan.measure(0)
    figure.canvas.callbacks.process("close_event", None)
    scan.measure(1)
    scan.run.close()
    assert (tmp_path / "raw-uid.png").exists()
    assert plot.error is None


# Where it is saved


def test_the_end_of_a_run_saves_the_figure_in_a_new_folder(tmp_path: Path) -> None:
    plot = LiveNMFPlot(save=tmp_path / "new" / "{plan_name}" / "{scan_id:04d}_{uid:.8}_{sample}")
    scan = Scan(plot, metadata={"sample_name": "Ba/Ti O3"}).whole()
    expected = tmp_path / "new" / "ramp" / f"0042_{scan.run.uid[:8]}_Ba_Ti_O3.png"
    assert plot.path == expected
    assert expected.read_bytes().startswith(b"\x89PNG")


def test_a_folder_gets_one_file_for_each_run_even_without_a_scan_id(tmp_path: Path) -> None:
    plot = LiveNMFPlot(save=tmp_path)
    runs = [Scan(plot, metadata={"scan_id": None}).whole().run for _ in range(2)]
    saved = sorted(path.name for path in tmp_path.iterdir())
    assert saved == sorted(f"scan_none_{run.uid[:8]}.png" for run in runs)


def test_a_figure_that_cannot_be_saved_is_an_error_that_reaches_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    plot = LiveNMFPlot(save=tmp_path / "file" / "figure.png")
    Scan(plot).whole()
    assert plot.path is None
    assert isinstance(plot.error, OSError)
    assert "cannot be saved" in caplog.text


def test_savefig_saves_what_stands_there_as_its_suffix_says(tmp_path: Path) -> None:
    plot = LiveNMFPlot()
    Scan(plot).measure(0, 1)
    assert plot.savefig(tmp_path / "a" / "now.pdf") == plot.path
    assert (tmp_path / "a" / "now.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"show": "amounts"}, "show: expected 'weights' or 'fractions', got 'amounts'"),
        ({"save": "{run}.png"}, "no field 'run'; fields are {scan_id}, {uid}"),
        ({"save": "{}.png"}, "no field ''"),
        ({"save": "{uid.png"}, "no path with fields in braces"),
        ({"save": "figure.docx"}, "writes no 'docx' files here; use one of"),
        ({"max_rate": 0}, "max_rate: expected drawings a second, more than 0, got 0"),
    ],
)
def test_what_cannot_work_is_refused_at_once(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError) as refused:
        LiveNMFPlot(**arguments)
    assert message in str(refused.value)

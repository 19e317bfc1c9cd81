"""An alarm reaches the log, the documents and the figure, and is answered as was asked for."""

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky import plans

from bluesky_cmf import LiveNMF, LiveNMFPlot, Phase, open_catalog, replay
from bluesky_cmf.cli import run
from bluesky_cmf.documents import AnalysisReader, read_analysis
from bluesky_cmf.errors import InputError
from bluesky_cmf.unknowns import Alarm, Watch
from tests.heating import Heating, least_squares, lines
from tests.streams import Collector, Detector, axis, engine, run_documents

# --- free components ---------------------------------------------------------------------------


def test_a_component_that_takes_it_up_leaves_nothing_to_tell() -> None:
    ramp = Heating(n=60, begins=20)
    live, out = analysed(ramp, n_components=4)
    assert not out.events("alarms")
    (stop,) = out.named("stop")
    assert stop["cmf"]["alarms"] == [] and live.error is None


# --- through LiveNMF ---------------------------------------------------------------------------


@dataclass
class Asked:
    """Answers an alarm."""

    answer: Callable[[Alarm], object] = lambda alarm: None
    alarms: list[Alarm] = field(default_factory=list)

    def __call__(self, alarm: Alarm) -> None:
        self.alarms.append(alarm)
        self.answer(alarm)


def analysed(
    ramp: Heating, *subscribers: Any, background: bool = False, **kwargs: Any
) -> tuple[LiveNMF, Collector]:
    out = Collector()
    live = LiveNMF(
        "chi_I",
        x="chi_Q",
        **{"phases": ramp.phases, "n_components": 3, **kwargs},
        background=background,
    )
    for subscriber in (out, *subscribers):
        live.subscribe(subscriber)
    for name, doc in run_documents(ramp.patterns, x=ramp.x):
        live(name, doc)
    assert live.wait(60)
    live.close()
    return live, out


APPEARING = Heating(n=45, begins=20)


def test_an_unknown_in_a_running_scan_is_logged_published_read_and_drawn(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    ramp = APPEARING
    out, reader, plot = Collector(), AnalysisReader(), LiveNMFPlot()
    live = LiveNMF("det_chi_I", x="det_chi_Q", phases=ramp.phases, n_components=3)
    for subscriber in (out, reader, plot):
        live.subscribe(subscriber)
    RE = engine()
    RE.subscribe(live)
    with caplog.at_level(logging.WARNING, logger="bluesky_cmf"):
        RE(plans.scan([Detector(ramp.patterns, ramp.x)], axis(), 1, ramp.n, ramp.n))
        assert live.wait(60)
    live.close()
    assert live.error is None
    (event,) = out.events("alarms")
    data = event["data"]
    assert 20 < data["n_patterns"] <= ramp.at_two_percent + 3
    assert data["since_seq_num"] == data["since"] <= data["n_patterns"]
    assert data["significance"] > 3.5 and 0 < data["share"] < 0.05
    np.testing.assert_array_equal(data["ranges"][0], [data["x_first"], data["x_last"]])
    (warning,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert data["alarm"] in warning.getMessage()
    assert f"since pattern {data['since']}" in data["alarm"] and "det_chi_Q" in data["alarm"]
    (stop,) = out.named("stop")
    (told,) = stop["cmf"]["alarms"]
    assert told["alarm"] == data["alarm"] and told["ranges"][0] == [data["x_first"], data["x_last"]]
    (read,) = reader.alarms
    assert str(read) == data["alarm"] and read.since == data["since"]
    assert [list(ends) for ends in read.ranges] == told["ranges"]
    assert data["alarm"].split(":")[0][:60] in figure_text(plot)


def figure_text(plot: LiveNMFPlot) -> str:
    texts = plot.figure.findobj(match=lambda artist: hasattr(artist, "get_text"))
    return " ".join(" ".join(text.get_text().split()) for text in texts)


def bands(plot: LiveNMFPlot, panel: str) -> list[tuple[float, float]]:
    """Where a panel is shaded."""
    from matplotlib.collections import PolyCollection

    (found,) = [c for c in plot.axes[panel].collections if isinstance(c, PolyCollection)]
    vertices = [path.vertices[:, 0] for path in found.get_paths()]
    return [(float(v.min()), float(v.max())) for v in vertices]


def test_the_figure_shades_what_is_not_explained_until_the_model_is_another_one() -> None:
    plot = LiveNMFPlot()
    _, out = analysed(APPEARING, plot)
    (event,) = out.events("alarms")
    for panel in ("pattern", "difference"):
        found = bands(plot, panel)
        assert any(a <= event["data"]["x_first"] <= b for a, b in found)
        assert all(b - a < 0.1 * APPEARING.points for a, b in found)
    assert f"not explained from {event['data']['since']} on" in figure_text(plot)
    plot = LiveNMFPlot()
    analysed(APPEARING, plot, on_unknown="add")
    assert not bands(plot, "pattern") and "not explained" not in figure_text(plot)
    assert "add unknown 1" in figure_text(plot)


def beyond_known(pattern: np.ndarray) -> np.ndarray:
    """What is left of a pattern beside the declared phases."""
    known = APPEARING.components
    return pattern - least_squares(pattern[None], known)[0] @ known


@pytest.mark.parametrize("background", [False, True])
def test_a_component_is_added_by_itself_and_explains_it(background: bool) -> None:
    live, out = analysed(APPEARING, on_unknown="add", background=background)
    assert live.error is None
    assert live.result.names == ("alpha", "beta", "background", "unknown 1")
    # A factorization may mix what is held into what is free.
    found = beyond_known(live.result.components[3])
    assert np.corrcoef(found, beyond_known(APPEARING.hidden))[0, 1] > 0.95
    assert live.result.n_patterns == APPEARING.n
    first, second = out.named("start")
    assert second["cmf"]["continues"] == first["uid"]
    assert second["cmf"]["components"][3]["origin"] == "found in the residual"
    (change,) = out.events("constraints")
    assert (change["data"]["action"], change["data"]["component"]) == ("add", "unknown 1")
    assert len(out.events("alarms")) == 1
    assert len(out.events("primary")) == APPEARING.n


def test_no_more_than_three_are_added_by_themselves(caplog: pytest.LogCaptureFixture) -> None:
    # Lines that drift by their width every few patterns: no number of components will do.
    x = np.arange(600.0)
    patterns = np.stack(
        [50 + lines(x, np.array([80 + 6.0 * n]), np.array([3000.0]), 8) for n in range(70)]
    )
    patterns = np.random.default_rng(0).poisson(patterns).astype(float)
    known = [Phase.from_array("background", x, np.ones(600))]
    out = Collector()
    live = LiveNMF(
        "chi_I", x="chi_Q", phases=known, n_components=1, on_unknown="add", background=False
    )
    live.subscribe(out)
    with caplog.at_level(logging.WARNING, logger="bluesky_cmf"):
        for name, doc in run_documents(patterns, x=x):
            live(name, doc)
    assert live.result.names == ("background", "unknown 1", "unknown 2", "unknown 3")
    assert any("no component is added" in r.getMessage() for r in caplog.records)
    assert len(out.events("alarms")) < 10


@pytest.mark.parametrize("background", [False, True])
def test_a_function_is_asked_and_may_change_the_model(background: bool) -> None:
    asked = Asked()
    out = Collector()
    live = LiveNMF(
        "chi_I",
        x="chi_Q",
        phases=APPEARING.phases,
        n_components=3,
        on_unknown=asked,
        background=background,
    )
    asked.answer = lambda alarm: live.add_component("impurity", alarm.residual)
    live.subscribe(out)
    for name, doc in run_documents(APPEARING.patterns, x=APPEARING.x):
        live(name, doc)
    assert live.wait(60)
    live.close()
    (alarm,) = asked.alarms
    assert "no component explains" in str(alarm) and alarm.residual.shape == (1000,)
    # Of the run that raised it, though all of it may have been in line by then.
    assert live.result.names[3] == "impurity" and live.error is None
    assert [event["data"]["action"] for event in out.events("constraints")] == ["add"]


def test_what_the_function_raises_is_kept_and_goes_no_further() -> None:
    def fails(alarm: Alarm) -> None:
        raise RuntimeError("no")

    live, out = analysed(APPEARING, on_unknown=Asked(fails))
    assert str(live.error) == "no"
    assert len(out.events("primary")) == APPEARING.n
    assert out.named("stop")[0]["exit_status"] == "success"


def test_a_test_that_fails_costs_no_pattern(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Watch, *args: Any, **kwargs: Any) -> list[Alarm]:
        raise ValueError("broken")

    monkeypatch.setattr(Watch, "look", broken)
    live, out = analysed(Heating(n=5))
    assert str(live.error) == "broken"
    assert len(out.events("primary")) == 5
    assert out.named("stop")[0]["exit_status"] == "success"


def test_an_answer_of_another_kind_is_refused() -> None:
    with pytest.raises(InputError, match="on_unknown: expected 'warn', 'add' or f"):
        LiveNMF("chi_I", on_unknown="shout")  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Any]:
    with open_catalog(tmp_path / "catalog") as catalog:
        yield catalog


def test_alarms_come_back_from_a_catalog_as_they_were(folder: Any) -> None:
    writer = folder.writer()
    reader = AnalysisReader()
    analysed(APPEARING, writer, reader)
    writer.close()
    stored = read_analysis(folder.documents(reader.uid))
    (alarm,), (published,) = stored.alarms, reader.alarms
    assert (alarm.text, alarm.ranges, alarm.since) == (
        published.text,
        published.ranges,
        published.since,
    )
    assert stored.stop["cmf"]["alarms"][0]["alarm"] == alarm.text
    plot = LiveNMFPlot()
    replay(folder, reader.uid, plot)
    assert alarm.text[:60] in figure_text(plot)


def test_replay_at_the_command_line_tells_and_adds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ramp = APPEARING
    documents = run_documents(ramp.patterns, x=ramp.x)
    with open_catalog(tmp_path / "catalog") as catalog:
        writer = catalog.writer()
        for name, doc in documents:
            writer(name, doc)
        writer.close()
    options = ["replay", str(tmp_path / "catalog"), documents[0][1]["uid"]]
    options += ["--pattern", "chi_I", "--x", "chi_Q", "--components", "3"]
    for phase in ramp.phases:
        path = tmp_path / f"{phase.name}.xy"
        np.savetxt(path, np.column_stack([ramp.x, phase.on(ramp.x)]))
        options += ["--phase", str(path)]
    assert run(options) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert "unexplained no component explains the intensity at chi_Q" in told
    assert "unknown 1" not in told
    assert run([*options, "--on-unknown", "add"]) == 0
    assert "unknown 1" in capsys.readouterr().out
    assert run([*options, "--on-unknown", "shout"]) == 2
    assert "on_unknown: expected 'warn' or 'add', got 'shout'" in capsys.readouterr().err

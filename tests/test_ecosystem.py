"""The analysis run among the tools that beamlines have: bluesky's callbacks, Tiled, databroker."""

import logging
import warnings

import bluesky.plans as bp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from bluesky.callbacks import LivePlot, LiveTable
from bluesky.callbacks.best_effort import BestEffortCallback

from bluesky_cmf import LiveNMF, LiveNMFPlot, Phase, open_catalog, replay
from bluesky_cmf.documents import read_analysis
from tests.streams import Collector, Detector, axis, engine, mixtures

# databroker.temp() is a Tiled application in this process: its client imports Starlette's test
# client, which wants another HTTP library than Tiled's.
pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")

X, H, PATTERNS = mixtures(noise=0.01)
PURE = Phase.from_array("cubic (1)", X, H[0])


@pytest.fixture
def scanned():
    """Run a scan with LiveNMF and the given subscribers; give the documents of both runs."""
    made = []

    def scan(*subscribers, raw=()):
        live = LiveNMF("det_chi_I", x="chi_Q", n_components=2, phases=[PURE], device="cpu")
        made.append(live)
        out, measured = Collector(), Collector()
        for subscriber in (out, *subscribers):
            live.subscribe(subscriber)
        RE = engine()
        RE.subscribe(live)
        for subscriber in (measured, *raw):
            RE.subscribe(subscriber)
        RE(bp.scan([Detector(PATTERNS, X)], axis(), 300, 400, len(PATTERNS)))
        assert live.wait(60)
        assert live.error is None
        return live, out, measured

    yield scan
    for live in made:
        live.close(30)
    plt.close("all")


def test_blueskys_own_callbacks_work_on_it(scanned, capsys, caplog):
    best = BestEffortCallback()
    table = LiveTable(["temperature", "weight_cubic__1_", "r_factor"])
    _, axes = plt.subplots()
    plot = LivePlot("weight_unknown_1", "temperature", ax=axes)
    with caplog.at_level(logging.WARNING), warnings.catch_warnings():
        warnings.simplefilter("error")
        scanned(best, table, plot)
    assert not caplog.records, caplog.text
    printed = capsys.readouterr().out
    assert printed.count("weight_cubic") >= 2
    assert len(axes.lines[0].get_xdata()) == len(PATTERNS)
    # The weights, unasked, and only they.
    drawn = {label for label in plt.get_figlabels() if " vs " in label}
    assert drawn == {"weight_cubic__1_ weight_unknown_1 vs temperature"}


@pytest.mark.parametrize("kind", ["folder", "broker"])
def test_it_comes_back_from_a_catalog_as_it_was(scanned, tmp_path, kind):
    if kind == "broker":
        from databroker import temp

        spec = temp()
    else:
        spec = tmp_path / "catalog"
    with open_catalog(spec) as catalog:
        writer = catalog.writer()
        live, out, measured = scanned(writer, raw=[writer])
        assert writer.flush(60)
        (start,) = out.named("start")
        back = Collector()
        for name, doc in catalog.documents(start["uid"]):
            back(name, doc)
        assert back.named("stop")[0]["exit_status"] == "success"
        for stream in ("primary", "components", "weights"):
            stored, sent = back.data(stream), out.data(stream)
            assert stored.keys() == sent.keys()
            for key, values in sent.items():
                np.testing.assert_array_equal(stored[key], values, err_msg=f"{stream}: {key}")
        assert not back.events("latest"), "a view for looking was stored"
        hints = {d["name"]: d["hints"] for d in back.named("descriptor")}
        assert hints["primary"] == {"cmf": {"fields": ["weight_cubic__1_", "weight_unknown_1"]}}

        again = LiveNMF(
            "det_chi_I", x="chi_Q", n_components=2, phases=[PURE], background=False, device="cpu"
        )
        raw = measured.named("start")[0]["uid"]
        replay(catalog, raw, again)
        assert again.result.n_patterns == len(PATTERNS)
        assert again.result.objective == pytest.approx(live.result.objective, rel=1e-3)
        again.close()


def test_a_stored_analysis_is_drawn_as_the_live_one(scanned, tmp_path):
    drawn, stored = LiveNMFPlot(save=tmp_path / "live.png"), LiveNMFPlot()
    with open_catalog(tmp_path / "catalog") as catalog:
        writer = catalog.writer()
        _, out, _ = scanned(drawn, writer)
        assert writer.flush(60)
        uid = out.named("start")[0]["uid"]
        replay(catalog, uid, stored)
        reader = read_analysis(catalog.documents(uid))
    assert drawn.path.stat().st_size > 10_000
    for one, two in zip(drawn.axes["weights"].lines, stored.axes["weights"].lines, strict=True):
        np.testing.assert_array_equal(one.get_xydata(), two.get_xydata())
    assert reader.names == ("cubic (1)", "unknown 1")
    np.testing.assert_array_equal(reader.components[0], H[0].astype("f4"))

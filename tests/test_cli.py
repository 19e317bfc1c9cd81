"""The command line: what it prints, what it leaves behind, and its exit codes."""

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from bluesky import RunEngine

from bluesky_cmf import LiveNMF, open_catalog
from bluesky_cmf.catalogs import Catalog
from bluesky_cmf.cli import run
from bluesky_cmf.cli.console import ScanProgress, summarize
from bluesky_cmf.documents import AnalysisReader, read_analysis
from bluesky_cmf.phases import Phase
from bluesky_cmf.simulation import HeatingRamp, Ramp, StoredRamp, heat, simulated_beamline
from tests.streams import mixtures, run_documents
from tests.structures import STRUCTURES

PROGRAM = [sys.executable, "-m", "bluesky_cmf"]
PNG = b"\x89PNG"
UID = r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"


def environment() -> dict[str, str]:
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "MPLBACKEND")
    return {key: value for key, value in os.environ.items() if key not in hidden}


def fact(output: str, name: str) -> str:
    """What stands after a name at the beginning of a line."""
    found = re.search(rf"^{re.escape(name)} +(.*)$", output, re.MULTILINE)
    assert found, f"no line {name!r} in:\n{output}"
    return found[1].strip()


def objective(output: str) -> float:
    return float(fact(output, "objective").split()[0])


# --- the demo


@dataclass(frozen=True)
class Finished:
    """A demo that has ended: what it said, and the two runs that its catalog holds."""

    folder: Path
    code: int
    output: str
    errors: str
    raw: list[tuple[str, Any]]
    analysis: AnalysisReader


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("demo")
    command = [*PROGRAM, "demo", "--patterns", "8", "--exposure", "0.01"]
    done = subprocess.run(
        command, cwd=folder, env=environment(), capture_output=True, text=True, timeout=180
    )
    assert done.returncode == 0, done.stdout + done.stderr
    with open_catalog(folder / "demo-catalog", create=False) as catalog:
        raw = list(catalog.documents(fact(done.stdout, "raw run")))
        analysis = read_analysis(catalog.documents(fact(done.stdout, "analysis run")))
    return Finished(folder, done.returncode, done.stdout, done.stderr, raw, analysis)


def test_the_demo_ends_by_itself_and_says_nothing_on_stderr(demo: Finished) -> None:
    assert (demo.code, demo.errors) == (0, "")
    assert "scan: 8 of 8 patterns" in demo.output


def test_the_demo_saves_the_figure_where_it_says(demo: Finished) -> None:
    figure = demo.folder / fact(demo.output, "figure")
    assert figure.read_bytes().startswith(PNG)


def test_the_demo_stores_the_raw_and_the_analysis_run_it_names(demo: Finished) -> None:
    analysis = demo.analysis
    assert [name for name, _doc in demo.raw].count("event") == 8
    assert analysis.start is not None
    assert analysis.start["original_run_uid"] == fact(demo.output, "raw run")
    assert (analysis.n_patterns, analysis.converged) == (8, True)
    assert analysis.objective == pytest.approx(objective(demo.output), rel=1e-4)


def test_the_demo_holds_the_known_phases_as_they_were_written_beside_it(demo: Finished) -> None:
    phases = demo.folder / "demo-catalog" / "phases" / "heating_ramp"
    assert demo.analysis.names[:2] == ("tetragonal", "cubic")
    assert demo.analysis.components is not None
    for name, component in zip(demo.analysis.names[:2], demo.analysis.components, strict=False):
        written = Phase.from_file(phases / f"{name}.xy").y
        np.testing.assert_array_equal(component, written.astype(component.dtype))


def test_the_replay_command_of_the_demo_reproduces_it(
    demo: Finished, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(fact(demo.output, "replay with"))
    assert words[: len(PROGRAM)] == PROGRAM
    monkeypatch.chdir(demo.folder)
    assert run(words[len(PROGRAM) :]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert fact(output, "raw run") == fact(demo.output, "raw run")
    assert objective(output) == pytest.approx(objective(demo.output), rel=1e-3)


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Let SIGINT interrupt: a shell starts what it runs in the background with it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupted_demo_stores_what_was_measured_and_exits_with_130(
    stored: "Stored",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Interrupting(ScanProgress):
        """The user interrupts when a quarter is measured."""

        def advance(self) -> None:
            super().advance()
            if self._count == 4:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("bluesky_cmf.cli.demonstrating.ScanProgress", Interrupting)
    monkeypatch.chdir(tmp_path)
    options = ["--patterns", "16", "--exposure", "0.1", "--catalog", str(stored.other)]
    assert run(["demo", *options]) == 130
    output, errors = capsys.readouterr()
    assert errors == ""
    with open_catalog(stored.other, create=False) as catalog:
        *_, (name, stop) = catalog.documents(fact(output, "raw run"))
        analysis = read_analysis(catalog.documents(fact(output, "analysis run")))
    assert (name, stop["exit_status"]) == ("stop", "abort")
    assert analysis.n_patterns == stop["num_events"]["primary"] >= 4
    assert analysis.stop is not None


# --- replay


@dataclass(frozen=True)
class Stored:
    """A catalog with two runs of small patterns, an empty one, and files of the known phases."""

    folder: Path
    other: Path
    uids: tuple[str, str]
    phases: tuple[Path, Path]

    def replay(self, *uids: str, **options: str | None) -> list[str]:
        flags = {"pattern": "det_intensity", "x": "det_two_theta", **options}
        words = [f"--{name}={value}" for name, value in flags.items() if value is not None]
        return ["replay", str(self.folder), *(uids or self.uids[:1]), *words]

    def with_phases(self, *uids: str, **options: str | None) -> list[str]:
        phases = [f"--phase={path}" for path in self.phases]
        return [*self.replay(*uids, components="3", **options), *phases]


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stored]:
    folder = tmp_path_factory.mktemp("stored")
    ramp = HeatingRamp(n_patterns=6, n_features=200)
    phases = []
    for name, x, y in ramp.references:
        phases.append(folder / f"{name}.xy")
        np.savetxt(phases[-1], np.column_stack([x, y]))
    # A folder is served once in a process: held open, it need not be started for each test.
    with open_catalog(folder / "catalog") as catalog, open_catalog(folder / "other") as other:
        uids = [scan(catalog, ramp) for _ in range(2)]
        yield Stored(
            Path(catalog.spec), Path(other.spec), (uids[0], uids[1]), (phases[0], phases[1])
        )


def scan(catalog: Catalog, ramp: Ramp) -> str:
    beamline = simulated_beamline(ramp, exposure=0.0, travel=0.0)
    RE = RunEngine(context_managers=[])
    with contextlib.closing(catalog.writer()) as writer:
        RE.subscribe(writer)
        uid: str = RE(heat([beamline.det], beamline.stage, ramp.positions))[0]
    return uid


def analysis_in(folder: Path, output: str) -> AnalysisReader:
    """The analysis run that the output names."""
    with open_catalog(folder, create=False) as catalog:
        return read_analysis(catalog.documents(fact(output, "analysis run")))


def test_the_demo_plays_real_patterns_between_the_first_and_the_last(
    stored: Stored,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    ramp = HeatingRamp(n_patterns=6, n_features=200)
    patterns = np.array([ramp.pattern(t, shot=i) for i, t in enumerate(ramp.positions)])
    np.savez("real.npz", q=ramp.x, pressure=ramp.positions, counts=patterns)
    options = ["--data", "real.npz", "--exposure", "0", "--components", "3", "--figure", "f.pdf"]
    assert run(["demo", *options, "--catalog", str(stored.other)]) == 0
    output = capsys.readouterr().out
    assert re.search(r"^first +held", output, re.MULTILINE)
    assert re.search(r"^last +held", output, re.MULTILINE)
    phase = stored.other / "phases" / "real" / "first.xy"
    assert f"--x det_q --components 3 --phase {phase}" in output
    assert (tmp_path / "f.pdf").read_bytes().startswith(b"%PDF")


def test_replay_shows_each_component_and_whether_it_is_held(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(stored.with_phases()) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert fact(output, "patterns") == "6"
    for name, state in (("tetragonal", "held"), ("cubic", "held"), ("unknown 1", "free")):
        row = rf"^{name} +{state}( +[\d.e+-]+){{3}} +[\d.]+( ± [\d.]+)?$"
        assert re.search(row, output, re.M)


def test_fractions_of_the_last_pattern_stand_with_their_errors(
    capsys: pytest.CaptureFixture[str],
) -> None:
    x, H, patterns = mixtures(20, noise=0.05)
    phases = [Phase.from_array(name, x, y) for name, y in zip("ab", H, strict=True)]
    live = LiveNMF("chi_I", x="chi_Q", phases=phases, n_components=2, background=False)
    reader = AnalysisReader()
    live.subscribe(reader)
    for name, doc in run_documents(patterns[:6], x=x):
        live(name, doc)
    assert live.result is not None

    summarize(reader, live.result)

    output = capsys.readouterr().out
    assert "± σ, first fit" in output
    for k, name in enumerate("ab"):
        row = re.search(rf"^{name} +held .* ([\d.]+) ± ([\d.]+)$", output, re.M)
        assert row, output
        assert float(row[1]) == pytest.approx(reader.fractions[-1, k], abs=1e-3)
        assert float(row[2]) == pytest.approx(reader.fraction_errors[-1, k], rel=0.1)


def test_replay_stores_the_analysis_run_in_the_same_catalog_on_request(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*stored.with_phases(), "--save"]) == 0
    analysis = analysis_in(stored.folder, capsys.readouterr().out)
    assert analysis.n_patterns == 6
    assert analysis.start is not None
    assert analysis.start["original_run_uid"] == stored.uids[0]


def test_replay_of_two_runs_gives_two_analysis_runs_and_two_figures(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(stored.with_phases(*stored.uids, figure=str(tmp_path / "run.png"))) == 0
    output = capsys.readouterr().out
    assert re.findall(rf"^raw run +({UID})$", output, re.MULTILINE) == list(stored.uids)
    assert re.findall(r"^patterns +(\d+)$", output, re.MULTILINE) == ["6", "6"]
    expected = [f"run_{uid[:8]}.png" for uid in stored.uids]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(expected)


def test_replay_of_two_runs_as_a_session_fits_all_patterns_together(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*stored.with_phases(*stored.uids), "--session"]) == 0
    output = capsys.readouterr().out
    assert fact(output, "patterns") == "12"
    assert fact(output, "raw run") == ", ".join(stored.uids)


def test_replay_into_another_catalog_crops_and_normalises_and_draws_against_another_variable(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    command = stored.with_phases(normalize="max", independent="det_total", into=str(stored.other))
    assert run([*command, "--roi", "3", "7", "--seed", "4"]) == 0
    analysis = analysis_in(stored.other, capsys.readouterr().out)
    assert analysis.start is not None
    assert analysis.n_patterns == 6
    assert analysis.variables == ("det_total",)
    steps = {"roi": [3.0, 7.0], "normalize": "max", "negative": "reject"}
    steps |= dict.fromkeys(["regrid", "rebin", "background", "monitor"])
    assert analysis.start["cmf"]["preprocess"] == steps
    assert analysis.start["cmf"]["seed"] == 4
    assert analysis.axis is not None
    assert 3.0 <= analysis.axis.values[0] < analysis.axis.values[-1] <= 7.0


def test_replay_takes_every_step_before_the_fit_and_where_the_noise_is_known_from(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    command = stored.with_phases(
        regrid="0.05",
        rebin="2",
        background="snip:max_half_window=20,decreasing=true",
        normalize="monitor",
        monitor="det_total",
        errors="counts",
        into=str(stored.other),
    )
    assert run(command) == 0
    analysis = analysis_in(stored.other, capsys.readouterr().out)
    assert analysis.start is not None
    steps = {
        "roi": None,
        "regrid": 0.05,
        "rebin": 2,
        "negative": "reject",
        "background": {"name": "snip", "max_half_window": 20, "decreasing": True},
        "normalize": "monitor",
        "monitor": "det_total",
    }
    assert analysis.start["cmf"]["preprocess"] == steps
    assert analysis.start["cmf"]["errors"] == "counts"
    assert analysis.axis is not None
    np.testing.assert_allclose(np.diff(analysis.axis.values), 0.1, rtol=1e-6)


def test_replay_says_that_errors_could_not_be_used_and_is_no_failure(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(stored.with_phases(errors="sigma")) == 0
    output = capsys.readouterr().out
    assert fact(output, "faults").startswith("errors: no data key 'sigma' in stream 'primary'")
    assert fact(output, "patterns") == "6"


def test_replay_lists_rejected_patterns_with_their_reason_and_fits_the_others(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    patterns = np.ones((4, 100))
    patterns[1:3, 7] = np.nan
    x = np.linspace(1.0, 2.0, 100)
    ramp = StoredRamp("broken", "temperature", "two_theta", x, np.arange(4.0), patterns)
    with open_catalog(stored.other) as catalog:
        uid = scan(catalog, ramp)
    words = ["--pattern", "det_intensity", "--x", "det_two_theta"]
    assert run(["replay", str(stored.other), uid, *words]) == 0
    output = capsys.readouterr().out
    assert fact(output, "patterns") == "2"
    assert fact(output, "rejected").startswith("2: 2 x NaN or infinity at 1 of 100 points")
    assert "first: event 2" in output


def test_a_variable_that_is_not_in_the_run_is_an_error_that_names_what_there_is(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--independent", "temperature", "--independent", "pressure"]
    assert run([*stored.with_phases(), *both]) == 2
    output, errors = capsys.readouterr()
    assert fact(output, "patterns") == "6"
    (line,) = [line for line in errors.splitlines() if "error" in line]
    assert line.startswith("bluesky-cmf: error: --independent: no data key 'pressure' in the run")
    assert "stream 'primary' has det_intensity, det_total, temperature" in line


def test_the_time_and_names_that_the_schema_claims_are_variables_too(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    both = ["--independent", "time", "--independent", "scan_id"]
    assert run([*stored.with_phases(), *both]) == 0
    assert capsys.readouterr().err == ""


def test_replay_takes_settings_and_options_win_over_them(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "settings.yaml").write_text(
        "pattern: det_intensity\nx: det_two_theta\nn_components: 3\nseed: 4\n"
        f"phases: [{{file: {stored.phases[0]}}}, {{file: {stored.phases[1]}}}]\n"
        "preprocess: {roi: [3, 7]}\n"
    )
    command = ["replay", str(stored.folder), stored.uids[0], "--settings"]
    command += [str(tmp_path / "settings.yaml"), "--into", str(stored.other), "--seed", "5"]
    assert run([*command, "--set", "preprocess.normalize=max"]) == 0
    analysis = analysis_in(stored.other, capsys.readouterr().out)
    assert analysis.names == ("tetragonal", "cubic", "unknown 1")
    assert analysis.start is not None
    cmf = analysis.start["cmf"]
    assert cmf["seed"] == 5
    assert (cmf["preprocess"]["roi"], cmf["preprocess"]["normalize"]) == ([3.0, 7.0], "max")


def test_replay_writes_a_table_and_hdf5_of_each_run(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"csv": str(tmp_path / "table.csv"), "hdf5": str(tmp_path / "run.h5")}
    command = stored.with_phases(*stored.uids, **files)
    assert run(command) == 0
    written = {path.name for path in tmp_path.iterdir()}
    for uid in stored.uids:
        assert {f"table_{uid[:8]}.csv", f"run_{uid[:8]}.h5"} <= written
    assert fact(capsys.readouterr().out, "table").endswith(f"table_{stored.uids[0][:8]}.csv")
    header, *rows = (tmp_path / f"table_{stored.uids[0][:8]}.csv").read_text().splitlines()
    assert header.startswith("pattern,temperature,weight_tetragonal,weight_tetragonal_error")
    assert len(rows) == 6
    # They are there now: nothing is overwritten unless asked.
    assert run(command) == 2
    assert "is there already" in capsys.readouterr().err
    assert run([*command, "--overwrite"]) == 0


def test_a_phase_from_a_cif_takes_wavelength_axis_and_width_of_the_command_line(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "silicon.CIF").write_text(STRUCTURES["silicon"])
    command = stored.replay(phase=str(tmp_path / "silicon.CIF"), components="2")
    options = ["--wavelength", "0.5", "--width", "0.2", "--into", str(stored.other)]
    assert run([*command, *options, "--roi", "3", "9.9"]) == 0, capsys.readouterr().err
    analysis = analysis_in(stored.other, capsys.readouterr().out)
    assert analysis.start is not None and analysis.names[0] == "silicon"
    assert analysis.start["cmf"]["components"][0]["origin"] == "CIF silicon.CIF"


# --- errors: one line, exit code 2, no traceback


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert run(arguments) == 2
    output, errors = capsys.readouterr()
    assert output == ""
    (line,) = errors.splitlines()
    assert line.startswith("bluesky-cmf: error: ")
    return line


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pattern": "chi_I"}, "no data key 'chi_I'"),
        ({"x": "chi_Q"}, "'chi_Q'"),
        ({"stream": "baseline"}, "baseline"),
        ({"background": "snap"}, "background: no algorithm 'snap'"),
        ({"background": "snip:width"}, "--background: expected NAME:OPTION=VALUE,…, got"),
        ({"background": "asls:lambda=3"}, "background: 'asls' has no option 'lambda'"),
        ({"monitor": "i0"}, "monitor: 'i0' is used with normalize='monitor' alone"),
        ({"normalize": "sum"}, "expected 'max', 'area', 'monitor' or None, got 'sum'"),
        ({"phase": "missing.xy"}, "missing.xy: no such file"),
        ({"figure": "figure.doc"}, "--figure: 'figure.doc': matplotlib writes no 'doc' files"),
        ({"components": "0"}, "--components"),
        ({"components": "many"}, "--components"),
        ({"components": "99999999999999999999"}, "--components"),
        ({"seed": "-1"}, "--seed"),
        ({"seed": str(2**63)}, "--seed"),
        ({"device": "nonsense"}, "--device: expected auto, cpu or a device that torch reaches"),
        ({"device": "meta"}, "--device: expected auto"),
        ({"figure": "{nothing}.png"}, "--figure: '{nothing}.png': no field 'nothing'"),
        ({"figure": "/dev/null/figure.png"}, "--figure: '/dev/null/figure.png' cannot be written"),
        ({"figure": "x" * 300}, "File name too long"),
        ({"pattern": None}, "--pattern"),
        ({"settings": "nowhere.yaml"}, "nowhere.yaml: no such file"),
        ({"set": "nonsense"}, "--set: expected KEY=VALUE, got 'nonsense'"),
        ({"set": "preprocess.rio=[1, 2]"}, "preprocess.rio: no such key; did you mean 'roi'?"),
        ({"wavelength": "0.5"}, "--wavelength: expected with a phase from a CIF, got none"),
        ({"phase": "a.cif", "width": "wide"}, "--width: expected a number, three numbers U,V,W"),
        ({"phase": "a.cif", "axis": "r"}, "axis: expected 'two_theta' or 'q', got 'r'"),
        ({"phase": "a.cif"}, "wavelength: expected the wavelength of the measurement"),
        ({"phase": "a.cif", "wavelength": "0"}, "wavelength: expected angstrom, from 0.05 to 5"),
        ({"phase": "a.cif", "wavelength": "0.5"}, "a.cif: no such file"),
        ({"csv": "table.doc"}, "--csv: expected a file that ends in .csv, .txt, got 'table.doc'"),
        ({"hdf5": "/dev/null/run.h5"}, "--hdf5: '/dev/null/run.h5' cannot be written"),
    ],
)
def test_a_wrong_option_of_replay_is_told_in_one_line(
    stored: Stored,
    capsys: pytest.CaptureFixture[str],
    options: dict[str, str | None],
    message: str,
) -> None:
    assert message in refused(stored.replay(**options), capsys)


def test_more_phases_than_components_are_refused(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    phases = [f"--phase={path}" for path in stored.phases]
    assert "phases" in refused([*stored.replay(components="1"), *phases], capsys)


def test_a_phase_that_does_not_cover_the_data_is_refused(
    stored: Stored, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    np.savetxt(tmp_path / "short.xy", [[2.0, 1.0], [3.0, 1.0]])
    line = refused(stored.replay(phase=str(tmp_path / "short.xy")), capsys)
    assert "phase 'short' covers 2 to 3" in line


def test_an_unknown_uid_is_refused_with_the_catalogs_latest_runs(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "holds no run" in refused(stored.replay("01234567"), capsys)


def test_a_folder_that_is_no_catalog_is_refused_and_not_made_into_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "nothing"
    assert "no catalog" in refused(["replay", str(folder), "01234567", "--pattern", "I"], capsys)
    assert not folder.exists()


def test_an_analysis_run_is_not_replayed_but_its_raw_run_is_named(
    demo: Finished, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, uid = fact(demo.output, "raw run"), str(demo.analysis.uid)
    catalog = str(demo.folder / "demo-catalog")
    line = refused(["replay", catalog, uid, "--pattern", "components"], capsys)
    assert f"{uid} is an analysis run; replay the raw run, {raw}" in line


def test_wrong_options_are_told_before_the_work(
    stored: Stored, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(*_args: object, **_kwargs: object) -> None:
        raise AssertionError("the work has begun")

    for begin in ("cli.replaying.open_catalog", "cli.demonstrating.open_catalog"):
        monkeypatch.setattr(f"bluesky_cmf.{begin}", work)
    monkeypatch.setattr("bluesky_cmf.settings.Settings.live_nmf", work)
    for options in (["--device", "cuda:99"], ["--figure", "/dev/null/f.png"], ["--seed", "-5"]):
        assert options[0] in refused([*stored.with_phases(), *options], capsys)
        assert options[0] in refused(["demo", *options], capsys)


def test_a_figure_that_may_not_be_written_is_refused(
    stored: Stored,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    # Whoever runs the tests may write anywhere, perhaps.
    monkeypatch.setattr("os.access", lambda path, mode: str(path) != str(tmp_path))
    line = refused(stored.replay(figure=str(tmp_path / "new" / "f.png")), capsys)
    assert f"--figure: '{tmp_path}' may not be written" in line


@pytest.mark.parametrize(
    ("catalog", "message"),
    [
        ("https://[", "the address of the server cannot be read"),
        ("x" * 5000, "cannot be opened as a catalog: File name too long"),
        ("a\0b", "cannot be opened as a catalog: embedded null byte"),
    ],
)
def test_a_catalog_that_cannot_be_one_is_told_in_one_line(
    catalog: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(["replay", catalog, "01234567", "--pattern", "I"], capsys)
    assert message in refused(["demo", "--catalog", catalog], capsys)


def test_an_empty_file_of_patterns_is_told_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty.npy").touch()
    line = refused(["demo", "--data", str(tmp_path / "empty.npy")], capsys)
    assert "empty.npy must be an .npz file of plain numpy arrays" in line
    assert "File name too long" in refused(["demo", "--data", "x" * 5000], capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Missing command"),
        (["nonsense"], "No such command 'nonsense'"),
        (["demo", "--data", "missing.npz"], "missing.npz: there is no such file"),
        (["demo", "--seed", "-5"], "--seed"),
        (["demo", "--components", "1001"], "--components"),
        (["demo", "--exposure", "-1"], "exposure must be a time in seconds, 0 or more"),
        (["demo", "--catalog", "http://127.0.0.1:9/"], "does not answer"),
    ],
)
def test_a_wrong_command_line_is_told_in_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused(arguments, capsys)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_things_in_it_is_not_made_into_a_catalog(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert "is not empty" in refused(["demo", "--catalog", str(tmp_path)], capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_without_ophyd_the_demo_names_the_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "bluesky_cmf.simulation.devices", raising=False)
    monkeypatch.setitem(sys.modules, "ophyd", None)
    assert "pip install 'bluesky-cmf[sim]'" in refused(["demo"], capsys)


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def interrupt(*_args: object, **_kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("bluesky_cmf.cli.replaying.replay", interrupt)
    yield


@pytest.mark.usefixtures("interrupted")
def test_an_interrupted_replay_exits_with_130_and_no_traceback(
    stored: Stored, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(stored.with_phases()) == 130
    assert capsys.readouterr().err == ""


def test_the_version_is_that_of_the_package(capsys: pytest.CaptureFixture[str]) -> None:
    import bluesky_cmf

    assert run(["--version"]) == 0
    assert capsys.readouterr().out == f"bluesky-cmf {bluesky_cmf.__version__}\n"


def test_help_is_there_for_each_command(capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("demo", "replay", "fit"):
        assert run([command, "--help"]) == 0
        assert f"bluesky-cmf {command}" in capsys.readouterr().out


# --- the command that is printed


def test_the_printed_command_quotes_what_a_shell_would_split(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from bluesky_cmf.cli.console import command_line

    monkeypatch.setattr(sys, "argv", ["/somewhere/pytest"])
    words = ["replay", "my catalog", "$uid"]
    assert shlex.split(command_line(words)) == [*PROGRAM, *words]


def test_a_script_that_is_on_the_path_is_printed_by_its_name_and_any_other_by_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from bluesky_cmf.cli.console import command_line

    script = tmp_path / "bluesky-cmf"
    script.write_text("#!/bin/sh\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "argv", [str(script)])
    assert command_line(["demo"]) == f"{script} demo"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert command_line(["demo"]) == "bluesky-cmf demo"


# --- frames


@pytest.fixture
def geometry(tmp_path: Path) -> Path:
    """A detector of 40 x 60 pixels, as a .poni file."""
    azimuthal = pytest.importorskip("pyFAI.integrator.azimuthal")
    path = tmp_path / "detector.poni"
    azimuthal.AzimuthalIntegrator(
        dist=0.1, poni1=0.004, poni2=0.006, pixel1=2e-4, pixel2=2e-4, wavelength=1e-10
    ).save(str(path))
    return path


def test_replay_integrates_frames_by_a_geometry(
    tmp_path: Path, geometry: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = np.random.default_rng(0).integers(1, 100, (6, 40, 60)).astype("<u2")
    with open_catalog(tmp_path / "catalog") as catalog:
        writer = catalog.writer()
        documents = run_documents(frames)
        for name, doc in documents:
            writer(name, doc)
    uid = documents[0][1]["uid"]
    command = ["replay", str(tmp_path / "catalog"), uid, "--pattern", "chi_I", "--save"]
    options = ["--poni", str(geometry), "--points", "50", "--unit", "q_A^-1", "--components", "2"]
    assert run([*command, *options]) == 0
    with open_catalog(tmp_path / "catalog", create=False) as catalog:
        analysis = read_analysis(catalog.documents(catalog.uids(1)[0]))
    assert analysis.n_patterns == 6 and analysis.axis is not None
    assert (analysis.axis.name, analysis.axis.units) == ("q", "1/angstrom")
    assert analysis.start["cmf"]["integrator"]["n_points"] == 50
    assert capsys.readouterr().err == ""


def test_replay_says_what_is_wrong_with_a_geometry_or_a_sign(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["replay", str(tmp_path), "3f2a91c0", "--pattern", "chi_I"]
    for options, words in [
        (["--poni", str(tmp_path / "missing.poni")], "no such file"),
        (["--mask", "mask.npy"], "--mask: frames are integrated only with the geometry"),
        (["--negative", "ignore"], "negative: expected 'reject', 'clip' or 'offset'"),
    ]:
        assert run([*command, *options]) == 2
        assert words in capsys.readouterr().err

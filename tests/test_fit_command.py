"""``bluesky-cmf fit``: the batch user's command, from files to figure, table and HDF5."""

import contextlib
import csv
import functools
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from bluesky_cmf import LiveNMFPlot, Settings, open_catalog
from bluesky_cmf.cli import run
from bluesky_cmf.cli.console import FileProgress
from bluesky_cmf.documents import read_analysis
from tests.streams import mixtures, run_documents
from tests.structures import STRUCTURES
from tests.test_cli import fact, refused
from tests.test_patterns import ENDS, SCAN, XRDML

N = 12


@pytest.fixture(autouse=True)
def coarse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures are saved coarsely: what is on them is tested elsewhere."""
    plot = functools.partial(LiveNMFPlot, dpi=20)
    monkeypatch.setattr("bluesky_cmf.cli.outputs.LiveNMFPlot", plot)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in, with a folder of measured patterns and one of phases."""
    x, H, patterns = mixtures(N, noise=0.02)
    (tmp_path / "heating").mkdir()
    for n, pattern in enumerate(patterns):
        path = tmp_path / "heating" / f"mix_{n + 1:03}_T{90 + 10 * n}K.xy"
        np.savetxt(path, np.column_stack([x, pattern]), fmt="%.6f", header="two-theta  I")
    (tmp_path / "phases").mkdir()
    for name, h in zip(("cold", "hot"), H, strict=True):
        np.savetxt(tmp_path / "phases" / f"{name}.xy", np.column_stack([x, h]))
    monkeypatch.chdir(tmp_path)
    return tmp_path


PHASES = ["--phase", "phases/cold.xy", "--phase", "phases/hot.xy"]


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def column(path: Path, name: str) -> list[float]:
    return [float(row[name]) for row in rows(path)]


# --- a folder of files


def test_a_folder_becomes_figure_table_hdf5_and_settings(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", "heating", *PHASES]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    assert fact(output, "files") == "12, mix_001_T90K.xy to mix_012_T200K.xy"
    assert fact(output, "variable") == "temperature, 90 to 200 K (from the names)"
    assert fact(output, "patterns") == "12"
    folder = here / "heating-fit"
    assert fact(output, "table") == "heating-fit/weights.csv"
    assert sorted(path.name for path in folder.iterdir()) == [
        "analysis.h5",
        "figure.png",
        "settings.yaml",
        "weights.csv",
    ]
    assert (folder / "figure.png").read_bytes().startswith(b"\x89PNG")
    table = rows(folder / "weights.csv")
    assert [row["file"] for row in table][:2] == ["mix_001_T90K.xy", "mix_002_T100K.xy"]
    assert column(folder / "weights.csv", "temperature") == [90 + 10 * n for n in range(N)]
    share = np.linspace(0, 1, N)
    assert column(folder / "weights.csv", "weight_hot") == pytest.approx(share, abs=0.02)
    assert column(folder / "weights.csv", "weight_cold") == pytest.approx(1 - share, abs=0.02)
    with h5py.File(folder / "analysis.h5") as file:
        assert file["entry/patterns/patterns"].shape == (N, 200)
        assert list(file["entry/patterns"].attrs["axes"]) == ["temperature", "two_theta"]
        assert file["entry/patterns/two_theta"].attrs["units"] == "deg"


def test_the_settings_beside_the_results_give_them_again(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", "heating", *PHASES, "--seed", "3", "--roi", "1.5", "4.5"]) == 0
    settings = here / "heating-fit" / "settings.yaml"
    loaded = Settings.load(settings)
    assert (loaded.seed, loaded.preprocess.roi) == (3, (1.5, 4.5))
    again = ["fit", "heating", "--settings", str(settings), "--output", "again"]
    assert run(again) == 0
    first = column(here / "heating-fit" / "weights.csv", "weight_hot")
    assert column(here / "again" / "weights.csv", "weight_hot") == first


def test_nothing_that_is_there_is_overwritten_unless_asked(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "heating-fit").mkdir()
    for name in ("weights.csv", "analysis.h5", "figure.png", "settings.yaml"):
        mine = here / "heating-fit" / name
        mine.write_text("mine")
        line = refused(["fit", "heating", *PHASES], capsys)
        assert f"'heating-fit/{name}' is there already; name another" in line
        assert mine.read_text() == "mine"
        mine.unlink()
    (here / "heating-fit" / "notes.txt").write_text("mine")
    assert run(["fit", "heating", *PHASES]) == 0
    assert run(["fit", "heating", *PHASES, "--overwrite"]) == 0
    assert (here / "heating-fit" / "notes.txt").read_text() == "mine"


def test_results_go_where_the_options_say(here: Path) -> None:
    places = ["--output", "out", "--csv", "a.csv", "--hdf5", "b.nxs", "--figure", "c.pdf"]
    assert run(["fit", "heating/*.xy", *PHASES, *places]) == 0
    assert (here / "c.pdf").read_bytes().startswith(b"%PDF")
    assert (here / "a.csv").exists() and (here / "b.nxs").exists()
    assert [path.name for path in (here / "out").iterdir()] == ["settings.yaml"]


def test_the_variable_may_be_told_by_an_expression_or_by_a_table(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--from-name", r"mix_(?P<shot>\d+)", "--output", "a"]
    assert run(["fit", "heating", *PHASES, *named]) == 0
    assert column(here / "a" / "weights.csv", "shot") == [*range(1, N + 1)]
    lines = [f"{path.name},{n / 2},{-n}" for n, path in enumerate(sorted(here.glob("heating/*")))]
    (here / "heating" / "log.csv").write_text("\n".join(["file,load,field", *lines]))
    table = ["--table", "heating/log.csv", "--output", "b"]
    assert run(["fit", "heating", *PHASES, *table]) == 0
    output, errors = capsys.readouterr()
    assert errors == "" and "load, field (from log.csv)" in output
    assert column(here / "b" / "weights.csv", "field") == [-n for n in range(N)]
    assert run(["fit", "heating", *PHASES, *table, "c", "--variable", "field"]) == 2
    assert run(["fit", "heating", *PHASES, *table[:3], "c", "--variable", "field"]) == 0
    assert "load" not in rows(here / "c" / "weights.csv")[0]


def test_files_whose_names_do_not_tell_are_numbered_and_it_is_said(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n, path in enumerate(sorted(here.glob("heating/*"))):
        path.rename(path.with_name("abcdefghijkl"[n] + ".xy"))
    assert run(["fit", "heating", *PHASES]) == 0
    assert "the number of the file: its name does not tell" in capsys.readouterr().out
    assert column(here / "heating-fit" / "weights.csv", "pattern") == [*range(1, N + 1)]


def test_files_that_cannot_be_read_are_told_with_their_reason_and_the_rest_is_fitted(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(here.glob("heating/*"))
    files[0].write_text("nothing\n")
    files[5].write_text("1.0 2.0\n1.1 x\n")
    files[7].write_text(files[7].read_text().replace("0.", "nan ", 1))
    assert run(["fit", "heating", *PHASES]) == 0
    output = capsys.readouterr().out
    assert fact(output, "patterns") == "9"
    told = fact(output, "rejected")
    assert told.startswith("3: ") and "line 2: expected two numbers or a comment" in told
    assert len(rows(here / "heating-fit" / "weights.csv")) == 9
    with h5py.File(here / "heating-fit" / "analysis.h5") as file:
        names = [name.decode() for name in file["entry/rejected/file"][()]]
    assert names == [files[0].name, files[5].name, files[7].name]


def test_where_no_file_can_be_read_the_reason_is_the_error(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in here.glob("heating/*"):
        path.write_text("nothing\n")
    assert run(["fit", "heating"]) == 2
    errors = capsys.readouterr().err.splitlines()
    assert "expected lines of at least two numbers" in errors[-1]
    assert not (here / "heating-fit").exists()


def test_one_file_may_be_fitted(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["fit", "heating/mix_001_T90K.xy", *PHASES, "--components", "2"]) == 0
    assert len(rows(here / "mix_001_T90K-fit" / "weights.csv")) == 1


def test_the_analysis_run_is_stored_on_request_and_reads_as_the_table(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", "heating", *PHASES, "--save", "catalog"]) == 0
    uid = fact(capsys.readouterr().out, "analysis run")
    with open_catalog("catalog", create=False) as catalog:
        analysis = read_analysis(catalog.documents(uid))
    assert analysis.start is not None and analysis.converged
    assert analysis.start["pattern_files"]["names"][0] == "mix_001_T90K.xy"
    hot = column(here / "heating-fit" / "weights.csv", "weight_hot")
    assert analysis.weights[:, 1] == pytest.approx(hot)


def test_the_wavelength_of_the_files_serves_for_crystals(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "silicon.cif").write_text(STRUCTURES["silicon"])
    from bluesky_cmf import Phase

    x = np.linspace(20.0, 60.0, 1500)
    line = Phase.from_cif("silicon.cif", wavelength=1.54, width=0.3).on(x)
    (here / "lab").mkdir()
    positions = ENDS.replace("10.0", "20.0").replace("11.0", "60.0")
    for n in range(3):
        counts = " ".join(f"{v:.0f}" for v in 1000 * (n + 1) * line)
        values = f"<counts unit='counts'>{counts}</counts>"
        scan = SCAN.format(positions=positions, times="", values=values)
        text = XRDML.format(intended="K-Alpha 1", scans=scan)
        (here / "lab" / f"T{n}.xrdml").write_text(text)
    options = ["--width", "0.3", "--components", "1", "--errors", "file"]
    assert run(["fit", "lab", "--phase", "silicon.cif", *options]) == 0
    weights = column(here / "lab-fit" / "weights.csv", "weight_silicon")
    assert np.array(weights) / weights[0] == pytest.approx([1, 2, 3], rel=0.05)
    assert Settings.load(here / "lab-fit" / "settings.yaml").phases[0].wavelength == 1.54


# --- errors: one line, exit code 2, nothing written


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere"], "nowhere: no such file or folder, nor files that match it"),
        (["nowhere/*.xy"], "nor files that match it"),
        (["."], "expected pattern files"),
        (["heating", "--from-name", "T(\\d+"], "--from-name: 'T(\\\\d+' is no regular expression"),
        (["heating", "--from-name", "Q(\\d+)"], "finds no number in 'mix_001_T90K.xy'"),
        (["heating", "--table", "log.csv"], "log.csv: no such file"),
        (["heating", "--variable", "a", "--variable", "b"], "--variable: expected one name"),
        (["heating", "--variable", "file"], "variables: expected names that differ, none of"),
        (["heating", "--csv", "a.doc"], "--csv: expected a file that ends in .csv, .txt"),
        (["heating", "--output", "/dev/null/a"], "/dev/null/a"),
        (["heating", "--settings", "a.yaml"], "a.yaml: no such file"),
        (["heating", "--set", "seed=x"], "seed: expected a whole number, got 'x'"),
        (["heating", "--components", "1", *PHASES], "n_components: expected a number from 2"),
        (["heating", "--normalize", "sum"], "normalize: expected 'max', 'area'"),
        (["heating", "--sweep", "6:2"], "--sweep: expected the first and the last number of comp"),
        (["heating", "--sweep", "x"], "such as 2:6, got 'x'"),
        (["heating", "--sweep", "0:3"], "such as 2:6, got '0:3'"),
        (["heating", "--sweep", "1:3", *PHASES], "expected numbers from 2, as there are 2 phases"),
        (["heating", "--sweep", "2:90"], "to 8 (what is left of the data when some is held out)"),
        (["heating", "--from-data"], "--from-data: expected the number of components with it"),
        (["heating", "--from-data", "--components", "13"], "n_components: expected at most 12"),
        (
            ["catalog", "3f2a91c0", "4f2a91c0", "--pattern", "I", "--sweep", "2:3"],
            "--sweep: expected one run, or several as one dataset (--session), got 2 runs",
        ),
        (["heating", "--errors", "file"], "errors: expected files with standard errors (.xye"),
        (["databroker:temp"], "uid: expected a run of the catalog databroker:temp, got none"),
        (["catalog", "3f2a91c0"], "--pattern: expected the data key of the patterns"),
        (["catalog", "3f2a91c0", "--pattern", "I"], "catalog"),
        (["catalog", "3f2a91c0", "--pattern", "I", "--table", "a"], "--table: expected with pat"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_before_the_work(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    before = sorted(here.rglob("*"))
    assert message in refused(["fit", *arguments], capsys)
    assert sorted(here.rglob("*")) == before


def test_a_phase_that_does_not_cover_the_data_is_told_and_nothing_is_left(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "short.xy").write_text("2 1\n3 1\n")
    line = refused(["fit", "heating", "--phase", "short.xy"], capsys)
    assert "phase 'short' covers 2 to 3" in line
    assert not (here / "heating-fit").exists()


# --- stored runs


@pytest.fixture
def stored(here: Path) -> Iterator[list[str]]:
    uids = []
    with open_catalog("catalog") as catalog, contextlib.closing(catalog.writer()) as writer:
        for seed in range(2):
            x, _, patterns = mixtures(N, noise=0.02, seed=seed)
            for name, doc in run_documents(patterns, x=x):
                writer(name, doc)
                if name == "start":
                    uids.append(doc["uid"])
        writer.flush()
        yield uids


KEYS = ["--pattern", "chi_I", "--x", "chi_Q", *PHASES]


def test_a_stored_run_is_fitted_with_the_same_results(
    here: Path, stored: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", "catalog", stored[0][:8], *KEYS, "--save", "catalog"]) == 0
    output, errors = capsys.readouterr()
    assert errors == "" and fact(output, "raw run") == stored[0]
    folder = here / f"{stored[0][:8]}-fit"
    assert column(folder / "weights.csv", "weight_hot") == pytest.approx(
        np.linspace(0, 1, N), abs=0.02
    )
    with open_catalog("catalog", create=False) as catalog:
        analysis = read_analysis(catalog.documents(fact(output, "analysis run")))
    assert analysis.n_patterns == N


def test_several_runs_have_results_of_their_own_or_as_a_session_one(
    here: Path, stored: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", "catalog", *stored, *KEYS, "--output", "each"]) == 0
    names = {path.name for path in (here / "each").iterdir()}
    assert {f"weights_{uid[:8]}.csv" for uid in stored} < names
    session = ["--session", "--output", "all"]
    assert run(["fit", "catalog", *stored, *KEYS, *session]) == 0
    assert len(rows(here / "all" / "weights.csv")) == 2 * N


# --- what is chosen from the data


def components_of(uid: str) -> list[tuple[str, bool, str]]:
    with open_catalog("catalog", create=False) as catalog:
        analysis = read_analysis(catalog.documents(uid))
    assert analysis.start is not None
    records = analysis.start["cmf"]["components"]
    return [(record["name"], record["fixed"], record["origin"]) for record in records]


def test_a_sweep_is_shown_and_drawn_and_members_are_held_as_many_as_it_suggests(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["fit", "heating", "--sweep", "1:3", "--from-data", "--save", "catalog"]) == 0
    output, _ = capsys.readouterr()
    numbers = [line.split()[0] for line in output.splitlines() if "±" in line][1:4]
    assert numbers == ["1", "2", "3"]
    assert fact(output, "suggested").startswith("2: The held-out error")
    assert fact(output, "members") == "90 K (pattern 1), 200 K (pattern 12)"
    for what in ("sweep", "members"):
        drawn = here / "heating-fit" / f"figure-{what}.png"
        assert drawn.read_bytes().startswith(b"\x89PNG")
        assert f"heating-fit/figure-{what}.png" in output
    assert components_of(fact(output, "analysis run")) == [
        ("90 K", True, "pattern 1 of the data"),
        ("200 K", True, "pattern 12 of the data"),
    ]
    weights = column(here / "heating-fit" / "weights.csv", "weight_200_K")
    assert weights == pytest.approx(np.linspace(0, 1, N), abs=0.02)
    assert Settings.load(here / "heating-fit" / "settings.yaml").n_components == 2


def test_the_number_that_is_given_wins_over_the_sweep_and_that_over_the_settings_file(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["fit", "heating", "--roi", "1", "3", "--sweep", "2:3"]
    assert run([*sweep, "--components", "3", "--figure", "a.pdf"]) == 0
    assert "fitted with 3, as was asked for" in fact(capsys.readouterr().out, "suggested")
    assert (here / "a-sweep.pdf").read_bytes().startswith(b"%PDF")
    assert "weight_unknown_3" in rows(here / "heating-fit" / "weights.csv")[0]
    (here / "three.yaml").write_text("n_components: 3\n")
    assert run([*sweep, "--settings", "three.yaml", "--output", "b"]) == 0
    assert "weight_unknown_3" not in rows(here / "b" / "weights.csv")[0]
    before = (here / "b" / "figure-sweep.png").read_bytes()
    for path in (here / "b").glob("[!f]*"):
        path.unlink()
    (here / "b" / "figure.png").unlink()
    capsys.readouterr()
    line = refused([*sweep, "--output", "b"], capsys)
    assert "'b/figure-sweep.png' is there already; name another" in line
    assert (here / "b" / "figure-sweep.png").read_bytes() == before


def test_members_go_through_the_steps_before_the_fit_once(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # Subtracting a background or averaging neighbours again would change them.
    steps = ["--rebin", "2", "--background", "snip:max_half_window=10", "--normalize", "max"]
    for path in sorted(here.glob("heating/*"))[::3]:
        path.write_text("nothing\n")
    options = ["--phase", "phases/cold.xy", "--components", "2", "--from-data"]
    assert run(["fit", "heating", *options, *steps]) == 0
    assert fact(capsys.readouterr().out, "members") == "200 K (pattern 12)"
    with h5py.File(here / "heating-fit" / "analysis.h5") as file:
        patterns = file["entry/patterns/patterns"][()]
        member = file["entry/components/component_200_K"][()]
    assert np.array_equal(member, patterns[-1])


def test_members_of_names_that_do_not_tell_are_numbered_as_the_table_has_them(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for n, path in enumerate(sorted(here.glob("heating/*"))):
        path.rename(path.with_name("abcdefghijkl"[n] + ".xy"))
    assert run(["fit", "heating", "--from-data", "--components", "2"]) == 0
    assert fact(capsys.readouterr().out, "members") == "pattern 1, pattern 12"
    weights = column(here / "heating-fit" / "weights.csv", "weight_pattern_12")
    assert weights[-1] == pytest.approx(1)


def test_stored_runs_are_selected_from_one_by_one_or_as_a_session(
    here: Path, stored: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--from-data", "--components", "2", "--save", "catalog"]
    keys = KEYS[:4]
    assert run(["fit", "catalog", stored[0], *keys, *options]) == 0
    output = capsys.readouterr().out
    records = components_of(fact(output, "analysis run"))
    assert [record[2] for record in records] == ["pattern 1 of the data", "pattern 12 of the data"]
    assert (here / f"{stored[0][:8]}-fit" / "figure-members.png").exists()
    both = ["fit", "catalog", *stored, *keys, *options, "--output", "all"]
    assert "got 2 runs" in refused(both, capsys)
    assert run([*both, "--session"]) == 0
    records = components_of(fact(capsys.readouterr().out, "analysis run"))
    assert records[-1][2].endswith(f"of run {stored[1][:8]})")


# --- progress and interrupts


def test_without_a_terminal_there_is_no_progress(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FileProgress(2) as progress:
        progress.advance()
    assert capsys.readouterr() == ("", "")


def test_an_interrupt_writes_what_was_read_and_exits_with_130(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    class Interrupting(FileProgress):
        count = 0

        def advance(self) -> None:
            self.count += 1
            if self.count == 5:
                os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("bluesky_cmf.cli.fitting_files.FileProgress", Interrupting)
    try:
        assert run(["fit", "heating", *PHASES, "--save", "catalog"]) == 130
    finally:
        signal.signal(signal.SIGINT, before)
    output, errors = capsys.readouterr()
    assert fact(output, "patterns") == "5"
    assert re.search("interrupted: what was read is fitted and written", errors)
    assert len(rows(here / "heating-fit" / "weights.csv")) == 5
    with open_catalog("catalog", create=False) as catalog:
        analysis = read_analysis(catalog.documents(fact(output, "analysis run")))
    assert analysis.stop is not None
    assert (analysis.stop["exit_status"], analysis.n_patterns) == ("abort", 5)


def test_a_second_interrupt_gives_up(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    class Insisting(FileProgress):
        def advance(self) -> None:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr("bluesky_cmf.cli.fitting_files.FileProgress", Insisting)
    try:
        assert run(["fit", "heating", *PHASES]) == 130
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert not (here / "heating-fit" / "weights.csv").exists()


def test_the_command_runs_as_a_process_of_its_own(here: Path) -> None:
    command: list[Any] = [sys.executable, "-m", "bluesky_cmf", "fit", "heating", *PHASES]
    done = subprocess.run(
        command, cwd=here, env=os.environ, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert fact(done.stdout, "patterns") == "12"

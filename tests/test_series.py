"""Pattern files as a run: which files, what they were measured at, and their documents."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bluesky_cmf import LiveNMF
from bluesky_cmf.documents import AnalysisReader
from bluesky_cmf.errors import InputError
from bluesky_cmf.series import Series, Variable, find_files, variable_from_names
from bluesky_cmf.series import variables_from_table as from_table
from bluesky_cmf.sources import Paged
from tests.streams import Collector, mixtures, run_documents


def files_in(folder: Path, names: Sequence[str], text: str = "1 1\n2 3\n3 2\n") -> list[Path]:
    folder.mkdir(exist_ok=True, parents=True)
    for name in names:
        (folder / name).write_text(text)
    return [folder / name for name in names]


# --- which files


def test_files_are_taken_in_the_natural_order_of_their_names_and_once(tmp_path: Path) -> None:
    files_in(tmp_path, ["T100.xy", "T9.xy", "T20.xy", ".hidden.xy"])
    expected = ["T9.xy", "T20.xy", "T100.xy"]
    assert [path.name for path in find_files([tmp_path])] == expected
    assert [path.name for path in find_files([f"{tmp_path}/T*.xy"])] == expected
    listed = [tmp_path / "T100.xy", tmp_path / "T9.xy", tmp_path]
    assert [path.name for path in find_files(listed)] == expected


def test_of_a_folder_the_kind_of_files_is_taken_that_it_has_most_of_and_the_rest_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    files_in(tmp_path, ["a1.xy", "a2.xy", "log.csv", "readme.md"])
    assert [path.name for path in find_files([tmp_path])] == ["a1.xy", "a2.xy"]
    assert "passed over: log.csv" in caplog.text
    caplog.clear()
    find_files([tmp_path], but=[tmp_path / "log.csv"])
    assert not caplog.records


def test_places_without_pattern_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected pattern files"):
        find_files([tmp_path])
    with pytest.raises(InputError, match="no such file or folder, nor files that match it"):
        find_files([tmp_path / "*.xy"])


# --- the variable in their names


@pytest.mark.parametrize(
    ("names", "found"),
    [
        (["T300.xy", "T310.xy"], ("temperature", "", [300, 310])),
        (["BTO_150.5K.xy", "BTO_151K.xy"], ("temperature", "K", [150.5, 151])),
        (["BTO_150.5K.xy", "BTO_151.5K.xy"], ("temperature", "K", [150.5, 151.5])),
        (["s1_25C_0001.xy", "s1_50C_0002.xy"], ("temperature", "degC", [25, 50])),
        (["s1_0001_p10.xy", "s1_0002_p10.xy"], ("variable", "", [1, 2])),
        (["T1_001.xy", "T2_002.xy"], ("temperature", "", [1, 2])),
        (["a-5-7.xy", "a-9-2.xy"], None),
        (["scan.0001.xy", "scan.0003.xy"], ("scan", "", [1, 3])),
        (["pressure 5.xy", "pressure 15.xy"], ("pressure", "", [5, 15])),
        (["12.xy", "15.xy"], ("variable", "", [12, 15])),
        (["a1.xy", "b2.xy"], None),
        (["T1.xy"], None),
        (["T1.xy", "T1.xye"], None),
    ],
)
def test_the_one_number_that_varies_is_the_variable(
    names: list[str], found: tuple[str, str, list[float]] | None
) -> None:
    variable = variable_from_names([Path(name) for name in names])
    if found is None or variable is None:
        assert variable is None and found is None
        return
    assert (variable.name, variable.units, variable.values.tolist()) == found


def test_an_expression_says_where_the_variable_stands() -> None:
    files = [Path("x1_T5_9bar.xy"), Path("x2_T7_8bar.xy")]
    found = variable_from_names(files, r"T(\d+)")
    assert found is not None and (found.name, found.values.tolist()) == ("temperature", [5, 7])
    found = variable_from_names(files, r"(?P<pressure>\d+)bar")
    assert found is not None and (found.name, found.values.tolist()) == ("pressure", [9, 8])
    found = variable_from_names(files, r"(\d+)bar", name="load")
    assert found is not None and found.name == "load"


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("T(", "is no regular expression"),
        (r"T\d+", "expected one group in parentheses, the number, .* got 0"),
        (r"(T)(\d+)", "got 2"),
        (r"Q(\d+)", r"finds no number in 'T5\.xy'"),
        ("(T)", r"finds no number in 'T5\.xy'"),
    ],
)
def test_an_expression_that_finds_no_number_is_refused(expression: str, message: str) -> None:
    with pytest.raises(InputError, match=f"--from-name: .*{message}"):
        variable_from_names([Path("T5.xy")], expression)


# --- or in a table


@pytest.mark.parametrize(
    "text",
    [
        "file,temperature,comment\nT2.xy,20.5,a\nT1.xy,10.5,b\nother.xy,1,c\n",
        "file;temperature\nT1.xy;10,5\nT2.xy;20,5\n",
        "# file\ttemperature\nT1\t10.5\nT2\t20.5\n",
        "temperature sample\n10.5 /data/T1.xy\n20.5 /data/T2.xy\n",
    ],
)
def test_a_table_gives_each_file_its_value(tmp_path: Path, text: str) -> None:
    (tmp_path / "log.csv").write_text(text)
    (variable,) = from_table(tmp_path / "log.csv", [Path("T1.xy"), Path("T2.xy")])
    assert (variable.name, variable.values.tolist()) == ("temperature", [10.5, 20.5])


def test_columns_of_a_table_are_chosen_by_name(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("file,a,b,c\nT1.xy,1,2,3\nT2.xy,4,5,6\n")
    files = [Path("T1.xy"), Path("T2.xy")]
    found = from_table(tmp_path / "log.csv", files, ["c", "a"])
    assert [(v.name, v.values.tolist()) for v in found] == [("c", [3, 6]), ("a", [1, 4])]
    assert [v.name for v in from_table(tmp_path / "log.csv", files)] == ["a", "b", "c"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("file,T\n", "expected a line of column names and lines of values"),
        ("file,T\nT1.xy,1\n", "expected one row for 'T2.xy' in column 'file', got 0"),
        ("file,T\nT1.xy,1\nT1.xy,2\nT2.xy,1\n", "one row for 'T1.xy' in column 'file', got 2"),
        ("file,T\nT1.xy,1\nT2.xy\n", "row 3: expected 2 values (file, T), got 1"),
        ("a,b\n1,2\n3,4\n", "expected a column 'file', or one that holds the names of the files"),
        ("file,T\nT1.xy,x\nT2.xy,1\n", "expected a column of numbers beside 'file'"),
        (None, "no such file"),
    ],
)
def test_a_table_that_does_not_tell_is_refused(
    tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "log.csv").write_text(text)
    with pytest.raises(InputError) as caught:
        from_table(tmp_path / "log.csv", [Path("T1.xy"), Path("T2.xy")])
    assert message in str(caught.value) and str(tmp_path / "log.csv") in str(caught.value)


def test_a_column_that_is_asked_for_has_to_be_there_and_to_hold_numbers(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("file,T\nT1.xy,1\nT2.xy,-\n")
    files = [Path("T1.xy"), Path("T2.xy")]
    with pytest.raises(InputError, match="no column 'P'; there are file, T"):
        from_table(tmp_path / "log.csv", files, ["P"])
    with pytest.raises(InputError, match=r"expected a number in column 'T' for 'T2\.xy', got '-'"):
        from_table(tmp_path / "log.csv", files, ["T"])


# --- documents


def played(series: Series, **options: Any) -> Collector:
    collector = Collector()
    for name, doc in series.documents(**options):
        collector(name, doc)
    return collector


def test_files_become_an_ordinary_run(tmp_path: Path) -> None:
    files = files_in(tmp_path, ["T1.xy", "T2.xy"])
    temperature = Variable("temperature", "K", np.array([1.0, 2.0]))
    documents = played(Series(files, [temperature], x="q"))
    (start,) = documents.named("start")
    assert start["hints"] == {"dimensions": [[["temperature"], "primary"]]}
    assert start["pattern_files"] == {"folder": str(tmp_path), "names": ["T1.xy", "T2.xy"]}
    data = documents.data("primary")
    assert data["file"].tolist() == ["T1.xy", "T2.xy"]
    assert data["temperature"].tolist() == [1, 2]
    assert data["intensity"].tolist() == [[1, 3, 2]] * 2 and data["q"].tolist() == [[1, 2, 3]] * 2
    (stop,) = documents.named("stop")
    assert (stop["exit_status"], stop["num_events"]) == ("success", {"primary": 2})


def test_standard_errors_come_with_the_patterns_that_have_them(tmp_path: Path) -> None:
    files = files_in(tmp_path, ["a1.xye", "a2.xye"], "1 1 0.5\n2 2 0.5\n")
    files += files_in(tmp_path, ["a3.xy"], "1 1\n2 2\n")
    errors = played(Series(files)).data("primary")["intensity_errors"]
    assert errors[:2].tolist() == [[0.5, 0.5]] * 2 and np.isnan(errors[2]).all()


def test_a_file_that_cannot_be_read_is_rejected_with_its_reason_and_the_others_are_fitted(
    tmp_path: Path,
) -> None:
    x, _, patterns = mixtures(6)
    files = [tmp_path / f"T{n}.xy" for n in range(6)]
    for path, pattern in zip(files, patterns, strict=True):
        np.savetxt(path, np.column_stack([x, pattern + 1]))
    files[0].write_text("")
    files[2].write_text("1 1\n2 x\n")
    files[4].unlink()
    series = Series(files)
    live = LiveNMF("intensity", x="x", n_components=2, background=False, handlers=series.handlers)
    analysis = AnalysisReader()
    live.subscribe(analysis)
    for name, doc in series.documents():
        live(name, doc)
    assert analysis.n_patterns == 3
    reasons = dict(analysis.rejected)
    assert sorted(reasons) == [1, 3, 5]
    assert reasons[1].startswith(f"{files[0]}: expected lines of at least two numbers")
    assert reasons[3].startswith(f"{files[2]}: line 2: expected two numbers")
    assert reasons[5] == f"{files[4]}: no such file"


def test_an_interrupt_ends_the_run_between_two_files(tmp_path: Path) -> None:
    files = files_in(tmp_path, [f"T{n}.xy" for n in range(6)])
    count = 0

    def advance() -> None:
        nonlocal count
        count += 1

    documents = played(Series(files), advance=advance, interrupted=lambda: count == 4)
    (stop,) = documents.named("stop")
    assert (stop["exit_status"], stop["num_events"]) == ("abort", {"primary": 4})
    assert stop["reason"] == "interrupted after 4 of 6 files"


@pytest.mark.parametrize(
    ("names", "values", "message"),
    [
        (["T"], [[1.0]], "expected 2 values of 'T', got 1"),
        (["T", "T"], [[1.0, 2.0]] * 2, "expected names that differ"),
        (["file"], [[1.0, 2.0]], "none of file, intensity, intensity_errors, x, got file"),
    ],
)
def test_variables_that_do_not_fit_are_refused(
    names: list[str], values: list[list[float]], message: str
) -> None:
    variables = [Variable(n, "", np.array(v)) for n, v in zip(names, values, strict=True)]
    with pytest.raises(InputError, match=message):
        Series([Path("a.xy"), Path("b.xy")], variables)
    with pytest.raises(InputError, match="expected at least one pattern file, got none"):
        Series([])


# --- a stored run as pages


def test_events_are_handed_on_as_pages_and_give_the_same_fit() -> None:
    x, _, patterns = mixtures(30, noise=0.1)
    documents = run_documents(patterns, x=x)
    paged = Collector()
    pages = Paged(paged)
    results = []
    for name, doc in documents:
        pages(name, doc)
    assert [name for name, _ in paged.documents] == ["start", "descriptor", "event_page", "stop"]
    uids = [doc["uid"] for name, doc in documents if name == "event"]
    assert [event["uid"] for event in paged.events("primary")] == uids
    for stream in (documents, paged.documents):
        live = LiveNMF("chi_I", x="chi_Q", n_components=2, background=False)
        for name, doc in stream:
            live(name, doc)
        assert live.result is not None and live.error is None
        results.append(live.result.objective)
    assert results[0] == pytest.approx(results[1], rel=1e-3)


def test_what_a_page_publishes_with_each_pattern_is_as_good_as_in_the_end() -> None:
    x, _, patterns = mixtures(40)
    live = LiveNMF("chi_I", x="chi_Q", n_components=2, background=False)
    analysis = AnalysisReader()
    live.subscribe(analysis)
    for name, doc in run_documents(patterns, x=x, paged=True):
        live(name, doc)
    assert live.result is not None
    assert analysis.r_factor == pytest.approx(live.result.r_factor, abs=1e-3)
    assert live.patterns is not None
    np.testing.assert_allclose(live.patterns, patterns, rtol=1e-6, atol=1e-30)


def test_a_crystal_structure_that_was_meant_for_phase_is_no_pattern(tmp_path: Path) -> None:
    (tmp_path / "cubic.cif").write_text("data_cubic")

    with pytest.raises(InputError, match=r"cubic\.cif: expected files of patterns.*--phase"):
        find_files([tmp_path / "cubic.cif"])

from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_cmf.errors import PatternFileError
from bluesky_cmf.patterns import read_pattern, read_pattern_file, write_pattern
from bluesky_cmf.patterns import text as text_files
from bluesky_cmf.phases import Phase

WRITTEN = [".xy", ".dat", ".chi", ".csv", ".txt", ".npz"]
finite = st.floats(allow_nan=False, allow_infinity=False)


def written(folder: Path, text: str | bytes, suffix: str = ".xy") -> Path:
    path = folder / f"pattern{suffix}"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("patterns")


@settings(deadline=None)
@given(
    x=st.lists(finite, min_size=1, max_size=8, unique=True).map(sorted),
    y=st.lists(finite, min_size=8, max_size=8),
    suffix=st.sampled_from(WRITTEN),
)
def test_what_is_written_is_read_back_to_the_bit(
    folder: Path, x: list[float], y: list[float], suffix: str
) -> None:
    intensity = np.array(y[: len(x)])

    write_pattern(folder / f"a{suffix}", x, intensity)
    found_x, found_y = read_pattern(folder / f"a{suffix}")

    assert found_x.tobytes() == np.array(x).tobytes()
    assert found_y.tobytes() == intensity.tobytes()


def test_single_precision_and_counts_are_read_back_as_the_same_numbers(tmp_path: Path) -> None:
    x, y = np.array([0.1, 0.2], dtype=np.float32), np.array([7, 9], dtype=np.uint16)

    write_pattern(str(tmp_path / "a.xy"), x, y)
    found_x, found_y = read_pattern(str(tmp_path / "a.xy"))

    assert np.array_equal(found_x, x)
    assert found_y.tolist() == [7, 9]
    assert found_x.dtype == found_y.dtype == np.float64


@pytest.mark.parametrize(
    "text",
    [
        "1 10\n2 20\n3 30\n",
        "1\t10\n2\t20\n3\t30",
        "1,10\n2,20\n3,30\n",
        "1, 10\n2, 20\n3, 30\n",
        "1;10\n2;20\n3;30\n",
        "   1   10  \r\n   2   20\r\n\r\n   3   30\r\n",
        "# 1 2\n! comment\n1 10\n2 20 # the peak\n3 30\n",
        "sample.tif\n2-Theta Angle (Degrees)\nIntensity\n    3\n1 10\n2 20\n3 30\n",
        "two_theta,intensity\n1,10\n2,20\n3,30\n",
        "1 10 0.5\n2 20 0.5\n3 30 0.5\n",
        "1e0 1.0E+01\n2.0 20\n+3 30.\n",
        '"1","10"\n"2","20"\n"3","30"\n',
        "\ufeff1 10\n2 20\n3 30\n",
        "# 2θ / °\n1 10\n2 20\n3 30\n",
        "3 30\n2 20\n1 10\n",
    ],
    ids=[
        "blanks",
        "tabs",
        "commas",
        "commas and blanks",
        "semicolons",
        "padded",
        "comments",
        "a fit2d header",
        "column names",
        "an error column",
        "exponents",
        "quotes",
        "a byte order mark",
        "Greek letters",
        "a decreasing axis",
    ],
)
@pytest.mark.parametrize("suffix", [".xy", ".CSV"])
def test_text_of_every_usual_form_is_read(tmp_path: Path, text: str, suffix: str) -> None:
    x, y = read_pattern(written(tmp_path, text, suffix))

    assert x.tolist() == [1, 2, 3]
    assert y.tolist() == [10, 20, 30]


@pytest.mark.parametrize("shape", ["(F, 2)", "(2, F)"])
def test_a_bare_array_is_read_by_columns_and_by_rows(tmp_path: Path, shape: str) -> None:
    columns = np.array([[1, 10], [2, 20], [3, 30]])
    np.save(tmp_path / "a.npy", columns if shape == "(F, 2)" else columns.T)

    x, y = read_pattern(tmp_path / "a.npy")

    assert (x.tolist(), y.tolist()) == ([1, 2, 3], [10, 20, 30])


@pytest.mark.parametrize("names", [("x", "y"), ("two_theta", "intensity")])
def test_an_archive_is_read_by_its_names_or_by_its_order(
    tmp_path: Path, names: tuple[str, str]
) -> None:
    arrays: dict[str, Any] = {names[0]: [1, 2], names[1]: [10, 20]}
    np.savez(tmp_path / "a.npz", **arrays)

    x, y = read_pattern(tmp_path / "a.npz")

    assert (x.tolist(), y.tolist()) == ([1, 2], [10, 20])


def test_x_and_y_are_found_among_other_arrays(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", wavelength=0.17, y=[10, 20], x=[1, 2])

    assert read_pattern(tmp_path / "a.npz")[1].tolist() == [10, 20]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected lines of at least two numbers .* found none"),
        ("1\n2\n3\n", "expected lines of at least two numbers .* found none"),
        ("nothing here\n", "found none"),
        ("1 10\n2 nan\n", "NaN or infinity among the values"),
        ("1 10\ninf 20\n", "NaN or infinity among the values"),
        ("1 10\n3 20\n2 30\n", "expected an axis that increases or decreases throughout"),
        ("1 10\n1 20\n", "expected an axis that increases or decreases throughout"),
        (b"\xff\xfe1\x002\x00", "found none"),
    ],
)
def test_text_that_is_no_pattern_is_refused_with_the_path_and_the_reason(
    tmp_path: Path, text: str | bytes, message: str
) -> None:
    path = written(tmp_path, text)

    with pytest.raises(PatternFileError, match=message) as caught:
        read_pattern(path)

    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (np.ones(4), r"expected an array \(F, 2\) or \(2, F\), got \(4,\)"),
        (np.ones((3, 3)), r"expected an array \(F, 2\) or \(2, F\), got \(3, 3\)"),
        (np.ones((0, 2)), "expected axis and intensity of one length"),
        (np.array([["1", "2"]]), "expected numbers, got <U1"),
        (np.array([[1, 3, 2, 4], [1, 1, 1, 1]], dtype=np.uint8), "increases or decreases"),
        (np.array([[1, None]], dtype=object), "cannot be read"),
    ],
)
def test_an_array_that_is_no_pattern_is_refused(
    tmp_path: Path, values: np.ndarray, message: str
) -> None:
    np.save(tmp_path / "a.npy", values, allow_pickle=True)

    with pytest.raises(PatternFileError, match=message):
        read_pattern(tmp_path / "a.npy")


class Trap:
    """Unpickling it would leave a trace."""

    sprung = False

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return (spring, ())


def spring() -> None:
    Trap.sprung = True


def test_a_pickle_is_never_unpacked(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.array([[Trap(), Trap()]]), allow_pickle=True)

    with pytest.raises(PatternFileError, match="allow_pickle=False"):
        read_pattern(tmp_path / "a.npy")

    assert not Trap.sprung


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"x": [1, 2]}, r"expected arrays 'x' and 'y', found \['x'\]"),
        ({"a": [1], "b": [1], "c": [1]}, r"expected arrays 'x' and 'y', found \['a', 'b', 'c'\]"),
        ({"x": [1, 2], "y": [1, 2, 3]}, "of one length"),
    ],
)
def test_an_archive_that_holds_no_pattern_says_what_it_holds(
    tmp_path: Path, arrays: dict[str, Any], message: str
) -> None:
    np.savez(tmp_path / "a.npz", **arrays)

    with pytest.raises(PatternFileError, match=message):
        read_pattern(tmp_path / "a.npz")


def test_a_file_that_is_not_there_or_not_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "folder.xy").mkdir()

    for suffix in (".xy", ".npy", ".npz"):
        with pytest.raises(PatternFileError, match=f"nowhere{suffix}: no such file"):
            read_pattern(tmp_path / f"nowhere{suffix}")
    with pytest.raises(PatternFileError, match=r"folder\.xy: cannot be read"):
        read_pattern(tmp_path / "folder.xy")


@pytest.mark.parametrize("name", ["a.tif", "a", "a.xy.gz"])
def test_a_suffix_that_is_not_known_is_refused_with_those_that_are(name: str) -> None:
    with pytest.raises(PatternFileError, match=r"expected one of \.xy, .*, \.h5, .*got"):
        read_pattern(name)


@pytest.mark.parametrize("suffix", [".xye", ".npy", ".tif"])
def test_a_suffix_that_cannot_be_written_is_refused_and_nothing_is_written(
    tmp_path: Path, suffix: str
) -> None:
    with pytest.raises(PatternFileError, match=rf"cannot write '\{suffix}'; use \.xy, \.csv"):
        write_pattern(tmp_path / f"a{suffix}", [1, 2], [1, 2])

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("x", "y"), [([1, 2], [1]), ([1, 1], [1, 2]), ([1, 2], [1, np.nan]), ([], []), ([[1]], [[1]])]
)
def test_values_that_are_no_pattern_are_not_written(tmp_path: Path, x: Any, y: Any) -> None:
    with pytest.raises(PatternFileError):
        write_pattern(tmp_path / "a.xy", x, y)

    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("line", ["1,5;2,5\n2,5;3,5", "1,5 2,5\n2,5\t3,5"])
def test_a_comma_may_be_a_decimal_one(tmp_path: Path, line: str) -> None:
    path = tmp_path / "german.xy"
    path.write_text(f"Winkel;Intensität\n{line}\n", encoding="latin-1")
    x, y = read_pattern(path)
    assert x.tolist() == [1.5, 2.5] and y.tolist() == [2.5, 3.5]


def test_a_garbled_line_among_the_numbers_is_not_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "cut.xy"
    path.write_text("# header\n1 2\n2 3\n# a comment\n3 x4\n4 5\n")
    with pytest.raises(PatternFileError, match=r"cut\.xy: line 5: expected two numbers"):
        read_pattern(path)


# --- what is missing


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1,10,0.5\n2,,0.5\n", r"line 2: expected two numbers or a comment, got '2,,0.5'"),
        ("1;10\n2;;\n", "line 2: expected two numbers or a comment, got '2;;'"),
        ("1 10\n2 NA\n", "line 2: expected two numbers or a comment, got '2 NA'"),
        ("1 10\n2\n3 30\n", "line 2: expected two numbers or a comment, got '2'"),
        ("a b c\n1 10 1\n2 20 1\n3 30", "line 4: expected 3 columns as in line 2, got 2"),
        ("1 10\n2 20 5\n", "line 2: expected 2 columns as in line 1, got 3"),
        ("1 10\n2 --\n", "line 2: expected two numbers or a comment"),
        ("1 10\n2 20\nEND\n", "line 3: expected two numbers or a comment, got 'END'"),
    ],
)
def test_a_missing_value_is_refused_with_its_line_and_never_taken_from_the_next_column(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(PatternFileError, match=message):
        read_pattern(written(tmp_path, text))


def test_a_nan_is_refused_with_its_place_or_kept_for_who_has_a_rule_for_it(tmp_path: Path) -> None:
    path = written(tmp_path, "1 10\n2 nan\n3 30\n")
    with pytest.raises(PatternFileError, match=r"at 1 of 3 points, the first of them point 2"):
        read_pattern_file(path)
    assert np.isnan(read_pattern_file(path, allow_nan=True).y).tolist() == [False, True, False]
    with pytest.raises(PatternFileError, match="NaN or infinity"):
        read_pattern_file(written(tmp_path, "1 10\nnan 20\n"), allow_nan=True)


# --- clean files are read by another road


number = st.one_of(
    finite.map(repr),
    finite.map("{:.3e}".format),
    st.integers(-99999, 99999).map(str),
    st.sampled_from(["+3", "30.", ".5", "1E5", "-0", "1e-320", "7-3", "1e", "--1", "e5", ""]),
)


@pytest.mark.parametrize("line", ["3,30,1,", ",3,30,1", "3,30,1"])
def test_a_value_that_is_missing_where_nobody_reads_is_missed(tmp_path: Path, line: str) -> None:
    with pytest.raises(PatternFileError, match="line 3"):
        read_pattern(written(tmp_path, f"1,10,1,1\n2,20,1,1\n{line}\n4,40,1,1\n"))


@settings(deadline=None, max_examples=300)
@given(
    rows=st.lists(st.lists(number, min_size=1, max_size=4), min_size=1, max_size=4),
    delimiter=st.sampled_from([" ", "  ", "\t", ",", ", ", " ,", ";"]),
    end=st.sampled_from(["\n", "\r\n", " \n", "\n\n", "\n  ", "\r"]),
    head=st.sampled_from(["", "# 2 3\n", "x,y\n", "\ufeff", "\n\n"]),
)
def test_the_fast_road_gives_what_the_careful_one_gives(
    folder: Path, rows: list[list[str]], delimiter: str, end: str, head: str
) -> None:
    path = written(folder, head + end.join(delimiter.join(row) for row in rows) + end)

    def outcome() -> Any:
        try:
            found = text_files.read_text(path)
        except PatternFileError as error:
            return str(error)
        return found.x.tolist(), found.y.tolist()

    fast = outcome()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_clean_columns", lambda _body: None)
        assert fast == outcome()


def test_a_clean_file_takes_the_fast_road(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def careful(*_arguments: object) -> None:
        raise AssertionError("line by line")

    monkeypatch.setattr(text_files, "_columns", careful)
    for text in ("# head\n 1.5  10\r\n 2.5  20\r\n", "x,y\n1.5,10\n2.5,20\n", "1.5\t10\n2.5\t20"):
        x, y = read_pattern(written(tmp_path, text))
        assert (x.tolist(), y.tolist()) == ([1.5, 2.5], [10, 20])


# --- errors and headers


def test_the_third_column_of_an_xye_file_holds_standard_errors(tmp_path: Path) -> None:
    text = "/* a Topas file */\n3 30 5.5\n2 20 4.5\n1 10 3.5\n"
    found = read_pattern_file(written(tmp_path, text, ".xye"))
    assert found.errors is not None and found.errors.tolist() == [3.5, 4.5, 5.5]
    assert found.x.tolist() == [1, 2, 3] and found.y.tolist() == [10, 20, 30]
    assert read_pattern_file(written(tmp_path, text, ".xy")).errors is None
    assert read_pattern_file(written(tmp_path, "1 10\n2 20\n", ".xye")).errors is None


@pytest.mark.parametrize("error", ["-1", "nan", "x"])
def test_standard_errors_that_are_none_are_refused(tmp_path: Path, error: str) -> None:
    path = written(tmp_path, f"1 10 1\n2 20 {error}\n", ".xye")
    with pytest.raises(PatternFileError, match="standard errors that are finite and not negative"):
        read_pattern_file(path)


@pytest.mark.parametrize(
    ("header", "axis"),
    [
        ("a.tif\n2-Theta Angle (Degrees)\nIntensity\n     2", ("two_theta", "deg")),
        ("# 2theta (rad) I", ("two_theta", "rad")),
        ("# q_A^-1    I    sigma", ("q", "1/angstrom")),
        ("#  q_nm^-1  I", ("q", "1/nm")),
        ("Q (Inverse Angstroms)", ("q", "1/angstrom")),
        ("sample quartz, 300 K", None),
        ("q or 2theta in A^-1", None),
    ],
)
def test_a_header_that_names_the_axis_is_understood(
    tmp_path: Path, header: str, axis: tuple[str, str] | None
) -> None:
    found = read_pattern_file(written(tmp_path, f"{header}\n1 10\n2 20\n", ".chi"))
    metadata = found.metadata
    assert metadata["header"][0] == header.splitlines()[0]
    assert (axis is None) == ("axis" not in metadata)
    assert axis in (None, (metadata.get("axis"), metadata.get("units")))


def test_arrays_may_come_with_errors(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", x=[2, 1], y=[20, 10], errors=[2, 1])
    errors = read_pattern_file(tmp_path / "a.npz").errors
    assert errors is not None and errors.tolist() == [1, 2]


# --- XRDML

XRDML = """<?xml version="1.0" encoding="UTF-8"?>
<xrdMeasurements xmlns="http://www.xrdml.com/XRDMeasurement/2.1" status="Completed">
  <sample type="To be analyzed"><id>LaB6</id><name></name></sample>
  <xrdMeasurement measurementType="Scan" status="Completed">
    <usedWavelength intended="{intended}">
      <kAlpha1 unit="Angstrom">1.54</kAlpha1><kAlpha2 unit="Angstrom">1.5445</kAlpha2>
      <kBeta unit="Angstrom">1.39</kBeta><ratioKAlpha2KAlpha1>0.5</ratioKAlpha2KAlpha1>
    </usedWavelength>
    {scans}
  </xrdMeasurement>
</xrdMeasurements>"""
SCAN = """<scan appendNumber="0" scanAxis="Gonio" status="Completed"><dataPoints>
  <positions axis="2Theta" unit="deg">{positions}</positions>
  <positions axis="Omega" unit="deg"><commonPosition>5</commonPosition></positions>
  {times}{values}
</dataPoints></scan>"""
ENDS = "<startPosition>10.0</startPosition><endPosition>11.0</endPosition>"
TIME = "<commonCountingTime unit='seconds'>2.0</commonCountingTime>"
COUNTS = "<intensities unit='counts'>100 400 0</intensities>"


def xrdml(
    folder: Path,
    *,
    positions: str = ENDS,
    times: str = TIME,
    values: str = COUNTS,
    intended: str = "K-Alpha 1",
    scans: int = 1,
) -> Path:
    scan = SCAN.format(positions=positions, times=times, values=values)
    return written(folder, XRDML.format(intended=intended, scans=scan * scans), ".xrdml")


def test_a_scan_of_an_xrdml_file_is_read_with_what_is_known_of_it(tmp_path: Path) -> None:
    found = read_pattern_file(xrdml(tmp_path))
    assert found.x.tolist() == [10.0, 10.5, 11.0] and found.y.tolist() == [100, 400, 0]
    assert found.errors is not None and found.errors.tolist() == [10, 20, 1]
    assert found.metadata == {
        "axis": "two_theta",
        "units": "deg",
        "wavelength": 1.54,
        "counting_time": 2.0,
        "title": "LaB6",
    }


def test_positions_of_an_xrdml_file_may_be_listed_and_go_down(tmp_path: Path) -> None:
    listed = "<listPositions>11 10.2 10</listPositions>"
    phase = Phase.from_file(xrdml(tmp_path, positions=listed))
    assert phase.x.tolist() == [10, 10.2, 11] and phase.y.tolist() == [0, 400, 100]


@pytest.mark.parametrize(
    ("intended", "wavelength"),
    [("K-Alpha 1", 1.54), ("K-Alpha", 1.5415), ("K-Alpha 2", 1.5445), ("K-Beta", 1.39)],
)
def test_the_wavelength_of_an_xrdml_file_is_the_one_that_is_used(
    tmp_path: Path, intended: str, wavelength: float
) -> None:
    metadata = read_pattern_file(xrdml(tmp_path, intended=intended)).metadata
    assert metadata["wavelength"] == pytest.approx(wavelength)


ATTENUATED = "<beamAttenuationFactors>1 10 10</beamAttenuationFactors>"


def test_counts_behind_an_attenuator_are_multiplied_and_intensities_are_not(
    tmp_path: Path,
) -> None:
    counts = f"{ATTENUATED}<counts unit='counts'>100 400 0</counts>"
    found = read_pattern_file(xrdml(tmp_path, values=counts))
    assert found.y.tolist() == [100, 4000, 0]
    assert found.errors is not None and found.errors.tolist() == [10, 200, 10]
    corrected = f"{ATTENUATED}<intensities unit='counts'>100 4000 0</intensities>"
    same = read_pattern_file(xrdml(tmp_path, values=corrected))
    assert same.y.tolist() == found.y.tolist()
    assert same.errors is not None and same.errors.tolist() == found.errors.tolist()


def test_counting_times_that_differ_are_brought_to_their_mean(tmp_path: Path) -> None:
    times = "<countingTimes>1 2 3</countingTimes>"
    found = read_pattern_file(xrdml(tmp_path, times=times))
    assert found.y.tolist() == [200, 400, 0] and found.metadata["counting_time"] == 2
    assert found.errors is not None
    assert found.errors == pytest.approx([20, 20, 2 / 3])


def test_errors_of_counts_per_second_need_the_counting_time(tmp_path: Path) -> None:
    rates = "<intensities unit='cps'>50 200 0</intensities>"
    errors = read_pattern_file(xrdml(tmp_path, values=rates)).errors
    assert errors is not None and errors.tolist() == [5, 10, 0.5]
    assert read_pattern_file(xrdml(tmp_path, values=rates, times="")).errors is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scans": 2}, "expected one scan, found 2"),
        ({"scans": 0}, "expected one scan, found 0"),
        ({"values": ""}, "expected <intensities> or <counts>, found neither"),
        ({"values": "<counts>1 2 x</counts>"}, "expected numbers in <counts>"),
        ({"values": "<counts></counts>"}, "of one length|increases"),
        ({"positions": "<commonPosition>1</commonPosition>"}, "a first and a last position"),
        ({"positions": "<listPositions>1 2</listPositions>"}, "of one length"),
        (
            {"values": f"<beamAttenuationFactors>1 2</beamAttenuationFactors>{COUNTS}"},
            "expected <beamAttenuationFactors> of 3 numbers above zero, got 2",
        ),
        ({"times": "<commonCountingTime>0</commonCountingTime>"}, "counting time above zero"),
        (
            {"times": "<countingTimes>1 0 1</countingTimes>"},
            "numbers above zero, got 3, the least 0",
        ),
    ],
)
def test_an_xrdml_file_that_holds_no_pattern_says_why(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(PatternFileError, match=message):
        read_pattern_file(xrdml(tmp_path, **options))


def test_xml_that_is_no_xrdml_is_refused_and_entities_are_not_unfolded(tmp_path: Path) -> None:
    kind = '<!DOCTYPE a [<!ENTITY b "ha"><!ENTITY c "&b;&b;&b;">]>'
    bomb = f"{kind}<xrdMeasurements>&c;</xrdMeasurements>"
    for text, message in [
        ("<a><b></a>", "cannot be read as XML"),
        ("", "cannot be read as XML"),
        ("<html/>", "expected an XRDML file, got XML of <html>"),
        (bomb, "declares a document type"),
    ]:
        with pytest.raises(PatternFileError, match=message):
            read_pattern(written(tmp_path, text, ".xrdml"))


# --- NeXus


def nexus(path: Path, y: Any, *, x: Any = (1.0, 2.0, 3.0), default: bool = True) -> Path:
    with h5py.File(path, "w") as file:
        entry = file.create_group("entry")
        data = entry.create_group("data")
        data.attrs.update({"NX_class": "NXdata", "signal": "intensity", "axes": ["two_theta"]})
        data["two_theta"], data["intensity"] = x, y
        data["two_theta"].attrs["units"] = "degrees"
        data["intensity_errors"] = np.ones(len(x))
        if default:
            file.attrs["default"], entry.attrs["default"] = "entry", "data"
    return path


@pytest.mark.parametrize("default", [True, False])
def test_the_default_data_of_a_nexus_file_are_read(tmp_path: Path, default: bool) -> None:
    found = read_pattern_file(nexus(tmp_path / "a.nxs", [[10, 20, 30]], default=default))
    assert (found.x.tolist(), found.y.tolist()) == ([1, 2, 3], [10, 20, 30])
    assert found.errors is not None and found.errors.tolist() == [1, 1, 1]
    assert found.metadata == {"axis": "two_theta", "units": "deg"}


def test_a_nexus_file_of_several_patterns_or_of_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PatternFileError, match=r"expected one pattern \(F,\), got 'intensity' of"):
        read_pattern(nexus(tmp_path / "a.h5", np.ones((2, 3))))
    with h5py.File(tmp_path / "empty.h5", "w"):
        pass
    with pytest.raises(
        PatternFileError, match=r"expected one NXdata, or a default one, found \[\]"
    ):
        read_pattern(tmp_path / "empty.h5")
    with pytest.raises(PatternFileError, match="cannot be read"):
        read_pattern(written(tmp_path, "no HDF5", ".h5"))

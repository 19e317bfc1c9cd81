from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_cmf.errors import PatternFileError
from bluesky_cmf.patterns import read_pattern, write_pattern

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
    with pytest.raises(PatternFileError, match=r"expected one of \.xy, .*, \.npz, got"):
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

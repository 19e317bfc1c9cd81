"""Pattern files of PANalytical instruments: XRDML.

A file is read by these rules:

* It holds one scan that moves 2θ. Several are refused with their number: the program that wrote
  them parts or averages them.
* The axis is 2θ in degrees: listed, or evenly spaced between the first and the last position.
* ``intensities`` are taken as they are; ``counts`` are what was counted behind an attenuator, and
  are multiplied with its factors. Where the counting time differs from point to point, both are
  brought to the mean time.
* Where it is known what was counted (``counts``, or intensities in counts or in counts per
  second with a counting time), standard errors are those of counting, at least one count.
* The wavelength is the one that the file says is used; of Kα1 and Kα2 together the mean, by their
  ratio. The second line of the doublet is left in the pattern.
"""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np

from ..errors import PatternFileError
from .record import Array, Found

__all__ = ["read_xrdml"]

Element = ElementTree.Element

_UNITS = {"deg": 1.0, "rad": 180 / np.pi}


class _Plain(ElementTree.TreeBuilder):
    """Takes no document type: entities that unfold to gigabytes are declared in it."""

    def doctype(self, name: str, _pubid: str | None, _system: str | None) -> None:
        raise ValueError(f"it declares a document type ({name}), which XRDML does not")


def read_xrdml(path: Path) -> Found:
    """Read a file by the rules above.

    Raises
    ------
    PatternFileError
        Where it is no XRDML, has no scan over 2θ or several, or its numbers do not fit.
    """
    try:
        with path.open("rb") as file:
            root = ElementTree.parse(file, ElementTree.XMLParser(target=_Plain())).getroot()
    except ElementTree.ParseError as error:
        raise PatternFileError(f"{path}: cannot be read as XML ({error})") from error
    if _local(root) != "xrdMeasurements":
        raise PatternFileError(f"{path}: expected an XRDML file, got XML of <{_local(root)}>")
    scans = root.findall("{*}xrdMeasurement/{*}scan")
    if len(scans) != 1:
        raise PatternFileError(
            f"{path}: expected one scan, found {len(scans)}; part or average them in the "
            "program that wrote them"
        )
    points = scans[0].find("{*}dataPoints")
    if points is None:
        raise PatternFileError(f"{path}: expected <dataPoints> in the scan, found none")
    return _Scan(path, points).found({**_wavelength(root), **_title(root)})


class _Scan:
    """The points of one scan."""

    def __init__(self, path: Path, points: Element) -> None:
        self._path, self._points = path, points

    def found(self, metadata: dict[str, Any]) -> Found:
        name, values, unit = self._measured()
        n = len(values)
        times = self._positive("countingTimes", n)
        time = self._common_time() if times is None else float(times.mean())
        #: Intensity that one count stands for.
        step = self._positive("beamAttenuationFactors", n)
        step = np.ones(n) if step is None else step
        if name == "counts":
            values = values * step
        if unit == "counts" and times is not None and time is not None:
            values, step = values * (time / times), step * (time / times)
        if unit == "cps" and time is not None:
            step = step / (time if times is None else times)
        counted = unit == "counts" or (unit == "cps" and time is not None)
        errors = step * np.sqrt(np.maximum(values / step, 1)) if counted else None
        if time is not None:
            metadata |= {"counting_time": time}
        return Found(
            self._axis(n), values, errors, {"axis": "two_theta", "units": "deg"} | metadata
        )

    def _measured(self) -> tuple[str, Array, str]:
        for name in ("intensities", "counts"):
            element = self._points.find(f"{{*}}{name}")
            if element is not None:
                return name, self._values(element), element.get("unit", "counts")
        raise self._error("expected <intensities> or <counts>, found neither")

    def _axis(self, n: int) -> Array:
        axes = {element.get("axis"): element for element in self._points.findall("{*}positions")}
        if "2Theta" not in axes:
            raise self._error(f"expected positions of 2Theta, found {sorted(map(str, axes))}")
        element = axes["2Theta"]
        unit = element.get("unit", "deg")
        if unit not in _UNITS:
            raise self._error(f"expected 2Theta in deg or rad, got {unit!r}")
        listed = element.find("{*}listPositions")
        if listed is not None:
            return self._values(listed) * _UNITS[unit]
        first, last = element.find("{*}startPosition"), element.find("{*}endPosition")
        if first is None or last is None:
            raise self._error("expected a scan over 2Theta, which has a first and a last position")
        ends = [self._values(first), self._values(last)]
        if any(len(end) != 1 for end in ends):
            raise self._error("expected a number for the first and for the last position")
        return np.linspace(float(ends[0][0]), float(ends[1][0]), n) * _UNITS[unit]

    def _common_time(self) -> float | None:
        element = self._points.find("{*}commonCountingTime")
        if element is None:
            return None
        time = self._values(element)
        if len(time) != 1 or not time[0] > 0:
            raise self._error(f"expected a counting time above zero, got {element.text!r}")
        return float(time[0])

    def _positive(self, name: str, n: int) -> Array | None:
        element = self._points.find(f"{{*}}{name}")
        if element is None:
            return None
        values = self._values(element)
        if len(values) != n or not (values > 0).all():
            raise self._error(
                f"expected <{name}> of {n} numbers above zero, got {len(values)}, the least "
                f"{values.min(initial=np.inf):g}"
            )
        return values

    def _values(self, element: Element) -> Array:
        try:
            return np.array([float(word) for word in (element.text or "").split()])
        except ValueError as error:
            raise self._error(f"expected numbers in <{_local(element)}>: {error}") from None

    def _error(self, message: str) -> PatternFileError:
        return PatternFileError(f"{self._path}: {message}")


def _wavelength(root: Element) -> dict[str, float]:
    used = root.find("{*}xrdMeasurement/{*}usedWavelength")
    if used is None:
        return {}
    values = {
        _local(part): _number(part) for part in used if part.get("unit") in (None, "Angstrom")
    }
    first, second = values.get("kAlpha1"), values.get("kAlpha2")
    ratio = _number(used.find("{*}ratioKAlpha2KAlpha1"))
    chosen = first
    match used.get("intended", "").replace(" ", "").lower():
        case "k-beta":
            chosen = values.get("kBeta")
        case "k-alpha2":
            chosen = second
        case "k-alpha" if first and second and ratio is not None:
            chosen = (first + ratio * second) / (1 + ratio)
    return {"wavelength": chosen} if chosen else {}


def _title(root: Element) -> dict[str, str]:
    name = root.findtext("{*}sample/{*}name") or root.findtext("{*}sample/{*}id")
    return {"title": name.strip()} if name and name.strip() else {}


def _number(element: Element | None) -> float | None:
    try:
        return None if element is None else float(element.text or "")
    except ValueError:
        return None


def _local(element: Element) -> str:
    """Name of an element, without that of the schema's version."""
    return element.tag.rpartition("}")[2]

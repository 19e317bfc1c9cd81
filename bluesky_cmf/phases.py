"""`Phase`: a known component, from an array, a pattern file, a CIF, or a stored run."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
from event_model import unpack_event_page

from .cifs import read_crystal
from .errors import AxisError, DataKeyError, InputError, RunNotFoundError
from .nmf.bounds import strain_bounds
from .patterns import read_pattern
from .powder import Powder
from .profiles import Width
from .resampling import resample
from .stretching import AxisKind, Spline, check_cover, check_kind, stretched

__all__ = ["Phase", "resample"]

Array = npt.NDArray[Any]


class _Documents(Protocol):
    def documents(self, uid: str) -> Iterable[tuple[str, Mapping[str, Any]]]: ...


@dataclass(frozen=True, eq=False)
class Phase:
    """A known component: a name and a pattern on an axis of its own.

    Attributes
    ----------
    name : str
        Name of the component.
    x, y : ndarray (F,)
        Axis, increasing, and intensity, non-negative unless ``signed``; copies that cannot be
        written to. Of a CIF, its lines down to a spacing of 1 Å.
    origin : str
        Where it comes from, for the metadata of the analysis run.
    signed : bool
        Whether negative values are meant, as in a pair distribution function; the fit then needs
        ``Preprocess(negative="offset")`` or ``"clip"``.
    powder : Powder, optional
        The crystal that the pattern is computed from, of a CIF.
    strain : (float, float), optional
        Bounds of the strain ε that each pattern has of this phase: h(q (1 + ε)) takes the place
        of h(q), with the heights of the lines as they are, while their areas on the axis go
        with 1 / (1 + ε). None: the phase stays as it is.
    axis : {"q", "two_theta"}, optional
        What ``x`` is, which a strain needs to know; no wavelength is needed, for sin θ (1 + ε)
        does not depend on it.
    """

    name: str
    x: Array
    y: Array
    origin: str = "array"
    signed: bool = False
    powder: Powder | None = None
    strain: tuple[float, float] | None = None
    axis: AxisKind | None = None

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise InputError(f"name: expected a name for the phase, got {self.name!r}")
        object.__setattr__(self, "x", _frozen(self.x, f"phase {self.name!r}: x"))
        object.__setattr__(self, "y", _frozen(self.y, f"phase {self.name!r}: y"))
        self._check()
        self._check_strain()

    @classmethod
    def from_array(
        cls,
        name: str,
        x: npt.ArrayLike,
        y: npt.ArrayLike,
        *,
        signed: bool = False,
        strain: tuple[float, float] | None = None,
        axis: AxisKind | None = None,
    ) -> "Phase":
        """Make a phase of arrays.

        Parameters
        ----------
        name : str
            Name of the component.
        x, y : array_like (F,)
            Axis and intensity; they are copied.
        signed : bool, optional
            Whether negative values are meant, as in a pair distribution function.
        strain : (float, float), optional
            Bounds of a strain that the phase has in each pattern, fitted with its weight: its
            lattice spacings d become d (1 + ε), so that a line at q moves to q / (1 + ε).
            The pattern has to reach farther than the data by as much.
        axis : {"q", "two_theta"}, optional
            What ``x`` is; needed where there is a strain.

        Raises
        ------
        InputError
            Where the shapes differ, or a value is negative or not finite; where ``strain`` holds
            no bounds, or the axis is not told with it.

        Examples
        --------
        >>> Phase.from_array("cubic", [1.0, 2.0, 3.0], [0.0, 5.0, 1.0]).on([1.5, 2.0])
        array([2.5, 5. ])
        """
        places = _array(x, f"phase {name!r}: x")
        values = _array(y, f"phase {name!r}: y")
        return cls(name, places, values, signed=signed, strain=strain, axis=axis)

    @classmethod
    def from_file(
        cls,
        path: str | Path,
        name: str | None = None,
        *,
        signed: bool = False,
        strain: tuple[float, float] | None = None,
        axis: AxisKind | None = None,
    ) -> "Phase":
        """Read a phase from a pattern file.

        Parameters
        ----------
        path : str or Path
            As `bluesky_cmf.patterns.read_pattern` takes it.
        name : str, optional
            Name of the component; the file's name without its suffix by default.
        signed : bool, optional
            Whether negative values are meant, as in a pair distribution function.
        strain, axis : optional
            As those of `from_array`.

        Raises
        ------
        PatternFileError
            Where the file is missing or cannot be read.
        InputError
            Where an intensity is negative.
        """
        x, y = read_pattern(path)
        origin = f"file {Path(path).name}"
        return cls(name or Path(path).stem, x, y, origin, signed, strain=strain, axis=axis)

    @classmethod
    def from_cif(
        cls,
        path: str | Path,
        *,
        wavelength: float | None = None,
        axis: Literal["two_theta", "q"] = "two_theta",
        width: float | Sequence[float] | Width | Literal["fit"] = "fit",
        displacement: bool = True,
        name: str | None = None,
        block: str | None = None,
        strain: tuple[float, float] | None = None,
    ) -> "Phase":
        """Compute a phase from a crystal structure.

        Parameters
        ----------
        path : str or Path
            A CIF, as `bluesky_cmf.cifs.read_crystal` takes it.
        wavelength : float, optional
            Wavelength of the measurement in angstrom. The wavelength that may stand in the CIF is
            that of another measurement and is not taken. Needed on ``"two_theta"``; on ``"q"`` it
            adds the polarisation of an unpolarised beam, for data not corrected for it.
        axis : {"two_theta", "q"}, optional
            What the data are measured on: 2θ in degrees, or q in 1/angstrom. The areas of lines
            on them are told by `bluesky_cmf.powder.Powder`.
        width : float, (U, V, W), Width or "fit", optional
            Full width at half maximum of the lines in the axis' unit; or how it goes with the
            angle, as `bluesky_cmf.profiles.Width` tells; ``"fit"``: not known yet, see
            `with_width` and `bluesky_cmf.widths.fit_width`.
        displacement : bool, optional
            Whether the displacement parameters in the CIF are used.
        name : str, optional
            Name of the component; the file's name without its suffix by default.
        block : str, optional
            Data block of the CIF; needed where several hold atoms.
        strain : (float, float), optional
            Bounds of a strain that the phase has in each pattern, fitted with its weight: its
            lattice spacings d become d (1 + ε), so that a line at q moves to q / (1 + ε).

        Raises
        ------
        CIFError
            Where the file is missing, is no CIF, or tells no crystal structure.
        InputError
            Where the wavelength is missing or not in angstrom, or axis or width is none of these.
        """
        path = Path(path)
        known = None if isinstance(width, str) and width == "fit" else Width.of(width)
        # What is wrong with the arguments is told before what is wrong with the file.
        Powder.check_axis(axis, wavelength)
        crystal = read_crystal(path, block=block, displacement=displacement)
        powder = Powder(crystal, axis, wavelength, known)
        origin = f"CIF {path.name}" + ("" if displacement else ", atoms at rest")
        lines = powder.lines()
        return cls(name or path.stem, *lines, origin, powder=powder, strain=strain, axis=axis)

    @classmethod
    def from_run(
        cls,
        catalog: _Documents,
        uid: str,
        pattern: str,
        *,
        x: str,
        name: str | None = None,
        seq_num: int | None = None,
        stream: str = "primary",
        signed: bool = False,
        strain: tuple[float, float] | None = None,
        axis: AxisKind | None = None,
    ) -> "Phase":
        """Take a phase from a stored run.

        Parameters
        ----------
        catalog : Catalog
            What `bluesky_cmf.open_catalog` gives.
        uid : str
            The run.
        pattern, x : str
            Data keys of the pattern (event) and of its axis (event or configuration).
        name : str, optional
            Name of the component; ``run <first 8 of the uid>`` by default.
        seq_num : int, optional
            The event to take; the mean of all of them by default.
        stream : str, optional
            The stream to read.
        signed : bool, optional
            Whether negative values are meant, as in a pair distribution function.
        strain, axis : optional
            As those of `from_array`.

        Raises
        ------
        RunNotFoundError
            Where the run, or the event in it, is not there.
        DataKeyError
            Where a data key is not there.
        """
        documents = catalog.documents(uid)
        patterns, places = _read_run(documents, pattern, x, stream, seq_num)
        if not patterns:
            wanted = "no event" if seq_num is None else f"no event with seq_num {seq_num}"
            raise RunNotFoundError(f"uid: run {uid!r} has {wanted} in stream {stream!r}")
        if places is None:
            raise DataKeyError(f"x: no data key {x!r} in stream {stream!r} of run {uid!r}")
        if len({values.shape for values in (*patterns, places)}) > 1:
            raise InputError(
                f"pattern: the events of run {uid!r} differ in length, or from the axis; "
                "choose one with seq_num"
            )
        mean = np.mean(patterns, axis=0)
        if len(places) > 1 and places[0] > places[-1]:
            places, mean = places[::-1], mean[::-1]
        label = name or f"run {uid[:8]}"
        return cls(label, places, mean, f"run {uid}", signed, strain=strain, axis=axis)

    def on(self, x: npt.ArrayLike, *, strain: float = 0.0) -> Array:
        """Give the pattern on another axis.

        Parameters
        ----------
        x : array_like (F,)
            An increasing axis in the same unit.
        strain : float, optional
            ε: the pattern is h(q (1 + ε)), for a lattice expanded by as much.

        Returns
        -------
        ndarray (F,)
            Linear interpolation, of a phase with strain a cubic spline; the same values, to the
            bit, where the axes are the same. Of a CIF, the sum of its lines' profiles, whose
            highest point (down to a spacing of 1 Å) is 1, as it is of free components.

        Raises
        ------
        AxisError
            Where the phase does not cover the axis.
        InputError
            Where the width of a CIF's lines is not known yet, or with a strain the axis.
        """
        what, onto = f"phase {self.name!r}", np.asarray(x)
        if strain:
            onto = self._stretched(onto, strain)
        if self.powder is None:
            own = onto.shape == self.x.shape and np.array_equal(onto, self.x)
            if own or not (strain or self.strain):
                return resample(self.x, self.y, onto, what=what)
            if not strain:
                # The same refusals as without a strain.
                resample(self.x, self.y, onto, what=what)
            return self._spline.at(onto)
        if self.powder.width is None:
            raise InputError(
                f"{what}: its lines have no width yet (width='fit'); fit it to measured patterns, "
                "phase.with_width(bluesky_cmf.widths.fit_width(phases, x, patterns)), or give it: "
                "Phase.from_cif(…, width=…)"
            )
        return self.powder.on(onto, width=self.powder.width, what=what)

    def reflections(self, x_min: float, x_max: float) -> tuple[Array, Array]:
        """Give the lines of a phase from a CIF.

        Parameters
        ----------
        x_min, x_max : float
            The part of the axis, in degrees or 1/angstrom.

        Returns
        -------
        positions, intensities : ndarray (L,)
            All lines there that the symmetry allows, in order. The intensities are areas, scaled
            so that the strongest is 100; lines at one place are one line.

        Raises
        ------
        AxisError
            Where the part is not from 0 to 180 degrees or 0 to 60 1/angstrom.
        InputError
            Where the phase does not come from a CIF.
        """
        return self._from_cif("lines").reflections(x_min, x_max)

    @property
    def known_strain(self) -> tuple[float, float]:
        """Bounds of its strain.

        Raises
        ------
        InputError
            Where it has none.
        """
        if self.strain is None:
            raise InputError(
                f"phase {self.name!r}: expected a strain, got none; Phase(…, strain=(-0.01, 0.02))"
            )
        return self.strain

    @property
    def needs_width(self) -> bool:
        """Whether its lines have no width yet: ``width="fit"`` of a CIF, before `with_width`."""
        return self.powder is not None and self.powder.width is None

    def with_width(self, width: float | Sequence[float] | Width) -> "Phase":
        """Give the same phase with another width of its lines.

        Parameters
        ----------
        width : float, (U, V, W) or Width
            As `from_cif` takes it.

        Raises
        ------
        InputError
            Where the width is none of these, or the phase does not come from a CIF.
        """
        powder = self._from_cif("a width of its lines")
        return replace(self, powder=replace(powder, width=Width.of(width)))

    def _from_cif(self, what: str) -> Powder:
        if self.powder is None:
            raise InputError(
                f"phase {self.name!r}: expected a phase from a CIF, got one from {self.origin}, "
                f"which has no {what}; make it with Phase.from_cif"
            )
        return self.powder

    @cached_property
    def _spline(self) -> Spline:
        return Spline.through(self.x, self.y)

    def _stretched(self, x: Array, strain: float) -> Array:
        """Give the axis on which the phase has without strain what it has strained on ``x``."""
        what = f"phase {self.name!r}"
        check_kind(what, self.axis, needed=True)
        axis: AxisKind = "q" if self.axis == "q" else "two_theta"
        if self.powder is None:
            check_cover(self.x, x, what=what, strain=strain, axis=axis)
        return stretched(x, strain, axis)

    def _check_strain(self) -> None:
        what = f"phase {self.name!r}"
        if self.powder is not None:
            object.__setattr__(self, "axis", self.powder.axis)
        check_kind(what, self.axis, needed=self.strain is not None)
        if self.strain is None:
            return
        object.__setattr__(self, "strain", strain_bounds(f"{what}: strain", self.strain))
        if self.signed:
            raise InputError(
                f"{what}: strain: expected a diffraction pattern, got one that may be negative "
                "(signed=True): the peaks of a pair distribution function move the other way"
            )

    def _check(self) -> None:
        label = f"phase {self.name!r}"
        if self.x.shape != self.y.shape:
            raise InputError(
                f"{label}: expected x and y of one length, got {len(self.x)} and {len(self.y)}"
            )
        if (self.x[1:] <= self.x[:-1]).any():
            raise AxisError(f"{label}: expected an x that increases throughout")
        if not self.signed and (self.y < 0).any():
            raise InputError(
                f"{label}: expected non-negative intensities, got {self.y.min():.4g}; subtract "
                "less background or clip the pattern, or say that it is meant (signed=True)"
            )


def _array(values: npt.ArrayLike, what: str) -> Array:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise InputError(f"{what}: expected numbers of shape (F,), got {error}") from error


def _frozen(values: Array, what: str) -> Array:
    copy = np.array(values)
    if copy.ndim != 1 or not len(copy) or copy.dtype.kind not in "fiu":
        raise InputError(
            f"{what}: expected numbers of shape (F,), got {copy.dtype} of shape {copy.shape}"
        )
    if not np.isfinite(copy).all():
        raise InputError(f"{what}: expected finite values, got NaN or infinity")
    copy.flags.writeable = False
    return copy


def _read_run(
    documents: Iterable[tuple[str, Mapping[str, Any]]],
    pattern: str,
    x: str,
    stream: str,
    seq_num: int | None,
) -> tuple[list[Array], Array | None]:
    patterns: list[Array] = []
    axis: Array | None = None
    descriptors: set[str] = set()
    for kind, doc in documents:
        if kind == "descriptor" and doc["name"] == stream:
            descriptors.add(doc["uid"])
            if pattern not in doc["data_keys"]:
                raise DataKeyError(
                    f"pattern: no data key {pattern!r} in stream {stream!r}; "
                    f"there are {sorted(doc['data_keys'])}"
                )
            for device in (doc.get("configuration") or {}).values():
                axis = np.asarray(device["data"][x]) if x in device["data"] else axis
        for event in _events(kind, doc, descriptors):
            if seq_num in (None, event["seq_num"]):
                axis = np.asarray(event["data"][x]) if x in event["data"] else axis
                patterns.append(np.asarray(event["data"][pattern], dtype=float))
    return patterns, axis


def _events(
    kind: str, doc: Mapping[str, Any], descriptors: set[str]
) -> Iterable[Mapping[str, Any]]:
    if kind not in ("event", "event_page") or doc["descriptor"] not in descriptors:
        return ()
    events: Iterable[Mapping[str, Any]] = (doc,) if kind == "event" else unpack_event_page(doc)
    return events

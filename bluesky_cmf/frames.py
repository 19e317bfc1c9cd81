"""2-D detector frames to patterns (pyFAI, extra ``frames``)."""

import copy
import hashlib
import inspect
import operator
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import InputError, MissingExtraError, PatternError

__all__ = ["Integrator"]

Array = npt.NDArray[Any]

#: What pyFAI calls the axis, and what it is called here: its name and its unit.
_AXES = {
    "2th_deg": ("two_theta", "deg"),
    "2th_rad": ("two_theta", "rad"),
    "q_A^-1": ("q", "1/angstrom"),
    "q_nm^-1": ("q", "1/nm"),
    "d*2_A^-2": ("d_star_squared", "1/angstrom^2"),
    "d*2_nm^-2": ("d_star_squared", "1/nm^2"),
    "r_mm": ("radius", "mm"),
    "r_m": ("radius", "m"),
}
_NEEDS_WAVELENGTH = ("q", "d_star_squared")
#: One pass over the pixels in the order of memory, on one core: the others stay with the scan.
_METHOD = ("bbox", "csc", "cython")
#: The noise of counts.
_POISSON = {"error_model": "poisson"}


class Integrator:
    """Integrate detector frames over the azimuth, as pyFAI's ``integrate1d`` does.

    The values are pyFAI's own, to the bit. What it leaves doubtful has these rules:

    * A bin that no pixel can reach, for the geometry and the mask (and the ranges, the dark and
      the flat frame), is not on the axis: pyFAI would give it the intensity 0. So the axis is the
      same for all frames, it may end before a ``radial_range`` does, and has a gap where a whole
      ring is masked.
    * A pixel that is NaN or has the detector's (or the given) ``dummy`` value is left out of its
      frame: pyFAI does so by itself. An infinite one is left out like NaN; pyFAI alone keeps or
      drops it, as the method goes. Where a bin of the axis is left without any pixel, the frame is
      refused.
    * A given mask takes the place of the one that pyFAI knows for the detector (the gaps between
      modules, for example).

    Parameters
    ----------
    poni : str, Path or pyFAI.integrator.azimuthal.AzimuthalIntegrator
        Geometry: a .poni file, or an object, which is copied.
    mask : array_like (rows, columns), str or Path, optional
        Not zero where a pixel is to be left out; or a file of it: .npy, .npz (with one array, or
        one named ``mask``), or an image that fabio reads (.edf, .tif, …).
    n_points : int
        Number of bins; those that no pixel can reach are cut off afterwards.
    unit : str
        Axis, by pyFAI's name: ``2th_deg``, ``2th_rad``, ``q_A^-1``, ``q_nm^-1``, ``d*2_A^-2``,
        ``d*2_nm^-2``, ``r_mm`` or ``r_m``.
    dark, flat : array_like (rows, columns), str or Path, optional
        What is subtracted from each frame, and what it is then divided by.
    **options
        Passed on to ``integrate1d``: ``method``, ``polarization_factor``, ``correctSolidAngle``,
        ``radial_range``, ``dummy``, …. The default method is ``("bbox", "csc", "cython")``: it
        splits pixels among bins by their bounding box, as pyFAI's own default does, in less time
        on one core than that takes on two.

    Attributes
    ----------
    name, units : str
        The axis: ``two_theta`` in ``deg``, ``q`` in ``1/angstrom``, ….

    Raises
    ------
    InputError
        Where a file is missing or is something else, shapes differ, the unit is not known or
        needs a wavelength that the geometry does not have, pyFAI refuses an option, or no bin is
        reached by any pixel.
    MissingExtraError
        Where pyFAI is not installed.

    Notes
    -----
    Where the detector's shape is known, from the .poni file or the mask, the sparse matrix of
    pixels and bins is made at once, else with the first frame: a second or two for 2048 x 2048
    pixels. An integrator is for one thread at a time. See J. Kieffer and J. P. Wright, Powder
    Diffraction 28, S339 (2013), for the method.
    """

    def __init__(
        self,
        poni: Any,
        *,
        mask: npt.ArrayLike | str | Path | None = None,
        n_points: int = 1000,
        unit: str = "2th_deg",
        dark: npt.ArrayLike | str | Path | None = None,
        flat: npt.ArrayLike | str | Path | None = None,
        **options: Any,
    ) -> None:
        if unit not in _AXES:
            raise InputError(f"unit: expected one of {', '.join(_AXES)}, got {unit!r}")
        self.name, self.units = _AXES[unit]
        self._unit, self._n_points = unit, _count(n_points)
        self._ai, self._file = _geometry(poni)
        if self.name in _NEEDS_WAVELENGTH and not self._ai.wavelength:
            raise InputError(
                f"unit: {unit!r} needs a wavelength, and the geometry of poni has none; "
                "add a line 'Wavelength: …' (in m) to the file, or use '2th_deg'"
            )
        self._mask = _image(mask, "mask")
        self._dark, self._flat = _image(dark, "dark"), _image(flat, "flat")
        self._shape = self._agreed_shape()
        self._options = _checked_options(self._ai, {"method": _METHOD, **options})
        self._arguments = self._images() | {"unit": unit} | self._options
        self._reached: Array | None = None
        self._x: Array | None = None
        if self._shape is not None:
            self._x, self._reached = self._find_axis(self._shape)

    def __call__(self, frame: npt.ArrayLike) -> tuple[Array, Array]:
        """Integrate one frame.

        Parameters
        ----------
        frame : array_like (rows, columns)
            Intensity of each pixel.

        Returns
        -------
        x, y : ndarray (F,)
            Axis, the same for each frame and not to be written to, and intensity.

        Raises
        ------
        PatternError
            Where the frame has another shape or is not made of numbers, or a bin has no valid
            pixel in this frame.
        """
        x, y, _ = self._integrated(frame, {})
        return x, y

    def with_variance(self, frame: npt.ArrayLike) -> tuple[Array, Array, Array]:
        """Integrate one frame of counts; give the variance of each intensity as well.

        The variance is pyFAI's, with its error model ``"poisson"`` unless the options name another
        one: a pixel has that of its counts. Bins that share pixels are taken to be independent,
        and the dark and the flat frame to be exact.

        Parameters
        ----------
        frame : array_like (rows, columns)
            Counts of each pixel.

        Returns
        -------
        x, y, variance : ndarray (F,)
            Axis, intensity (the same as without variance) and its variance.

        Raises
        ------
        PatternError
            As for ``self(frame)``.
        """
        given = self._options.get("error_model")
        x, y, result = self._integrated(frame, {} if given else _POISSON)
        if result.sigma is None:
            raise PatternError(f"frame: no variance with the option error_model={given!r}")
        return x, y, np.asarray(result.sigma, dtype=float)[self._reached] ** 2

    def _integrated(self, frame: npt.ArrayLike, more: dict[str, Any]) -> tuple[Array, Array, Any]:
        """Give axis, intensity, and what pyFAI makes of a frame."""
        values = np.asarray(frame)
        if values.ndim != 2 or values.dtype.kind not in "fiu":
            raise PatternError(
                "frame: expected numbers of shape (rows, columns), "
                f"got {values.dtype} of shape {values.shape}"
            )
        if self._shape not in (None, values.shape):
            raise PatternError(f"frame: expected shape {self._shape}, got {values.shape}")
        if self._x is None or self._reached is None:
            self._x, self._reached = self._find_axis(values.shape)
            self._shape = values.shape
        if values.dtype.kind == "f":
            values = _without_infinity(values)
        result = self._ai.integrate1d(values, self._n_points, **{**self._arguments, **more})
        y: Array = result.intensity[self._reached]
        empty = ~(_filled(result)[self._reached] & np.isfinite(y))
        if empty.any():
            raise PatternError(self._empty_bins(empty))
        return self._x, y, result

    def describe(self) -> dict[str, Any]:
        """Give geometry, images and options as plain values, for the analysis run's metadata."""
        import pyFAI
        from pyFAI.io.ponifile import PoniFile

        return {
            "poni_file": self._file,
            "geometry": _plain(PoniFile(self._ai).as_dict()),
            "unit": self._unit,
            "n_points": self._n_points,
            "mask": self._mask and self._mask.describe(),
            "dark": self._dark and self._dark.describe(),
            "flat": self._flat and self._flat.describe(),
            "options": _plain(self._options),
            "pyfai": str(pyFAI.version),
        }

    def _images(self) -> dict[str, Array | None]:
        """Give the images as pyFAI takes them: it reads a mask as whole numbers."""
        return {
            "mask": None if self._mask is None else (self._mask.values != 0).astype(np.int8),
            "dark": None if self._dark is None else self._dark.values,
            "flat": None if self._flat is None else self._flat.values,
        }

    def _agreed_shape(self) -> tuple[int, ...] | None:
        """Give the shape of the frames, where the detector or one of the images tells it."""
        known, whose = self._ai.detector.shape, "the detector of poni"
        shape = None if known is None else tuple(int(n) for n in known)
        for argument in ("mask", "dark", "flat"):
            image: _Image | None = getattr(self, f"_{argument}")
            if image is None:
                continue
            if shape is None:
                shape, whose = image.values.shape, f"the {argument}"
            elif image.values.shape != shape:
                raise InputError(
                    f"{argument}: expected the shape of {whose}, {shape}, got {image.values.shape}"
                )
        return shape

    def _find_axis(self, shape: tuple[int, ...]) -> tuple[Array, Array]:
        """Integrate a frame that is valid everywhere: the axis, and the bins that are on it."""
        arguments = {k: v for k, v in self._arguments.items() if k not in ("dummy", "delta_dummy")}
        try:
            result = self._ai.integrate1d(
                np.ones(shape, dtype=np.float32), self._n_points, **arguments
            )
        except Exception as error:
            raise InputError(
                "poni, options: pyFAI cannot integrate a frame of shape "
                f"{shape} with them ({type(error).__name__}: {error})"
            ) from error
        reached = _filled(result)
        if not reached.any():
            raise InputError(
                "mask, options: no pixel is left in any bin; check mask, flat, radial_range and "
                "azimuth_range"
            )
        x = np.asarray(result.radial, dtype=float)[reached]
        x.flags.writeable = False
        return x, reached

    def _empty_bins(self, empty: Array) -> str:
        where = np.asarray(self._x)[empty]
        return (
            f"frame: {len(where)} of {len(empty)} bins have no valid pixel in it, the first at "
            f"{self.name} = {where[0]:.6g} {self.units}; if that is so in each frame, add the "
            "pixels to the mask"
        )


@dataclass(frozen=True)
class _Image:
    """An image that goes into each integration, and the file that it is from."""

    values: Array
    file: str | None

    def describe(self) -> dict[str, Any]:
        return {"file": self.file, **_digest(self.values)}


def _count(n_points: Any) -> int:
    try:
        number = operator.index(n_points)
    except TypeError:
        number = 0
    if number < 2:
        raise InputError(f"n_points: expected a whole number, 2 or more, got {n_points!r}")
    return number


def _geometry(poni: Any) -> tuple[Any, str | None]:
    """Give an integrator of our own, and the path of the file that it is from."""
    try:
        from pyFAI.integrator.azimuthal import AzimuthalIntegrator
    except ImportError as reason:
        raise MissingExtraError(
            f"integrating frames needs pyFAI ({reason}): pip install 'bluesky-cmf[frames]'"
        ) from reason
    if isinstance(poni, AzimuthalIntegrator):
        # Its owner may move it, and each integrator keeps one sparse matrix.
        return _measured(copy.deepcopy(poni), "the object"), None
    if not isinstance(poni, str | Path):
        raise InputError(
            f"poni: expected a path or a pyFAI AzimuthalIntegrator, got {type(poni).__name__}"
        )
    return _read_poni(Path(poni), AzimuthalIntegrator()), str(poni)


def _read_poni(path: Path, ai: Any) -> Any:
    from pyFAI.io.ponifile import PoniFile

    try:
        found = PoniFile(str(path))
    except FileNotFoundError as error:
        raise InputError(f"poni: no such file: {path}") from error
    except Exception as error:
        raise InputError(
            f"poni: {path} cannot be read as a .poni file ({type(error).__name__}: {error})"
        ) from error
    # pyFAI would put a detector 1 m away where a file says nothing.
    values = found.as_dict()
    missing = [key for key in ("dist", "poni1", "poni2") if values[key] is None]
    if missing:
        raise InputError(f"poni: {path} is not a .poni file: it does not give {missing}")
    ai.load(found)
    return _measured(ai, str(path))


def _measured(ai: Any, whose: str) -> Any:
    if ai.detector.pixel1 is None or ai.detector.pixel2 is None:
        raise InputError(f"poni: {whose} gives neither a detector nor the size of its pixels")
    return ai


def _image(given: Any, argument: str) -> _Image | None:
    if given is None:
        return None
    is_path = isinstance(given, str | Path)
    try:
        # A copy: what the caller does to the array later changes nothing here.
        values = np.array(_read_image(Path(given)) if is_path else given)
    except FileNotFoundError as error:
        raise InputError(f"{argument}: no such file: {given}") from error
    except Exception as error:
        raise InputError(
            f"{argument}: cannot be read as an image ({type(error).__name__}: {error})"
        ) from error
    if values.ndim != 2 or values.dtype.kind not in "fiub":
        raise InputError(
            f"{argument}: expected numbers of shape (rows, columns), "
            f"got {values.dtype} of shape {values.shape}"
        )
    return _Image(values, str(given) if is_path else None)


def _read_image(path: Path) -> Any:
    if path.suffix.lower() == ".npy":
        return np.load(path, allow_pickle=False)
    if path.suffix.lower() == ".npz":
        with np.load(path, allow_pickle=False) as arrays:
            name = "mask" if "mask" in arrays.files else arrays.files[0]
            if name != "mask" and len(arrays.files) > 1:
                raise ValueError(f"one array, or one named 'mask', is expected of {arrays.files}")
            return arrays[name]
    import fabio

    with fabio.open(str(path)) as image:
        return image.data


def _checked_options(ai: Any, options: dict[str, Any]) -> dict[str, Any]:
    """Refuse what integrate1d does not know, or would quietly do otherwise."""
    from pyFAI.method_registry import IntegrationMethod

    # One frame's own variance, and a file that each frame would write anew, are for one call.
    known = set(inspect.signature(ai.integrate1d).parameters) - {"data", "npt"}
    known -= {"filename", "variance", "mask", "unit", "dark", "flat"}
    if unknown := sorted(options.keys() - known):
        raise InputError(f"options: expected some of {sorted(known)}, got {unknown}")
    try:
        method = IntegrationMethod.select_one_available(options["method"], dim=1, default=None)
        reason = "it is not available here"
    except Exception as error:
        method, reason = None, str(error)
    if method is None:
        raise InputError(f"method: pyFAI cannot use {options['method']!r} ({reason})")
    return options


def _filled(result: Any) -> Array:
    """Say which bins hold something."""
    filled: Array = (np.asarray(result.count) > 0) & (np.asarray(result.sum_normalization) != 0)
    return filled


def _without_infinity(values: Array) -> Array:
    """Put NaN for what is infinite in single precision, which pyFAI calculates in."""
    infinite = np.abs(values) > np.finfo(np.float32).max
    return np.where(infinite, np.nan, values) if infinite.any() else values


def _digest(values: Array) -> dict[str, Any]:
    digest = hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
    return {"shape": list(values.shape), "dtype": str(values.dtype), "sha256": digest}


def _plain(value: Any) -> Any:
    """Turn a value into what JSON has."""
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, np.ndarray):
        return _digest(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, int | np.integer):
        return int(value)
    if isinstance(value, float | np.floating):
        return float(value)
    return str(value)

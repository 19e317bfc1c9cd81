"""What is done to every pattern, and to every phase, before the fit; and what becomes of noise."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .baselines import Background
from .errors import AxisError, InputError
from .judging import check_values
from .prepared import Noise, Prepared
from .resampling import Resampling, averaged
from .steps import divided, normalized, signed, without_background

__all__ = ["Preprocess"]

Array = npt.NDArray[Any]

_NORMALIZE = (None, "max", "area", "monitor")
_NEGATIVE = ("reject", "clip", "offset")
#: Most points that a step makes of an axis: beyond it a number is a slip of the finger.
_MOST_POINTS = 1_000_000


@dataclass(frozen=True)
class Preprocess:
    """Steps that patterns and phases go through alike, so that they stay comparable.

    In this order: crop (``roi``), interpolate (``regrid``), average neighbours (``rebin``), the
    rule for negative values (``negative``), subtract the background, normalise. Averages come
    before what is not linear, because a rule such as "set to zero" shifts the mean of noise, the
    less the less noise there is.

    Parameters
    ----------
    roi : (float, float), optional
        First and last value of the axis to keep, in its unit.
    regrid : float or array_like (B,), optional
        Interpolate linearly: onto an even axis with this step, from the first value that is kept,
        or onto this increasing axis, as far as ``roi`` keeps it. A step larger than the data's
        leaves measured points out: use ``rebin`` for that.
    background : str, (str, mapping) or mapping, optional
        Subtract the background that an algorithm of pybaselines estimates: the name of a method of
        `pybaselines.Baseline` (``"snip"``, ``"asls"``, ``"arpls"``, ``"modpoly"``, …), with its
        options as ``("snip", {"max_half_window": 40})`` or
        ``{"name": "snip", "max_half_window": 40}``. Options count points of the axis that is left.
    rebin : int, optional
        Average each so many neighbouring points, values and axis; what is left over at the upper
        end of the axis, fewer points than these, is left out.
    normalize : {"max", "area", "monitor"}, optional
        Divide each pattern by its maximum, by its integral over the axis, or by the monitor's
        value that was measured with it.
    monitor : str, optional
        Data key of the monitor, for ``normalize="monitor"``; in the event, the configuration or
        the start document. A pattern whose monitor is no positive number is rejected.
    negative : {"reject", "clip", "offset"}, optional
        What becomes of a pattern with negative values, which the factorization cannot hold:
        it is refused, its negative values are set to zero, or its minimum is subtracted from all
        of it. Pair distribution functions, which oscillate about zero, need ``"offset"``; one
        more free component takes up the constant by which patterns differ then.

    Raises
    ------
    InputError
        Where an argument is none of these.

    Notes
    -----
    What falls below zero when the background is subtracted is set to zero, whatever ``negative``
    says: it is noise about the background, not a value of the user's. This shifts the mean of
    empty stretches from 0 to 0.4 standard deviations; a background that is a component of the fit
    (a `Phase`, or a free one) has no such shift, and its uncertainty is part of the weights'.

    Phases go through the same steps, but for the monitor, of which they have none: their weights
    are per unit of it. The background is subtracted from phases too, also from those computed from
    a CIF, which have none: what the algorithm takes for background among lines that overlap, it
    takes from data and phase alike.

    `prepare` carries the noise along to first order. The noise of the estimated background and
    of the monitor is neglected. Where a value is set to zero, that of what it was before is kept:
    an upper bound.

    Examples
    --------
    >>> import numpy as np
    >>> Preprocess(roi=(1, 3), normalize="max")(np.arange(5.0), np.array([9.0, 1, 2, 4, 9]))
    array([0.25, 0.5 , 1.  ])
    >>> Preprocess(rebin=2).axis(np.arange(5.0))
    array([0.5, 2.5])
    """

    roi: tuple[float, float] | None = None
    _: KW_ONLY
    regrid: float | Sequence[float] | Array | None = None
    background: "str | tuple[str, Mapping[str, Any]] | Mapping[str, Any] | Background | None" = None
    rebin: int | None = None
    normalize: Literal["max", "area", "monitor"] | None = None
    monitor: str | None = None
    negative: Literal["reject", "clip", "offset"] = "reject"

    def __post_init__(self) -> None:
        if self.normalize not in _NORMALIZE:
            raise InputError(
                f"normalize: expected 'max', 'area', 'monitor' or None, got {self.normalize!r}"
            )
        if self.negative not in _NEGATIVE:
            raise InputError(
                f"negative: expected 'reject', 'clip' or 'offset', got {self.negative!r}"
            )
        self._check_monitor()
        object.__setattr__(self, "roi", _region(self.roi))
        object.__setattr__(self, "regrid", _regrid(self.regrid))
        object.__setattr__(self, "background", Background.of(self.background))
        object.__setattr__(self, "rebin", _count(self.rebin))

    # --- axes ------------------------------------------------------------------------------

    def grid(self, x: Array) -> Array:
        """Give the axis that patterns on ``x`` (F,) are taken onto, before `rebin`, (B,).

        What `rebin` would leave over is not on it.

        Raises
        ------
        AxisError
            Where nothing is left of it.
        """
        if isinstance(self.regrid, tuple):
            grid = np.array(self.regrid)
        elif self.regrid is not None:
            grid = self._even(x)
        else:
            grid = x
        kept = grid[self._kept(grid)]
        if not len(kept):
            raise AxisError(
                f"roi: {self.roi} keeps nothing of an axis from {grid[0]:.6g} to {grid[-1]:.6g}"
            )
        if len(kept) < self._rebin:
            raise AxisError(f"rebin: {self.rebin} points are averaged, and {len(kept)} are left")
        return kept[: len(kept) // self._rebin * self._rebin]

    def axis(self, x: Array) -> Array:
        """Give the axis that is fitted, of patterns on ``x`` (F,), (G,).

        Raises
        ------
        AxisError
            Where nothing is left of it.
        """
        return averaged(self.grid(x), self._rebin)

    def crop(self, x: Array, y: Array) -> Array:
        """Give what is kept of a pattern (F,) on the axis ``x`` (F,), (G,): `roi` alone."""
        return y[self._kept(x)]

    def resampling(self, x: Array, onto: Array | None = None) -> Resampling:
        """Give the linear steps as one map, of patterns on ``x`` (F,).

        Parameters
        ----------
        x : ndarray (F,)
            Increasing axis.
        onto : ndarray (B,), optional
            A `grid`; that of ``x`` by default.

        Raises
        ------
        AxisError
            Where nothing is left of the axis.
        """
        return Resampling(x, self.grid(x) if onto is None else onto, self._rebin)

    # --- patterns --------------------------------------------------------------------------

    def __call__(self, x: Array, y: Array, *, onto: Array | None = None) -> Array:
        """Apply the steps to a pattern (F,) on the axis ``x`` (F,); not the monitor, as of a phase.

        Parameters
        ----------
        x, y : ndarray (F,)
            Increasing axis and values.
        onto : ndarray (B,), optional
            The `grid` that others are on; that of ``x`` by default.

        Returns
        -------
        ndarray (G,)
            The same values, to the bit, where there is nothing to do.

        Raises
        ------
        PatternError
            Where a pattern holds negative values that are to be refused, has nothing to be
            normalised by, or has a background that cannot be estimated.
        AxisError
            Where the axis does not cover what it is interpolated onto.
        """
        resampling = self.resampling(x, onto)
        taken = resampling.taken(np.asarray(y))
        return self._finished(resampling, averaged(taken, self._rebin), None)[0]

    def prepare(
        self,
        x: Array,
        y: Array,
        *,
        variance: Array | None = None,
        monitor: float | None = None,
        onto: Array | None = None,
    ) -> Prepared:
        """Apply the steps to a measured pattern, and carry its noise along.

        Parameters
        ----------
        x, y : ndarray (F,)
            Increasing axis and values.
        variance : ndarray (F,), optional
            Variance of each value; their noise is taken to be independent. One that cannot be
            used, because what is kept of it is not finite, negative or nothing but zeros, is
            left out, and `Prepared.doubt` says so.
        monitor : float, optional
            The monitor's value, for ``normalize="monitor"``.
        onto : ndarray (B,), optional
            The `grid` that others are on; that of ``x`` by default.

        Returns
        -------
        Prepared
            The values are those of ``self(x, y)``, divided by the monitor.

        Raises
        ------
        PatternError
            Where the pattern cannot be used: as for ``self(x, y)``, or because of NaN, infinity,
            nothing but zeros, or a monitor that is no positive number.
        AxisError
            Where the axis does not cover what it is interpolated onto.
        """
        resampling = self.resampling(x, onto)
        taken = resampling.taken(np.asarray(y))
        check_values(taken)
        noise, doubt = _noise(resampling, variance)
        values, noise = self._finished(resampling, averaged(taken, self._rebin), noise)
        if self.normalize == "monitor":
            values, noise = divided(values, noise, monitor, self.monitor)
        return Prepared(values, None if noise is None else noise.variance(), doubt, noise)

    def describe(self) -> dict[str, Any]:
        """Give the steps as plain values, for the metadata of the analysis run.

        ``Preprocess(**steps.describe()) == steps``.
        """
        background = self.background
        return {
            "roi": None if self.roi is None else list(self.roi),
            "regrid": list(self.regrid) if isinstance(self.regrid, tuple) else self.regrid,
            "rebin": self.rebin,
            "negative": self.negative,
            "background": background.describe() if isinstance(background, Background) else None,
            "normalize": self.normalize,
            "monitor": self.monitor,
        }

    # --- details ---------------------------------------------------------------------------

    @property
    def _rebin(self) -> int:
        return self.rebin or 1

    def _kept(self, x: Array) -> Array:
        if self.roi is None:
            return np.ones(len(x), dtype=bool)
        kept: Array = (x >= self.roi[0]) & (x <= self.roi[1])
        return kept

    def _even(self, x: Array) -> Array:
        """Make an even axis of what is kept of ``x``; none where nothing is."""
        first, last = self.roi or (-np.inf, np.inf)
        first, last = max(first, float(x[0])), min(last, float(x[-1]))
        step = float(self.regrid)  # type: ignore[arg-type]
        if last < first:
            return x
        # A step that fits in but for rounding does fit in.
        count = np.floor((last - first) / step * (1 + 1e-9)) + 1
        if not 2 <= count <= _MOST_POINTS:
            raise AxisError(
                f"regrid: a step of {step:g} makes {count:.0f} points of an axis from {first:.6g} "
                f"to {last:.6g}; expected 2 to {_MOST_POINTS}"
            )
        even: Array = np.minimum(first + step * np.arange(int(count)), last)
        return even

    def _finished(
        self, resampling: Resampling, y: Array, noise: Noise | None
    ) -> tuple[Array, Noise | None]:
        """Apply what comes after the linear steps, but for the monitor."""
        y, noise = signed(y, noise, self.negative)
        x = averaged(resampling.grid, self._rebin)
        if isinstance(self.background, Background):
            y, noise = without_background(x, y, noise, self.background)
        if self.normalize in ("max", "area"):
            y, noise = normalized(x, y, noise, self.normalize)
        return y, noise

    def _check_monitor(self) -> None:
        named = isinstance(self.monitor, str) and bool(self.monitor)
        if self.monitor is not None and not named:
            raise InputError(f"monitor: expected a data key, got {self.monitor!r}")
        if self.normalize == "monitor" and not named:
            raise InputError("monitor: expected its data key for normalize='monitor', got None")
        if named and self.normalize != "monitor":
            raise InputError(
                f"monitor: {self.monitor!r} is used with normalize='monitor' alone, "
                f"got normalize={self.normalize!r}"
            )


def _noise(resampling: Resampling, variance: Array | None) -> tuple[Noise | None, str]:
    """Give the noise of a pattern as measured, or why it cannot be used."""
    if variance is None:
        return None, ""
    if np.shape(variance) != resampling.x.shape:
        return None, f"{np.size(variance)} values for {len(resampling.x)} points"
    used = np.asarray(variance, dtype=float)[resampling.points]
    bad = int(np.count_nonzero(~(np.isfinite(used) & (used >= 0))))
    if bad:
        return None, f"NaN, infinity or a negative number at {bad} of {len(used)} points"
    if not used.any():
        return None, "every one is zero"
    # What has no part may be anything.
    raw = np.zeros(len(resampling.x))
    raw[resampling.points] = used
    return Noise(resampling, raw), ""


def _region(roi: Any) -> tuple[float, float] | None:
    if roi is None:
        return None
    try:
        first, last = map(float, roi)
        if not first < last:
            raise ValueError
    except (TypeError, ValueError):
        raise InputError(
            f"roi: expected numbers (first, last) with first < last, got {roi!r}"
        ) from None
    return first, last


def _regrid(regrid: Any) -> float | tuple[float, ...] | None:
    """Check what to interpolate onto: a step, or an axis, which is kept as a tuple."""
    if regrid is None:
        return None
    try:
        values = np.asarray(regrid)
        if values.dtype.kind not in "fiu":
            raise ValueError(f"{values.dtype}")
    except ValueError:
        raise InputError(f"regrid: expected a step or an axis (B,), got {regrid!r}") from None
    values = values.astype(float)
    if values.ndim == 0 and 0 < values < np.inf:
        return float(values)
    if values.ndim == 1 and len(values) > 1 and np.isfinite(values).all():
        if (values[1:] > values[:-1]).all():
            return tuple(values.tolist())
        raise InputError("regrid: expected an axis that increases throughout")
    raise InputError(
        f"regrid: expected a step above 0, or an axis (B,) of finite numbers, got {regrid!r}"
    )


def _count(rebin: Any) -> int | None:
    if rebin is None:
        return None
    try:
        count = operator.index(rebin)
    except TypeError:
        count = 0
    if count < 1 or isinstance(rebin, bool):
        raise InputError(f"rebin: expected a whole number, 1 or more, got {rebin!r}")
    return count

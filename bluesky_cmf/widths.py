"""The instrument's peak width, fitted to measured patterns with known phases in them."""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from .errors import AxisError, InputError, NoLinesError
from .nmf.updates import nnls
from .phases import Phase
from .powder import Powder
from .profiles import Width

__all__ = ["fit_width", "instrument_width"]

Array = npt.NDArray[Any]
#: What messages call a phase, and its powder.
_Named = tuple[str, Powder]

#: The widest lines that are looked for, as a share of the axis.
_WIDEST = 0.03
#: Widths that are tried before the best one is refined.
_TRIED = 16
#: Golden section: the share of an interval that is kept, and how often; 0.618^12 is 3e-3.
_GOLDEN, _SECTIONS = (math.sqrt(5) - 1) / 2, 12
#: How many times what noise explains the phases have to explain.
_NOISE = 10.0
#: Sums of squared residuals below this share of the patterns' are rounding.
_ROUNDING = 1e-10
#: Shares of the Lorentzian that are tried at a time, and how often, each time closer together.
_SHARES, _ROUNDS = 11, 3
#: How well the first lines have to settle a width: relative standard error.
_SETTLED = 0.02
#: Half the distance, in the logarithm of the width, at which a curvature is taken.
_BESIDE = 0.05
#: Lines below this share of their phase's strongest are no lines to fit a width to.
_WEAK = 0.02
#: Lines closer than this share of their place are one group: they may overlap.
_GAP = 0.02
#: The part of the axis, from its lower end, that lines are taken from.
_LOWER = 1 / 3


def fit_width(phases: Sequence[Phase], x: npt.ArrayLike, patterns: npt.ArrayLike) -> Width:
    """Fit the width of an instrument's lines to measured patterns.

    Parameters
    ----------
    phases : sequence of Phase
        What is in the patterns. At least one comes from a CIF; these get the width that is fitted,
        the others stay as they are.
    x : array_like (F,)
        The axis, increasing, in the unit of the phases.
    patterns : array_like (F,) or (M, F)
        The patterns, with or without a background. A background that is not flat over the width
        of a few lines is better subtracted before.

    Returns
    -------
    Width
        One full width at half maximum for the whole axis, and the share of the Lorentzian: those
        with the smallest sum of squared residuals, where each pattern is the best non-negative
        sum of the phases and of a straight background. It is looked for from one step of the axis
        to 3 % of its range, by golden section over its logarithm.

    Raises
    ------
    InputError
        Where no phase comes from a CIF, they are on several axes, the patterns are not finite or
        of another length, or where they do not settle the width.
    AxisError
        Where a phase does not cover the axis.

    Notes
    -----
    Cells that are a little off, or of a phase that is not given, broaden the lines that are
    fitted, and the more so the larger the angle: Δ2θ = -2 tan θ Δd/d. Where the cells are not
    those of the sample's temperature, the first lines of the axis settle the width best.
    """
    phases, x = list(phases), np.asarray(x)
    powders = _powders(phases)
    patterns = _checked(x, patterns)
    return _fit(phases, powders, x, patterns)[0]


def instrument_width(phases: Sequence[Phase], x: npt.ArrayLike, patterns: npt.ArrayLike) -> Width:
    """Fit the width of an instrument's lines to as few of the first lines as settle it.

    Where the cells of the phases are not quite those of the sample, lines are displaced and look
    broader, the less the lower they are: Δ2θ = -2 tan θ Δd/d. So the width is fitted, as by
    `fit_width`, to the first group of lines, and to one group more at a time until its relative
    standard error, by the curvature of the sum of squares, is at most 2 %; to the lower third of
    the axis where no fewer settle it.

    Parameters
    ----------
    phases, x, patterns
        As `fit_width` takes them.

    Returns
    -------
    Width

    Raises
    ------
    InputError, AxisError
        As `fit_width`, for the lower third of the axis.
    """
    phases, x = list(phases), np.asarray(x)
    powders = _powders(phases)
    patterns = _checked(x, patterns)
    stops = _stops(powders, x)
    for stop in stops[:-1]:
        try:
            width, error = _fit(phases, powders, x[:stop], patterns[:, :stop])
        except (InputError, AxisError):
            # These lines are of phases that are not there yet.
            continue
        if error <= _SETTLED:
            return width
    return _fit(phases, powders, x[: stops[-1]], patterns[:, : stops[-1]])[0]


def _fit(
    phases: Sequence[Phase], powders: Sequence[_Named], x: Array, patterns: Array
) -> tuple[Width, float]:
    """Fit a width; give its relative standard error with it."""
    others = [phase.on(x) for phase in phases if phase.powder is None]
    fit = _Fit(x, patterns, powders, others)
    low, high = math.log(fit.narrowest), math.log(fit.widest)
    tried = np.linspace(low, high, _TRIED)
    best = int(np.argmin([fit.residual(float(width)) for width in tried]))
    fit.check(tried, best)
    ends = tried[max(0, best - 1)], tried[min(_TRIED - 1, best + 1)]
    log_width = _golden(fit.residual, float(ends[0]), float(ends[1]))
    width = Width(0.0, 0.0, math.exp(2 * log_width), fit.share(log_width))
    return width, fit.error(log_width)


def _stops(powders: Sequence[_Named], x: Array) -> list[int]:
    """Tell where groups of lines end in the lower third of the axis, as indices into it."""
    third = x[0] + _LOWER * (x[-1] - x[0])
    places = []
    for _, powder in powders:
        positions, areas = powder.reflections(max(0.0, float(x[0])), float(third))
        places.extend(positions[areas >= _WEAK * areas.max(initial=0.0)])
    places.sort()
    gaps = [
        (below + above) / 2
        for below, above in itertools.pairwise(places)
        if above - below > _GAP * above
    ]
    return [int(np.searchsorted(x, place)) for place in (*gaps, third)]


class _Fit:
    """Sum of squared residuals as a function of the width."""

    def __init__(
        self, x: Array, patterns: Array, powders: Sequence[_Named], others: Sequence[Array]
    ) -> None:
        self._x, self._powders = x, powders
        self._patterns = patterns
        ramp = (x - x[0]) / (x[-1] - x[0])
        # Non-negative sums of these two are the straight lines that stay above zero.
        self._others = [*others, ramp, 1 - ramp]
        self._total = float((patterns**2).sum())
        self.narrowest = float(np.median(np.diff(x)))
        self.widest = _WIDEST * float(x[-1] - x[0])

    def check(self, tried: Array, best: int) -> None:
        """Refuse patterns that do not settle the width.

        Raises
        ------
        InputError
            Where the phases explain no more than noise, or one end of what was tried is best.
        """
        residual, bare = self.residual(float(tried[best])), self._without_crystals()
        freedom = len(self._powders) * len(self._patterns) + 2
        noise = _NOISE * freedom / self._patterns.size * bare
        if bare - residual <= noise + _ROUNDING * self._total:
            raise NoLinesError(
                "patterns: expected patterns with lines of these phases, got some that they "
                "explain no better than noise; check that phases and wavelength are those of the "
                "patterns, or give the width"
            )
        if best in (0, len(tried) - 1):
            # The minimum may still lie between the end and its neighbour.
            inside = float(tried[best]) + (1e-3 if best == 0 else -1e-3)
            if self.residual(inside) >= residual:
                raise InputError(
                    f"patterns: expected lines of these phases between {self.narrowest:.3g} and "
                    f"{self.widest:.3g} {self._powders[0][1].unit} wide, but the fit gets better "
                    f"toward the {'narrow' if best == 0 else 'wide'} end; check that phases and "
                    "wavelength are those of the patterns, or give the width"
                )

    def _without_crystals(self) -> float:
        """Sum of squared residuals of the background and the phases that are no crystals."""
        columns = np.array(self._others)
        G, C = (torch.from_numpy(m @ columns.T) for m in (columns, self._patterns))
        W = nnls(C, G)
        return self._total - float(((2 * C - W @ G) * W).sum())

    def residual(self, log_width: float) -> float:
        """Sum of squared residuals, with the best share of the Lorentzian."""
        return self._best(log_width)[0]

    def share(self, log_width: float) -> float:
        """Best share of the Lorentzian."""
        return self._best(log_width)[1]

    def error(self, log_width: float) -> float:
        """Relative standard error of the width, by the curvature of the sum of squares."""
        here, below, above = (self.residual(log_width + step) for step in (0.0, -_BESIDE, _BESIDE))
        curvature = (below + above - 2 * here) / _BESIDE**2
        variance = here / self._patterns.size
        return math.sqrt(2 * variance / curvature) if curvature > 0 else math.inf

    def _best(self, log_width: float) -> tuple[float, float]:
        gram, sides = self._equations(log_width)
        middle, reach = 0.5, 0.5
        for _ in range(_ROUNDS):
            shares = np.linspace(max(0.0, middle - reach), min(1.0, middle + reach), _SHARES)
            residuals = self._residuals(gram, sides, shares)
            middle, reach = float(shares[residuals.argmin()]), 2 * reach / (_SHARES - 1)
        return float(residuals.min()), middle

    def _equations(self, log_width: float) -> tuple[Array, Array]:
        """Gram matrix and right-hand sides of Gaussians, Lorentzians and the others."""
        width = Width(0.0, 0.0, math.exp(2 * log_width))
        shapes = [powder.shapes(self._x, width=width, what=what) for what, powder in self._powders]
        columns = np.array([*(s for pair in shapes for s in pair), *self._others])
        scale = np.linalg.norm(columns, axis=1)
        # The two shapes of a phase are mixed: they keep one scale.
        count = 2 * len(shapes)
        scale[:count] = np.repeat(scale[:count].reshape(-1, 2).mean(axis=1), 2)
        columns /= scale[:, None]
        return columns @ columns.T, self._patterns @ columns.T

    def _residuals(self, gram: Array, sides: Array, shares: Array) -> Array:
        """Sum of squared residuals for each share of the Lorentzian."""
        mixing = np.array([self._mixing(share) for share in shares])
        G = torch.from_numpy(mixing @ gram @ mixing.transpose(0, 2, 1))
        C = torch.from_numpy(sides @ mixing.transpose(0, 2, 1))
        count, K = C.shape[1], C.shape[2]
        rows = nnls(C.reshape(-1, K), G.repeat_interleave(count, 0)).reshape(C.shape)
        explained = ((2 * C - rows @ G) * rows).sum(dim=(1, 2))
        residuals: Array = self._total - explained.numpy()
        return residuals

    def _mixing(self, share: float) -> Array:
        """Matrix that makes components of Gaussians, Lorentzians and the others."""
        crystals, others = len(self._powders), len(self._others)
        mixing = np.zeros((crystals + others, 2 * crystals + others))
        mixing[:crystals, : 2 * crystals] = np.kron(np.eye(crystals), [1 - share, share])
        mixing[crystals:, 2 * crystals :] = np.eye(others)
        return mixing


def _powders(phases: Sequence[Phase]) -> list[_Named]:
    powders = [(f"phase {p.name!r}", p.powder) for p in phases if p.powder is not None]
    if not powders:
        raise InputError("phases: expected at least one phase from a CIF, got none")
    axes = {f"{powder.axis} at {powder.wavelength}" for _, powder in powders}
    if len(axes) > 1:
        raise InputError(f"phases: expected one axis and one wavelength, got {sorted(axes)}")
    return powders


def _checked(x: Array, patterns: npt.ArrayLike) -> Array:
    values = np.atleast_2d(np.asarray(patterns))
    if x.ndim != 1 or len(x) < 3 or values.ndim != 2 or values.shape[1] != len(x):
        raise InputError(
            f"patterns: expected shape (M, F) as the axis, at least three points, got "
            f"{values.shape} and an axis {x.shape}"
        )
    if x.dtype.kind not in "fiu" or not (x[1:] > x[:-1]).all():
        raise AxisError("x: expected an axis (F,) of numbers that increase throughout")
    if not len(values) or values.dtype.kind not in "fiu" or not np.isfinite(values).all():
        raise InputError("patterns: expected finite numbers, got NaN, infinity or nothing")
    return values.astype(float)


def _golden(function: Callable[[float], float], low: float, high: float) -> float:
    """Find the minimum of a function with one minimum from low to high (Kiefer, 1953)."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = function(left), function(right)
    for _ in range(_SECTIONS):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = function(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = function(right)
    return (low + high) / 2

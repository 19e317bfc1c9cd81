"""What is done to every pattern, and to every phase, before the fit: crop, sign, normalise."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from .errors import AxisError, InputError, PatternError

__all__ = ["Preprocess"]

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Preprocess:
    """Steps that patterns and phases go through alike, so that they stay comparable.

    Parameters
    ----------
    roi : (float, float), optional
        First and last value of the axis to keep, in its unit.
    normalize : {"max", "area"}, optional
        Divide each pattern by its maximum, or by its integral over the axis.
    negative : {"reject", "clip", "offset"}, optional
        What becomes of a pattern with negative values, which the factorization cannot hold:
        it is refused, its negative values are set to zero, or its minimum is subtracted from all
        of it. Pair distribution functions, which oscillate about zero, need ``"offset"``; one
        more free component takes up the constant by which patterns differ then.

    Examples
    --------
    >>> import numpy as np
    >>> Preprocess(roi=(1, 3), normalize="max")(np.arange(5.0), np.array([9.0, 1, 2, 4, 9]))
    array([0.25, 0.5 , 1.  ])
    """

    roi: tuple[float, float] | None = None
    normalize: Literal["max", "area"] | None = None
    negative: Literal["reject", "clip", "offset"] = "reject"

    def __post_init__(self) -> None:
        if self.normalize not in (None, "max", "area"):
            raise InputError(f"normalize: expected 'max', 'area' or None, got {self.normalize!r}")
        if self.negative not in ("reject", "clip", "offset"):
            raise InputError(
                f"negative: expected 'reject', 'clip' or 'offset', got {self.negative!r}"
            )
        if self.roi is None:
            return
        try:
            first, last = map(float, self.roi)
            if not first < last:
                raise ValueError
        except (TypeError, ValueError):
            raise InputError(
                f"roi: expected numbers (first, last) with first < last, got {self.roi!r}"
            ) from None
        object.__setattr__(self, "roi", (first, last))

    def axis(self, x: Array) -> Array:
        """Give the axis that is left, (G,).

        Raises
        ------
        AxisError
            Where nothing is left of it.
        """
        kept = x[self._kept(x)]
        if not len(kept):
            raise AxisError(
                f"roi: {self.roi} keeps nothing of an axis from {x[0]:.6g} to {x[-1]:.6g}"
            )
        return kept

    def crop(self, x: Array, y: Array) -> Array:
        """Give what is kept of a pattern (F,) on the axis ``x`` (F,), (G,)."""
        return y[self._kept(x)]

    def __call__(self, x: Array, y: Array) -> Array:
        """Apply the steps to a pattern (F,) on the axis ``x`` (F,).

        Returns
        -------
        ndarray (G,)
            The same values, to the bit, where there is nothing to do.

        Raises
        ------
        PatternError
            Where a pattern holds negative values that are to be refused, or one that is to be
            normalised nothing but zeros.
        """
        y = self._signed(self.crop(x, y))
        if self.normalize is None:
            return y
        # Detectors give integers, whose sums would wrap round.
        kept, y = x[self._kept(x)].astype(float), y.astype(float)
        scale = float(y.max()) if self.normalize == "max" else float(np.trapezoid(y, kept))
        if not 0 < scale < np.inf:
            raise PatternError(f"cannot be normalised by its {self.normalize}, which is {scale:g}")
        return y / scale

    def describe(self) -> dict[str, Any]:
        """Give the steps as plain values, for the metadata of the analysis run."""
        steps = asdict(self)
        return {key: list(v) if isinstance(v, tuple) else v for key, v in steps.items()}

    def _signed(self, y: Array) -> Array:
        """Apply the rule for negative values."""
        lowest = y.min(initial=0)
        if not lowest < 0:
            return y
        if self.negative == "clip":
            return np.maximum(y, 0)
        if self.negative == "offset":
            return y.astype(float) - float(lowest)
        raise PatternError(
            f"negative intensity at {int(np.count_nonzero(y < 0))} of {len(y)} points, the lowest "
            f"{lowest:.4g}; Preprocess(negative='clip') or 'offset' would use it"
        )

    def _kept(self, x: Array) -> Array:
        if self.roi is None:
            return np.ones(len(x), dtype=bool)
        kept: Array = (x >= self.roi[0]) & (x <= self.roi[1])
        return kept

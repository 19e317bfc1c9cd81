"""The record of what the model does not explain, and how it is told."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

__all__ = ["Alarm", "OnUnknown", "tell"]

Array = npt.NDArray[Any]

#: Most places that are named in words.
_NAMED = 3


@dataclass(frozen=True, eq=False)
class Alarm:
    """Something that no component explains stands out of the noise.

    Attributes
    ----------
    ranges : tuple of (float, float)
        Where on the axis, the strongest first; at most a handful.
    since : int
        Number of the pattern, from 1 on, since when, looking back.
    n_patterns : int
        Number of the pattern at which it was noticed.
    significance : float
        In standard deviations of a normal variable; every place, width and span of patterns that
        was looked at is accounted for.
    share : float
        Intensity that is left at the significant places, as a fraction of all, on average since
        then. What the fit has absorbed, and what hides in the noise, is not counted.
    from_first : bool
        Whether it was there in the first pattern that could be looked at. (What is read back from
        documents says so in `text`; the same holds for the next three.)
    or_before : bool
        Whether it may have begun before `since`: it is in all patterns that are looked back at.
    estimated : bool
        Whether the noise was estimated from the residual.
    n_places : int
        Number of separate places, those in `ranges` and more.
    since_seq_num : int
        ``seq_num`` of that pattern in its raw run; 0 where it is not known.
    text : str
        All of it in words.
    residual : ndarray (F,) or None
        Mean of what is left since then, its positive part: what a free component starts from.
    """

    ranges: tuple[tuple[float, float], ...]
    since: int
    n_patterns: int
    significance: float
    share: float
    from_first: bool = False
    or_before: bool = False
    estimated: bool = True
    n_places: int = 1
    since_seq_num: int = 0
    text: str = ""
    residual: Array | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return self.text


#: What becomes of an alarm: it is told, a component is added too, or somebody decides.
OnUnknown = Literal["warn", "add"] | Callable[[Alarm], object]


def tell(alarm: Alarm, *, axis: str, units: str, step: float, known: bool) -> str:
    """Put an alarm into words.

    Parameters
    ----------
    alarm : Alarm
        What was found.
    axis, units : str
        Name and unit of the axis.
    step : float
        Distance of its points: no more digits than it has.
    known : bool
        Whether some components are held.

    Examples
    --------
    >>> alarm = Alarm(((3.1, 3.2), (4.1, 4.25)), 31, 33, 8.31, 0.0192, n_places=7)
    >>> print(tell(alarm, axis="two_theta", units="deg", step=0.01, known=True))
    no component explains the intensity at two_theta 3.10-3.20, 4.10-4.25 deg and 5 more places \
since pattern 31: 1.9 % of all, 8.31 σ above the noise (estimated from the residual)
    """
    digits = max(0, int(np.ceil(-np.log10(step)))) if step > 0 else 3
    named = alarm.ranges[:_NAMED]
    places = ", ".join(f"{first:.{digits}f}-{last:.{digits}f}" for first, last in named)
    more = alarm.n_places - len(named)
    others = f" and {more} more place{'s' if more > 1 else ''}" if more > 0 else ""
    where = f"{axis} {places}{f' {units}' if units else ''}{others}"
    noise = " (estimated from the residual)" if alarm.estimated else ""
    size = f"{100 * alarm.share:.2g} % of all, {alarm.significance:.3g} σ above the noise{noise}"
    if alarm.from_first:
        what = "known phases do" if known else "components do"
        return f"from the first pattern on the {what} not fit within the noise at {where}: {size}"
    since = f"pattern {alarm.since}{' or before' if alarm.or_before else ''}"
    return f"no component explains the intensity at {where} since {since}: {size}"

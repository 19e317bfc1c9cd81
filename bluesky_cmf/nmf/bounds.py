"""Bounds of a strain, checked: without torch, for whoever only describes a phase."""

from typing import Any

from ..errors import InputError

__all__ = ["strain_bounds"]

#: A lattice that is stretched by more than this is another one.
_MOST = 0.5


def strain_bounds(argument: str, bounds: Any) -> tuple[float, float]:
    """Check the bounds of a strain.

    Raises
    ------
    InputError
        Where they are not two numbers between -0.5 and 0.5, the lower first.
    """
    try:
        low, high = (float(bound) for bound in bounds)
    except (TypeError, ValueError):
        low = high = float("nan")
    if not -_MOST <= low < high <= _MOST:
        raise InputError(
            f"{argument}: expected strains (lowest, highest) between -{_MOST:g} and {_MOST:g}, as "
            f"in (-0.01, 0.02), got {bounds!r}; a strain is relative: 1 % of expansion is 0.01"
        )
    return low, high

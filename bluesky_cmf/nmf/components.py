"""The components of a factorization: their names, which are held, their values (K, F)."""

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import torch

from ..errors import ComponentError, InputError
from .constraints import as_numbers, checked_flag
from .kernels import kernels_for

__all__ = ["Components", "as_patterns", "as_rows"]

Array = npt.ArrayLike | torch.Tensor

_LARGEST = 1e140


def as_patterns(
    values: Array, n_features: int, *, argument: str, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Check patterns and copy them.

    Parameters
    ----------
    values : array_like (F,) or (M, F)
        Patterns.
    n_features : int
        F.
    argument : str
        What the message calls them.
    dtype, device
        What the copy is made in.

    Returns
    -------
    Tensor (M, F)

    Raises
    ------
    InputError
        Where the shape is another one, or a value is negative or not finite.
    """
    if not isinstance(values, torch.Tensor):
        rows = as_rows(values, n_features, argument=argument, dtype=dtype)
        return torch.from_numpy(rows).to(device)
    if values.layout != torch.strided or values.device.type == "meta":
        kind = "a tensor without values" if values.device.type == "meta" else "a sparse tensor"
        raise InputError(f"{argument}: expected the numbers themselves, got {kind}")
    if values.is_complex():
        raise InputError(f"{argument}: expected real numbers, got {values.dtype}")
    patterns = values.detach().to(device=device, dtype=dtype, copy=True)
    patterns = patterns[None] if patterns.ndim == 1 else patterns
    _check_shape(patterns.shape, values.shape, n_features, argument)
    if patterns.numel():
        lowest, highest = patterns.aminmax()
        _check_range(float(lowest), float(highest), argument, dtype)
    return patterns


def as_rows(
    values: npt.ArrayLike, n_features: int, *, argument: str, dtype: torch.dtype
) -> npt.NDArray[Any]:
    """Check patterns and copy them, (M, F), as `as_patterns` does, without a word to torch.

    Where patterns come seldom, caches are cold, and each of its calls costs more than the check.
    """
    array = as_numbers(argument, values, dtype)
    rows = array[None] if array.ndim == 1 else array
    _check_shape(rows.shape, array.shape, n_features, argument)
    kernels = kernels_for(torch.device("cpu"))
    if rows.size and (kernels is None or not kernels.harmless(rows, _LARGEST)):
        _check_range(float(rows.min()), float(rows.max()), argument, dtype)
    return rows


def _check_shape(rows: Sequence[int], given: Sequence[int], n_features: int, argument: str) -> None:
    if len(rows) != 2 or rows[1] != n_features:
        raise InputError(
            f"{argument}: expected {n_features} points a pattern, (F,) or (M, F), "
            f"got shape {tuple(given)}"
        )


def _check_range(lowest: float, highest: float, argument: str, dtype: torch.dtype) -> None:
    # Squares are what is summed: beyond this they overflow. NaN fails any comparison.
    if not -_LARGEST <= lowest <= highest <= _LARGEST:
        raise InputError(
            f"{argument}: expected finite intensities up to {_LARGEST:g} that {dtype} can hold, "
            "got NaN, infinity or larger ones"
        )
    if lowest < 0:
        raise InputError(
            f"{argument}: expected non-negative intensities, got {lowest:.4g}; "
            "subtract less background, or clip or offset the pattern first"
        )


@dataclass
class Components:
    """K components with their names; the values are float64, (K, F).

    A component that holds nothing but zeros has no shape yet: it waits for a pattern that the
    others do not explain.
    """

    names: list[str]
    fixed: list[bool]
    H: torch.Tensor

    @classmethod
    def build(
        cls,
        n_features: int,
        n_components: int,
        *,
        names: Sequence[str | None] | None,
        components: Sequence[Any] | npt.NDArray[Any] | torch.Tensor | None,
        fixed: Sequence[bool],
        dtype: torch.dtype,
        device: torch.device,
    ) -> "Components":
        """Check and complete what the caller gave."""
        given = _listed("components", components)
        labels, fixed = _listed("names", names), _listed("fixed", fixed)
        for argument, values in (("components", given), ("fixed", fixed), ("names", labels)):
            if len(values) > n_components:
                raise InputError(
                    f"{argument}: expected at most n_components = {n_components}, got {len(values)}"
                )
        given_flags = [checked_flag(f"fixed[{k}]", flag) for k, flag in enumerate(fixed)]
        flags = [*given_flags, *[False] * (n_components - len(fixed))]
        H = torch.zeros(n_components, n_features, dtype=torch.float64, device=device)
        for k, values in enumerate(given):
            if values is not None:
                argument = f"components[{k}]"
                pattern = as_patterns(
                    values, n_features, argument=argument, dtype=dtype, device=device
                )
                H[k] = _single(pattern, argument)
        for k, flag in enumerate(flags):
            if flag and (k >= len(given) or given[k] is None):
                raise InputError(f"fixed[{k}] is True but components[{k}] gives no pattern to hold")
        return cls(_complete(labels, n_components), flags, H)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def free(self) -> list[int]:
        """Numbers of the components that may change."""
        return [k for k, held in enumerate(self.fixed) if not held]

    def index(self, name: str) -> int:
        """Look a component up by name."""
        if self.names.count(name) != 1:
            raise ComponentError(f"name: expected one of {self.names}, got {name!r}")
        return self.names.index(name)

    def new_name(self, name: str | None) -> str:
        """Check the name of a component to be added, or give it the next free number."""
        if name is None:
            return next(_unknown(self.names))
        if not isinstance(name, str) or not name:
            raise InputError(f"name: expected a name for the component, got {name!r}")
        if name in self.names:
            raise ComponentError(f"name: {name!r} is taken; the components are {self.names}")
        return name

    def pin(self, k: int, pattern: torch.Tensor | None) -> None:
        """Hold a component at a pattern (F,), or where it stands."""
        if pattern is None and not bool(self.H[k].any()):
            raise InputError(
                f"pattern: component {self.names[k]!r} has no shape yet; give the pattern to hold"
            )
        self.fixed[k] = True
        if pattern is not None:
            self.replace(k, pattern)

    def replace(self, k: int, pattern: torch.Tensor) -> None:
        """Give a component other values; earlier views of H stay as they are."""
        self.H = self.H.clone()
        self.H[k] = pattern

    def add(self, name: str, pattern: torch.Tensor | None, *, fixed: bool) -> None:
        """Append a component."""
        self.H = torch.cat([self.H, self.H.new_zeros(1, self.H.shape[1])])
        self.names.append(name)
        self.fixed.append(fixed)
        if pattern is not None:
            self.replace(len(self) - 1, pattern)

    def remove(self, k: int) -> None:
        """Take a component out."""
        del self.names[k], self.fixed[k]
        self.H = torch.cat([self.H[:k], self.H[k + 1 :]])


def _listed(argument: str, values: Any) -> list[Any]:
    if isinstance(values, str) or not (values is None or hasattr(values, "__iter__")):
        raise InputError(f"{argument}: expected a sequence, got {values!r}")
    return [] if values is None else list(values)


def _single(patterns: torch.Tensor, argument: str) -> torch.Tensor:
    if len(patterns) != 1:
        raise InputError(f"{argument}: expected one pattern, got {len(patterns)}")
    return patterns[0]


def _complete(labels: Sequence[str | None], n_components: int) -> list[str]:
    chosen = [*labels, *[None] * (n_components - len(labels))]
    taken = [label for label in chosen if label is not None]
    if not all(isinstance(label, str) and label for label in taken):
        raise InputError(f"names: expected names or None, got {labels!r}")
    if len(set(taken)) < len(taken):
        raise InputError(f"names: expected names that differ, got {taken}")
    unknown = _unknown(taken)
    return [next(unknown) if label is None else str(label) for label in chosen]


def _unknown(taken: Sequence[str]) -> Iterator[str]:
    names = (f"unknown {number}" for number in itertools.count(1))
    return (name for name in names if name not in set(taken))

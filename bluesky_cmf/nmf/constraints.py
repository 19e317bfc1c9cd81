"""What a caller asks of a factorization, checked: shapes, initial tensors, flags and data."""

import math
import operator
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from bluesky_cmf.errors import InputError

__all__ = [
    "Array",
    "Entries",
    "Flags",
    "as_numbers",
    "as_tensor",
    "checked_count",
    "checked_flag",
    "checked_number",
    "checked_seconds",
    "checked_shape",
    "component_count",
    "constrained",
    "draw",
    "listed",
    "placement",
    "seeded",
]

Array = Tensor | npt.ArrayLike
Entries = Iterable[Array | None] | None
Flags = Iterable[bool | None] | None


def checked_shape(name: str, shape: Sequence[int], meaning: str) -> tuple[int, ...]:
    """Return a shape as positive integers, as many as `meaning` names."""
    try:
        sizes = tuple(operator.index(size) for size in shape)
    except TypeError:
        sizes = ()
    named = [word for word in meaning.split(", ") if word != "..."]
    right_length = len(sizes) >= len(named) if "..." in meaning else len(sizes) == len(named)
    if not right_length or min(sizes) < 1:
        got = f"an array of shape {tuple(shape.shape)}" if hasattr(shape, "shape") else repr(shape)
        raise InputError(f"{name}: expected positive integers ({meaning}), got {got}")
    return sizes


def checked_count(name: str, value: int, *, least: int = 1, most: float = math.inf) -> int:
    """Return a whole number within its limits."""
    try:
        count = operator.index(value)
    except TypeError:
        count = least - 1
    if not least <= count <= most:
        limit = "" if most == math.inf else f" and at most {most}"
        raise InputError(f"{name}: expected an integer of at least {least}{limit}, got {value!r}")
    return count


def checked_number(name: str, value: float, *, most: float = math.inf) -> float:
    """Return a finite number from 0 to `most`."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not (0 <= number <= most and math.isfinite(number)):
        limit = "" if most == math.inf else f" and at most {most}"
        raise InputError(f"{name}: expected a number of at least 0{limit}, got {value!r}")
    return number


def checked_seconds(name: str, value: float) -> float:
    """Return a number of seconds, perhaps without end."""
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan
    if not seconds >= 0:
        raise InputError(f"{name}: expected seconds, at least 0, got {value!r}")
    return seconds


def checked_flag(name: str, value: Any) -> bool:
    """Return a flag; None is False. Text and NaN would count as True."""
    if not (np.ndim(value) == 0 and value in (True, False, None)):
        raise InputError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def component_count(n_components: int | None, entries: list[Any], flags: list[Any]) -> int:
    """Return the number of components that is given, or implied by the constraints."""
    if n_components is not None:
        return checked_count("n_components", n_components)
    if not entries and not flags:
        raise InputError(
            "n_components: expected a number, for there are neither initial_components nor "
            "fix_components to imply it"
        )
    return max(len(entries), len(flags))


def listed(name: str, entries: Iterable[Any] | None) -> list[Any]:
    """Return the entries as a list of its own, empty for None."""
    try:
        return [] if entries is None else list(entries)
    except TypeError as error:
        raise InputError(f"{name}: expected a list, got {entries!r}") from error


def placement(
    entries: list[Any], device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """Choose where and how the factors are held: as asked, else as the initial tensors are."""
    if dtype not in (None, torch.float32, torch.float64):
        raise InputError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")
    given = [entry for entry in entries if entry is not None]
    if dtype is None:
        doubles = [_is_double(entry) for entry in given]
        wide = any(doubles) if doubles else torch.get_default_dtype() == torch.float64
        dtype = torch.float64 if wide else torch.float32
    if device is None:
        held = [entry.device for entry in given if isinstance(entry, Tensor)]
        device = held[0] if held else torch.get_default_device()
    try:
        return torch.empty(0, device=device).device, dtype
    except (RuntimeError, AssertionError, TypeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"device: expected one that torch reaches, such as 'cpu', got {device!r} ({reason})"
        ) from error


def _is_double(entry: Any) -> bool:
    if isinstance(entry, Tensor):
        return entry.dtype == torch.float64
    return isinstance(entry, np.ndarray) and entry.dtype.kind == "f" and entry.dtype.itemsize >= 8


def seeded(seed: int | torch.Generator | None) -> torch.Generator | None:
    """Return the generator for a seed; None stands for torch's global one."""
    if seed is None or isinstance(seed, torch.Generator):
        return seed
    try:
        return torch.Generator().manual_seed(operator.index(seed))
    except (TypeError, RuntimeError) as error:
        raise InputError(
            f"seed: expected an integer, a torch.Generator or None, got {seed!r}"
        ) from error


def draw(shape: tuple[int, ...], dtype: torch.dtype, generator: torch.Generator | None) -> Tensor:
    """Return a random factor in (0, 1], the same on every device."""
    device = torch.device("cpu") if generator is None else generator.device
    # 1 - [0, 1) leaves zero out, which multiplicative updates could not leave again.
    return 1 - torch.rand(shape, dtype=dtype, device=device, generator=generator)


def constrained(
    factor: Tensor, what: str, initials: list[Any], flags: Flags
) -> tuple[Tensor, Tensor]:
    """Lay initial tensors over a random factor; return it with the mask of what is held."""
    flags = listed(f"fix_{what}", flags)
    tensors = [
        None
        if initial is None
        else as_tensor(f"initial_{what}[{i}]", initial, factor.dtype, factor.device)
        for i, initial in enumerate(initials)
    ]
    axis = 0 if what == "components" else _weights_axis(tensors, len(flags), factor.shape)
    count, shape = factor.shape[axis], factor.select(axis, 0).shape
    of = "m_examples" if what == "weights" and axis == 0 else "n_components"
    for name, entries in ((f"initial_{what}", tensors), (f"fix_{what}", flags)):
        if len(entries) > count:
            raise InputError(f"{name}: expected at most {count} entries ({of}), got {len(entries)}")
    for i, tensor in enumerate(tensors):
        if tensor is None:
            continue
        if _without_leading_one(tensor, len(shape)) != shape:
            raise InputError(
                f"initial_{what}[{i}]: expected shape {(1, *shape)}, got {tuple(tensor.shape)}"
            )
        factor.select(axis, i).copy_(tensor.reshape(shape))
    for i, flag in enumerate(flags):
        if flag not in (True, False, None):
            raise InputError(f"fix_{what}[{i}]: expected True, False or None, got {flag!r}")
    held = torch.zeros(count, dtype=torch.bool)
    held[: len(flags)] = torch.tensor([bool(flag) for flag in flags], dtype=torch.bool)
    mask_shape = [count if i == axis else 1 for i in range(factor.ndim)]
    return factor, held.reshape(mask_shape).to(factor.device)


def _weights_axis(tensors: list[Tensor | None], n_flags: int, W_shape: Sequence[int]) -> int:
    """Return 0 where the constraints on the weights are per example, 1 where per component."""
    m_examples, n_components, *rest = W_shape
    for i, tensor in enumerate(tensors):
        if tensor is None:
            continue
        shape = _without_leading_one(tensor, 1 + len(rest))
        if shape == (n_components, *rest):
            return 0
        if shape == (m_examples, *rest):
            return 1
        raise InputError(
            f"initial_weights[{i}]: expected shape {(1, m_examples, *rest)}, one per component, or "
            f"{(1, n_components, *rest)}, one per example, got {tuple(tensor.shape)}"
        )
    return 1 if max(n_flags, len(tensors)) <= n_components != m_examples else 0


def _without_leading_one(tensor: Tensor, ndim: int) -> tuple[int, ...]:
    shape = tuple(tensor.shape)
    return shape[1:] if len(shape) == ndim + 1 and shape[0] == 1 else shape


def as_tensor(name: str, value: Array, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return values as a checked tensor; it may share the memory of `value`."""
    if isinstance(value, Tensor):
        if value.is_complex():
            raise InputError(f"{name}: expected real numbers, got {value.dtype}")
        tensor = value.detach().to(device=device, dtype=dtype)
    else:
        tensor = torch.from_numpy(as_numbers(name, value, dtype)).to(device)
    for wrong, expected, remedy in (
        (~tensor.isfinite(), "finite", "replace or leave out what is not measured"),
        (tensor < 0, "non-negative", "clip it at 0, or subtract less background"),
    ):
        if bool(wrong.any()):
            first = tuple(wrong.nonzero()[0].tolist())
            raise InputError(
                f"{name}: expected {expected} values, got {int(wrong.sum())} that are not, the "
                f"first {float(tensor[first])} at index {first}; {remedy}"
            )
    return tensor


def as_numbers(name: str, value: npt.ArrayLike, dtype: torch.dtype) -> npt.NDArray[Any]:
    """Copy real numbers into an array of float32 or float64 that torch takes."""
    try:
        if isinstance(value, np.ma.MaskedArray) and value.mask.any():
            raise TypeError("a masked array, and values under its mask are none; fill them first")
        array = np.asarray(value)
        if array.dtype.kind not in "biuf":
            raise TypeError(f"numbers of dtype {array.dtype} and shape {array.shape}")
        target = np.float64 if dtype == torch.float64 else np.float32
        # A copy in native byte order: torch takes no other, and warns of read-only memory.
        if array.dtype == target:
            return np.array(array, dtype=target, order="C")
        with np.errstate(over="ignore", under="ignore"):
            return np.array(array, dtype=target, order="C")
    except (TypeError, ValueError) as error:
        raise InputError(f"{name}: expected real numbers in a tensor or array ({error})") from error

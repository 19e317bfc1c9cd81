"""The columns of a stream in Tiled: an array that grows, or a column of a table."""

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import httpx
import numpy as np
import pyarrow  # type: ignore[import-untyped]
from bluesky_tiled_plugins.utils import truncate_json_overflow

from .patience import existing_or_new, patiently

__all__ = ["ROW_SHAPES", "STAND_INS", "ArrayColumn", "ScalarColumn"]

#: The entry of a stream's metadata that holds the true shapes of rows that had to be padded.
ROW_SHAPES = "_row_shapes"
#: Seconds of internal errors after which a node that could not be made is not tried further.
_UNMADE = 5.0
#: The entry that holds the names of nodes that could not have the names of their data keys.
STAND_INS = "_stand_ins"
#: Characters reserved for each string where a column of strings cannot be in the table.
_STRING_WIDTH = 256


class ScalarColumn:
    """A data key, or the times of one, that is a column of a table.

    Parameters
    ----------
    name
        The column's name.
    values
        The first values, which settle the type of the column.
    declared
        What the descriptor says of the data key.
    note
        Is told, in words, of values that do not have this type.
    settled
        The type of a column that is there already.
    """

    def __init__(
        self,
        name: str,
        values: Iterable[Any],
        declared: Mapping[str, Any],
        note: Callable[[str], None],
        *,
        settled: Any = None,
    ) -> None:
        #: The type of the column, a `pyarrow.DataType`.
        self.type: Any = _column_type(values, declared) if settled is None else settled
        self._name = name
        self._note = note

    def arrow(self, values: Iterable[Any]) -> Any:
        """Give values as an array of the column's type."""
        return pyarrow.array([self._fitted(value) for value in values], self.type)

    def _fitted(self, value: Any) -> Any:
        value = _python_scalar(value)
        missing = math.nan if self.type == pyarrow.float64() else None
        if value is None:
            return missing
        if self.type == pyarrow.string():
            return value if isinstance(value, str) else json.dumps(value, default=str)
        try:
            fitted = _PYTHON_TYPES[self.type](value)
            differs = fitted != value and value == value
        except (TypeError, ValueError, OverflowError):
            fitted, differs = missing, True
        if differs:
            self._note(
                f"Values of the data key {self._name!r} are not {self.type} throughout; those "
                "that are not were converted, or left out."
            )
        return fitted


class ArrayColumn:
    """A data key whose rows are one array on the server that grows with them.

    Rows of another shape are padded, with NaN or 0, and `row_shapes` tells what they were.

    Parameters
    ----------
    name
        The node's name.
    declared
        What the descriptor says of the data key.
    note
        Is told, in words, of rows that do not have the same shape or type as the others.
    """

    def __init__(self, name: str, declared: Mapping[str, Any], note: Callable[[str], None]) -> None:
        self.node: Any = None
        #: The name of the node, that of the data key unless the server cannot make it.
        self.key = name
        self.changed = False
        self._name = name
        self._declared = declared
        self._note = note
        self._n_rows = 0
        self._dtype = np.dtype(float)
        self._shape: tuple[int, ...] = ()
        #: Row numbers from which on the rows have another shape.
        self._shapes: list[tuple[int, tuple[int, ...]]] = []

    def resume(self, node: Any, n_rows: int, shapes: Iterable[Sequence[Any]]) -> None:
        """Go on with an array that another process has begun.

        Parameters
        ----------
        node
            Its node, which may hold more rows: they are written again.
        n_rows
            How many rows are known to be whole.
        shapes
            As `row_shapes` gave them for these rows.
        """
        self.node = node
        self._dtype, self._shape = np.dtype(node.dtype), tuple(node.shape[1:])
        self._n_rows = n_rows
        self._shapes = [(row, tuple(shape)) for row, shape in shapes]

    def write(self, parent: Any, values: Sequence[Any], access_tags: Any) -> None:
        """Append rows, and make the node with the first; where it raises, it may be done again."""
        arrays = [_numeric_or_text(value) for value in values]
        if self.node is None:
            self._dtype = _common_dtype(arrays, self._declared.get("dtype_numpy"))
            self._shape = _hull([a.shape for a in arrays], max(a.ndim for a in arrays))
        arrays = [self._same_ndim(array) for array in arrays]
        self._widen(_hull([self._shape, *(array.shape for array in arrays)], len(self._shape)))
        block = self._padded(arrays)
        if self.node is None:
            self.node = self._made(parent, block, access_tags)
        else:
            self.node.patch(block, offset=(self._n_rows,), extend=True)
        self._remember([array.shape for array in arrays])
        self._n_rows += len(block)

    def row_shapes(self) -> list[tuple[int, list[int]]]:
        """Give the first row and the shape of each stretch of rows of one shape."""
        self.changed = False
        return [(row, list(shape)) for row, shape in self._shapes]

    def shapes(self, n_rows: int) -> list[list[Any]]:
        """Give what `resume` needs to go on after so many rows."""
        return [[row, list(shape)] for row, shape in self._shapes if row < n_rows]

    def _made(self, parent: Any, block: np.ndarray, access_tags: Any) -> Any:
        def made(key: str) -> Any:
            return parent.write_array(
                block,
                key=key,
                metadata=truncate_json_overflow({**self._declared, "dtype_numpy": block.dtype.str}),
                dims=("time", *(f"dim_{self._name}_{axis}" for axis in range(1, block.ndim))),
                access_tags=access_tags,
            )

        try:
            node, existed = existing_or_new(
                parent, self.key, lambda: made(self.key), refused_after=_UNMADE
            )
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
                raise
            # A server that was killed between making the file and making the node can never make
            # a node of this name again.
            self.key = f"{self._name}_"
            node, existed = existing_or_new(parent, self.key, lambda: made(self.key))
        if existed:
            patiently(lambda: node.patch(block, offset=(0,), extend=True), proven=True)
        return node

    def _same_ndim(self, array: np.ndarray) -> np.ndarray:
        ndim = len(self._shape)
        if array.ndim == ndim:
            return array
        self._note(f"The data key {self._name!r} changes its number of dimensions; it is reshaped.")
        if array.ndim < ndim:
            return array.reshape((1,) * (ndim - array.ndim) + array.shape)
        shape = (-1, *array.shape[array.ndim - ndim + 1 :]) if ndim else (-1,)
        return array.reshape(shape) if ndim else array.reshape(shape)[:1].reshape(())

    def _remember(self, shapes: Iterable[tuple[int, ...]]) -> None:
        for row, shape in enumerate(shapes, start=self._n_rows):
            if not self._shapes or self._shapes[-1][1] != shape:
                self._shapes.append((row, shape))
                self.changed |= len(self._shapes) > 1 or shape != self._shape
        if self.changed:
            self._note(
                f"Arrays of the data key {self._name!r} change their shape; they are padded to "
                f"the largest and the true shapes stand in the stream's metadata ({ROW_SHAPES})."
            )

    def _widen(self, shape: tuple[int, ...]) -> None:
        """Make room for larger rows; the server fills with 0 what has to be padded."""
        for axis, (old, new) in enumerate(zip(self._shape, shape, strict=True)):
            if self.node is not None and new > old:
                block = (self._n_rows, *shape[:axis], new - old, *self._shape[axis + 1 :])
                offset = (0,) * (axis + 1) + (old,)
                self.node.patch(np.full(block, self._fill, self._dtype), offset, extend=True)
        self._shape = shape

    def _padded(self, arrays: Sequence[np.ndarray]) -> np.ndarray:
        block = np.full((len(arrays), *self._shape), self._fill, self._dtype)
        for row, array in enumerate(arrays):
            if not np.can_cast(array.dtype, self._dtype, "safe"):
                self._note(
                    f"The data key {self._name!r} changes its type from {self._dtype} to "
                    f"{array.dtype}; values are converted."
                )
            where: Any = (row, *(slice(size) for size in array.shape))
            block[where] = array
        return block

    @property
    def _fill(self) -> Any:
        return {"f": np.nan, "c": np.nan, "U": "", "S": b""}.get(self._dtype.kind, 0)


def _column_type(values: Iterable[Any], declared: Mapping[str, Any]) -> pyarrow.DataType:
    kinds = {type(value) for value in map(_python_scalar, values) if value is not None}
    if kinds == {bool}:
        return pyarrow.bool_()
    if kinds == {int} and declared.get("dtype", "integer") == "integer":
        return pyarrow.int64()
    if kinds and kinds <= {bool, int, float}:
        return pyarrow.float64()
    if not kinds and declared.get("dtype", "number") in ("number", "integer"):
        return pyarrow.float64()
    return pyarrow.string()


#: What makes a value fit a column.
_PYTHON_TYPES: dict[pyarrow.DataType, Callable[[Any], Any]] = {
    pyarrow.bool_(): bool,
    pyarrow.int64(): lambda value: min(max(int(value), -(2**63)), 2**63 - 1),
    pyarrow.float64(): float,
}


def _python_scalar(value: Any) -> Any:
    return (
        value.item() if isinstance(value, (np.generic, np.ndarray)) and value.ndim == 0 else value
    )


def _numeric_or_text(value: Any) -> np.ndarray:
    if value is None:
        return np.asarray(np.nan)
    array = np.asarray(value)
    return array.astype(str) if array.dtype.kind == "O" else array


def _common_dtype(arrays: Sequence[np.ndarray], declared: Any) -> np.dtype[Any]:
    dtype = np.result_type(*{array.dtype for array in arrays})
    if dtype.kind == "U":
        return np.dtype(f"<U{max(_STRING_WIDTH, dtype.itemsize // 4)}")
    if isinstance(declared, str) and np.can_cast(dtype, np.dtype(declared), "safe"):
        return np.dtype(declared)
    return dtype


def _hull(shapes: Sequence[tuple[int, ...]], ndim: int) -> tuple[int, ...]:
    """Give the smallest shape that holds all; Zarr cannot store an axis of length 0."""
    fitting = [shape for shape in shapes if len(shape) == ndim]
    return tuple(max(1, *sizes) for sizes in zip(*fitting, strict=True))

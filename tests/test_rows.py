import numpy as np
import pytest
import torch

from bluesky_cmf.nmf import rows as module
from bluesky_cmf.nmf.rows import Rows

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BLOCK_ROWS", 4)
    monkeypatch.setattr(module, "_PAGE_BLOCKS", 2)


def filled(n: int) -> tuple[Rows, np.ndarray]:
    values = np.arange(2.0 * n).reshape(n, 2)
    rows = Rows(2, device=CPU)
    rows.replace(torch.tensor(values))
    return rows, values


@pytest.mark.parametrize("n", [0, 1, 4, 5, 11])
def test_rows_come_back_as_they_were_put(n: int) -> None:
    rows, values = filled(n)

    assert len(rows) == n
    np.testing.assert_array_equal(rows.tensor(), values)
    for start, stop in [(0, n), (n // 2, n), (n // 3, n // 2), (n, n)]:
        np.testing.assert_array_equal(rows.tensor(start, stop), values[start:stop])


def test_rows_that_are_appended_are_zero_until_they_are_written() -> None:
    rows, values = filled(3)
    rows.extend(4)
    assert list(rows.spans(3, 7)) == [(3, 4), (4, 7)]
    rows.write(4, torch.full((3, 2), 5.0, dtype=torch.float64))

    np.testing.assert_array_equal(rows.tensor(0, 3), values)
    assert rows.tensor(3, 7).tolist() == [[0, 0], [5, 5], [5, 5], [5, 5]]


@pytest.mark.parametrize("access", ["view", "array"])
def test_a_snapshot_stays_as_it_was_whatever_is_changed_and_appended(access: str) -> None:
    rows, values = filled(7)
    frozen = rows.frozen()

    getattr(rows, access)(1, 3)[:] = -1.0
    getattr(rows, access)(5, 7)[:] = -1.0
    rows.extend(5)
    getattr(rows, access)(7, 8)[:] = -2.0

    np.testing.assert_array_equal(frozen.tensor(), values)
    assert (rows.tensor()[[1, 2, 5, 6]] == -1.0).all()
    assert (rows.tensor()[7] == -2.0).all()


def test_a_block_that_no_snapshot_holds_is_changed_where_it_is() -> None:
    rows, _ = filled(8)
    address = rows.view(0, 4).data_ptr()
    assert rows.view(0, 4).data_ptr() == address

    rows.frozen()
    moved = rows.view(0, 4).data_ptr()

    assert moved != address
    assert rows.view(0, 4).data_ptr() == moved


def test_other_rows_may_be_wider() -> None:
    rows, _ = filled(3)
    rows.replace(torch.ones(5, 3, dtype=torch.float64))

    assert rows.tensor().shape == (5, 3)

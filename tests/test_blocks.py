import numpy as np
import pytest
import torch

from bluesky_cmf.nmf import blocks as module
from bluesky_cmf.nmf.blocks import Blocks

CPU = torch.device("cpu")
F = 7


def patterns(n: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((n, F)).astype(np.float32)


def filled(rows: np.ndarray, *, step: int, dtype: torch.dtype = torch.float32) -> Blocks:
    X = Blocks(F, dtype=dtype, device=CPU)
    for first in range(0, len(rows), step):
        X.append(torch.tensor(rows[first : first + step]).to(dtype))
    return X


def gathered(X: Blocks, start: int = 0, stop: int | None = None) -> np.ndarray:
    parts = [rows.numpy() for _, rows in X.chunks(start, stop)]
    return np.concatenate([np.empty((0, F)), *parts])


@pytest.fixture(params=["one block", "several blocks"])
def however_large(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks end where blocks end, and where they have their size."""
    if request.param != "one block":
        monkeypatch.setattr(module, "_FIRST_ROWS", 64)
        monkeypatch.setattr(module, "_CHUNK_BYTES", 8 * F * 5)


@pytest.mark.usefixtures("however_large")
@pytest.mark.parametrize("step", [1, 3, 64, 65, 500])
def test_rows_come_back_in_order_however_they_were_appended(step: int) -> None:
    rows = patterns(200)

    X = filled(rows, step=step)

    assert len(X) == 200
    assert np.array_equal(gathered(X), rows)
    assert np.array_equal(X.stored().numpy(), rows)
    assert X.stored().dtype == torch.float32


@pytest.mark.usefixtures("however_large")
@pytest.mark.parametrize(
    ("start", "stop"), [(0, 0), (0, 64), (63, 65), (5, 150), (70, 71), (150, 150)]
)
def test_a_slice_of_rows_is_the_slice_that_was_asked_for(start: int, stop: int) -> None:
    rows = patterns(150)

    assert np.array_equal(gathered(filled(rows, step=20), start, stop), rows[start:stop])


@pytest.mark.usefixtures("however_large")
@pytest.mark.parametrize("taken", [[], [0], [149], [3, 63, 64, 65, 128, 149], list(range(150))])
def test_rows_are_taken_by_their_numbers(taken: list[int]) -> None:
    rows = patterns(150)
    X = filled(rows, step=20)

    found = X.take(torch.tensor(taken, dtype=torch.long))

    assert found.dtype == torch.float32
    assert np.array_equal(found.numpy(), rows[taken])


@pytest.mark.usefixtures("however_large")
def test_norms_are_those_of_the_rows() -> None:
    rows = patterns(150)
    X = filled(rows, step=20)
    expected = (rows.astype(float) ** 2).sum(1)

    np.testing.assert_allclose(X.norms.numpy(), expected, rtol=1e-13)
    assert X.squared_norm(60, 130) == pytest.approx(expected[60:130].sum(), rel=1e-13)
    assert X.half_norm == pytest.approx(0.5 * expected.sum(), rel=1e-13)


@pytest.mark.usefixtures("however_large")
def test_a_slice_ends_where_the_rows_end() -> None:
    rows = patterns(10)

    assert np.array_equal(gathered(filled(rows, step=10), 4, 1000), rows[4:])


@pytest.mark.usefixtures("however_large")
def test_each_chunk_says_which_row_is_its_first() -> None:
    rows = patterns(150)

    for first, chunk in filled(rows, step=40).chunks(3, 140):
        assert np.array_equal(chunk.numpy(), rows[first : first + len(chunk)])


@pytest.mark.usefixtures("however_large")
def test_products_are_those_of_the_whole_matrix_in_float64() -> None:
    rows = patterns(150)
    X = filled(rows, step=50)
    rng = np.random.default_rng(1)
    H, W = rng.random((3, F)), rng.random((150, 3))
    exact = rows.astype(float)

    np.testing.assert_allclose(X.times(torch.tensor(H)).numpy(), exact @ H.T, rtol=1e-14)
    np.testing.assert_allclose(
        X.times(torch.tensor(H), 60, 70).numpy(), exact[60:70] @ H.T, rtol=1e-14
    )
    np.testing.assert_allclose(X.transposed_times(torch.tensor(W)).numpy(), W.T @ exact, rtol=1e-13)
    assert np.array_equal(X.row(149).numpy(), rows[149])


@pytest.mark.usefixtures("however_large")
def test_a_product_with_no_rows_has_no_rows() -> None:
    X = filled(patterns(5), step=5)

    assert X.times(torch.ones(3, F, dtype=torch.float64), 5).shape == (0, 3)


@pytest.mark.usefixtures("however_large")
def test_rows_appended_after_a_product_take_part_in_the_next() -> None:
    rows = patterns(130)
    X = filled(rows[:10], step=10)
    H = torch.ones(1, F, dtype=torch.float64)
    X.times(H)

    X.append(torch.tensor(rows[10:]))

    np.testing.assert_allclose(X.times(H)[:, 0].numpy(), rows.astype(float).sum(1), rtol=1e-14)


def test_blocks_are_never_moved_by_what_comes_later(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_FIRST_ROWS", 64)
    rows = patterns(1000)
    X = filled(rows[:64], step=64, dtype=torch.float64)
    (_, early), *_ = X.pieces()
    address = early.data_ptr()

    X.append(torch.tensor(rows[64:]).to(torch.float64))

    assert X._blocks[0].data_ptr() == address
    assert np.array_equal(early.numpy(), rows[:64])


def test_all_rows_are_given_at_once_only_where_one_block_holds_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_FIRST_ROWS", 64)
    X = filled(patterns(64), step=10)
    fused = X.fused()
    assert fused is not None
    assert np.array_equal(fused[0].numpy(), patterns(64))

    X.append(torch.ones(1, F))

    assert X.fused() is None


def test_half_the_squared_norm_is_that_of_the_rows_so_far() -> None:
    X = filled(patterns(10), step=10)
    for n in (0, 5):
        X.append(torch.tensor(patterns(n)))
        rows = X.stored().numpy().astype(float)
        assert float(X.half_norm) == pytest.approx(0.5 * (rows**2).sum(), rel=1e-12)


def test_a_block_takes_no_more_bytes_than_its_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_BYTES", 4 * F * 130)

    X = filled(patterns(1000), step=33)

    assert max(len(block) for block in X._blocks) == 128
    assert np.array_equal(X.stored().numpy(), patterns(1000))


def test_float64_rows_are_kept_to_the_bit() -> None:
    rows = np.random.default_rng(3).random((70, F))

    assert np.array_equal(gathered(filled(rows, step=9, dtype=torch.float64)), rows)


def test_a_row_that_is_not_there_is_an_index_error() -> None:
    with pytest.raises(IndexError):
        filled(patterns(3), step=3).row(3)

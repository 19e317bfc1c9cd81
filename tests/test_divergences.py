import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bluesky_cmf.errors import InputError
from bluesky_cmf.nmf.divergences import beta_divergence, r_factor


def summed(x: np.ndarray, y: np.ndarray, beta: float) -> float:
    """The definition, element by element."""
    total = 0.0
    for a, b in zip(x.ravel().tolist(), y.ravel().tolist(), strict=True):
        if beta == 0:
            total += a / b - math.log(a / b) - 1
        elif beta == 1:
            total += a * math.log(a / b) - a + b
        else:
            mixed = a**beta + (beta - 1) * b**beta - beta * a * b ** (beta - 1)
            total += mixed / (beta * (beta - 1))
    return total


def positive(shape: tuple[int, ...], seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return 0.1 + torch.rand(shape, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("beta", [-2, -0.5, 0, 0.5, 1, 1.5, 2, 3, 7.25])
def test_the_divergence_is_the_sum_of_its_definition(beta: float) -> None:
    x, y = positive((5, 7), 1), positive((5, 7), 2)

    assert float(beta_divergence(x, y, beta)) == pytest.approx(
        summed(x.numpy(), y.numpy(), beta), rel=1e-12
    )


def test_beta_two_is_half_the_squared_frobenius_norm_also_of_negative_values() -> None:
    x, y = torch.tensor([[-1.0, 2.0]]), torch.tensor([[1.0, -1.0]])

    assert float(beta_divergence(x, y, 2)) == 6.5


@pytest.mark.parametrize("limit", [0, 1])
@pytest.mark.parametrize("step", [-1e-5, -1e-9, 1e-12, 1e-5])
def test_the_divergence_is_continuous_where_its_formula_has_a_pole(
    limit: float, step: float
) -> None:
    x, y = positive((5, 7), 1), positive((5, 7), 2)

    near = float(beta_divergence(x, y, limit + step))

    assert near == pytest.approx(float(beta_divergence(x, y, limit)), rel=1e-4)


@given(
    beta=st.floats(-4, 6),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
@settings(max_examples=80, deadline=None)
def test_zeros_anywhere_give_a_finite_divergence_that_is_not_negative(
    beta: float, seed: int, dtype: torch.dtype
) -> None:
    x, y = positive((4, 6), seed).to(dtype), positive((4, 6), seed + 1).to(dtype)
    x[:2, :3] = 0
    y[1:3, 2:] = 0

    value = float(beta_divergence(x, y, beta))

    assert math.isfinite(value)
    assert value >= 0


@pytest.mark.parametrize("beta", [-1, 0, 0.5, 1, 1.5, 2, 3])
def test_equal_arguments_have_no_divergence_even_where_both_are_zero(beta: float) -> None:
    x = torch.tensor([[0.0, 1.0, 2.5], [0.0, 0.0, 0.0]])

    assert float(beta_divergence(x, x.clone(), beta)) == 0
    assert float(beta_divergence(torch.zeros(2, 2), torch.zeros(2, 2), beta)) == 0


@pytest.mark.parametrize("beta", [-1, 0, 0.5, 1, 1.5, 2, 3])
def test_a_change_of_units_scales_the_divergence_and_keeps_what_a_zero_costs(beta: float) -> None:
    x = torch.tensor([[0.0, 1.0, 2.0, 0.0]], dtype=torch.float64)
    y = torch.tensor([[1.0, 0.0, 1.0, 0.0]], dtype=torch.float64)

    scaled = float(beta_divergence(1e4 * x, 1e4 * y, beta))

    assert scaled == pytest.approx(1e4**beta * float(beta_divergence(x, y, beta)), rel=1e-9)


@pytest.mark.parametrize("beta", [math.nan, math.inf, "frobenius", None])
def test_a_beta_that_is_no_finite_number_is_refused(beta: object) -> None:
    with pytest.raises(InputError, match="beta: expected a finite number, such as 0, 1 or 2"):
        beta_divergence(torch.ones(2, 2), torch.ones(2, 2), beta)  # type: ignore[arg-type]


def test_shapes_that_would_broadcast_are_refused() -> None:
    with pytest.raises(InputError, match=r"reconstruction: expected the shape of target, \(2, 3\)"):
        beta_divergence(torch.ones(2, 3), torch.ones(1, 3), 2)
    with pytest.raises(InputError, match=r"reconstruction: expected the shape of X, \(2, 3\), got"):
        r_factor(torch.ones(2, 3), torch.ones(3))


def test_the_r_factor_is_the_residual_relative_to_the_pattern() -> None:
    X = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
    reconstruction = torch.tensor([[3.0, 3.0], [0.0, 2.0]])

    assert r_factor(X, reconstruction).tolist() == pytest.approx([0.2, 0.0])
    assert r_factor(X[0], reconstruction[0]).tolist() == pytest.approx(0.2)


def test_the_r_factor_of_a_dark_pattern_is_zero_only_where_nothing_was_reconstructed() -> None:
    reconstruction = torch.tensor([[0.0, 0.0], [0.0, 1.0]])

    assert r_factor(torch.zeros(2, 2), reconstruction).tolist() == [0.0, math.inf]


def test_the_r_factor_of_an_undefined_pattern_is_undefined() -> None:
    assert r_factor(torch.tensor([[math.nan, 1.0]]), torch.ones(1, 2)).isnan().all()


def test_the_r_factor_outlives_squares_that_float32_cannot_hold() -> None:
    X = torch.tensor([[3e30, 4e30], [3e-30, 4e-30]])

    assert r_factor(X, 0.5 * X).tolist() == pytest.approx([0.5, 0.5])

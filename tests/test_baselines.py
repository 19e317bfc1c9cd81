"""Backgrounds are pybaselines' own, by name."""

import inspect
import json
from typing import Any

import numpy as np
import pytest
from pybaselines import Baseline

from bluesky_cmf import Preprocess
from bluesky_cmf.baselines import Background
from bluesky_cmf.errors import InputError, PatternError

X = np.linspace(1.0, 20.0, 400)
LINES = sum(
    a * np.exp(-(((X - c) / 0.15) ** 2)) for a, c in [(60, 4), (100, 9), (40, 9.6), (80, 15)]
)
SMOOTH = 30 * np.exp(-X / 6) + 5
Y = np.random.default_rng(0).poisson(LINES + SMOOTH).astype(float)


@pytest.mark.parametrize(
    ("given", "name", "options"),
    [
        ("asls", "asls", {}),
        ("arpls", "arpls", {}),
        ("modpoly", "modpoly", {}),
        (("snip", {"max_half_window": 12}), "snip", {"max_half_window": 12}),
        ({"name": "rolling_ball", "half_window": 20}, "rolling_ball", {"half_window": 20}),
        (
            {"name": "adaptive_minmax", "method_kwargs": {"tol": 0.01}},
            "adaptive_minmax",
            {"method_kwargs": {"tol": 0.01}},
        ),
    ],
)
def test_what_is_subtracted_is_what_the_library_estimates(
    given: Any, name: str, options: dict[str, Any]
) -> None:
    steps = Preprocess(background=given)
    expected = Y - getattr(Baseline(X), name)(Y, **options)[0]
    np.testing.assert_allclose(steps(X, Y), np.maximum(expected, 0), atol=1e-9)
    assert Preprocess(**json.loads(json.dumps(steps.describe()))) == steps


@pytest.mark.parametrize("dtype", ["<u2", "<i4", "<f4"])
def test_integers_are_no_trap(dtype: str) -> None:
    """snip estimates in the type that it is given, where differences of counts wrap round."""
    steps = Preprocess(background=("snip", {"max_half_window": 12}))
    np.testing.assert_array_equal(steps(X, Y.astype(dtype)), steps(X, Y))


def test_options_of_arrays_become_plain_values_that_compare() -> None:
    weights = np.ones(400)
    steps = Preprocess(background=("modpoly", {"weights": weights, "poly_order": np.int64(3)}))
    told = steps.describe()["background"]
    assert told["weights"] == [1.0] * 400 and type(told["poly_order"]) is int
    assert steps == Preprocess(background=told)
    assert hash(steps) == hash(Preprocess(background=told))
    weights[:] = 0
    told["weights"][0] = 7
    assert steps.describe()["background"]["weights"][0] == 1.0


def test_every_algorithm_for_one_pattern_is_known() -> None:
    """Its first argument is the data; those that want more than one pattern are left out."""
    methods = inspect.getmembers(Baseline, inspect.isfunction)
    names = {
        name
        for name, method in methods
        if not name.startswith("_") and list(inspect.signature(method).parameters)[1] == "data"
    }
    assert len(names) > 50 and "collab_pls" in names
    for name in names - {"collab_pls"}:
        Background(name)
    with pytest.raises(InputError, match="no algorithm 'collab_pls' for one pattern"):
        Background("collab_pls")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("snap", "background: no algorithm 'snap' for one pattern.*did you mean one of snip"),
        ("nothing like it", "did you mean one of adaptive_minmax, airpls,.*tophat"),
        ("_setup_whittaker", "no algorithm '_setup_whittaker'"),
        ("banded_solver", "no algorithm 'banded_solver'"),
        (("asls", {"lambda": 3}), "background: 'asls' has no option 'lambda'; it has lam, p,"),
        ({"name": "snip", "data": 3}, "'snip' has no option 'data'"),
        ({"lam": 3}, r"expected the name of an algorithm, \(name, options\) or"),
        (3, "expected the name of an algorithm.*got 3"),
        (("snip", 40), "expected the name of an algorithm"),
        (("snip", {}, 3), "expected the name of an algorithm"),
    ],
)
def test_what_is_not_known_is_refused_at_once(given: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        Preprocess(background=given)


@pytest.mark.parametrize(
    "given", [("asls", {"lam": -1}), ("modpoly", {"weights": [1, 2]}), ("interp_pts", {})]
)
def test_an_algorithm_that_fails_costs_its_pattern_and_says_why(given: Any) -> None:
    with pytest.raises(PatternError, match=f"background: '{given[0]}' fails \\(ValueError: "):
        Preprocess(background=given)(X, Y)


def test_the_background_is_estimated_on_the_axis_that_is_left() -> None:
    steps = Preprocess(roi=(3, 17), regrid=0.1, rebin=2, background="asls")
    y = Preprocess(roi=(3, 17), regrid=0.1, rebin=2)(X, Y)
    axis = steps.axis(X)
    expected = np.maximum(y - Baseline(axis).asls(y)[0], 0)
    np.testing.assert_allclose(steps(X, Y), expected, atol=1e-9)

"""Known phases whose lattice expands: a strain per pattern, fitted with its weight."""

import io
from typing import Any

import numpy as np
import pytest
import torch
from bluesky.plans import scan
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import least_squares

from bluesky_cmf import LiveNMF, LiveNMFPlot, Phase, Preprocess
from bluesky_cmf.documents import AnalysisReader, read_analysis
from bluesky_cmf.errors import AxisError, ComponentError, InputError
from bluesky_cmf.nmf import strainedfactors
from bluesky_cmf.nmf.families import Family
from bluesky_cmf.nmf.strainedfit import StrainedFit, StrainedSweeps
from bluesky_cmf.nmf.streaming import FitResult, StreamingNMF
from bluesky_cmf.strains import family_of, tabulated
from tests import streams
from tests.streams import Collector, run_documents

F = 500
X_AXIS = np.linspace(1.0, 6.0, F)
#: A phase has to be known farther than the data by its strain.
WIDE = np.linspace(0.95, 6.3, 800)
BOUNDS = (-0.01, 0.02)
LINES = {"a": (1.5, 2.4, 3.7, 5.2), "b": (1.8, 2.9, 4.4, 5.6), "c": (2.1, 3.3, 4.9)}


pytestmark = pytest.mark.usefixtures("one_thread")


def pattern(name: str, strain: float = 0.0, x: np.ndarray = X_AXIS) -> np.ndarray:
    """Lines 0.06 wide, those of a lattice that has expanded by as much."""
    places = x * (1 + strain)
    heights = np.linspace(1.0, 0.4, len(LINES[name]))
    lines = zip(LINES[name], heights, strict=True)
    return np.asarray(sum(h * np.exp(-(((places - q) / 0.036) ** 2)) for q, h in lines))


def background() -> np.ndarray:
    return 0.1 * np.exp(-X_AXIS / 2) + 0.02


def family(name: str, bounds: tuple[float, float] = BOUNDS) -> Family:
    shapes = tabulated(lambda strain: pattern(name, strain), bounds, what=name)
    return Family(shapes, bounds, pattern(name))


def ramp(n: int = 30, *, noise: float = 0.0, seed: int = 0) -> tuple[np.ndarray, ...]:
    """Patterns of two phases that expand by 1 % and one that stays: X, weights, strains."""
    t = np.linspace(0, 1, n)
    W = np.stack([1 - 0.7 * t, 0.1 + 0.9 * t, 0.6 * np.exp(-(((t - 0.6) / 0.3) ** 2)) + 0.1], 1)
    E = np.stack([0.01 * t, 0.01 * t**1.5], 1)
    X = [
        w[0] * pattern("a", e[0]) + w[1] * pattern("b", e[1]) + w[2] * pattern("c") + background()
        for w, e in zip(W, E, strict=True)
    ]
    noisy = np.array(X) + noise * np.random.default_rng(seed).standard_normal((n, F))
    return noisy.clip(0), W, E


def model(*, free: int = 0, strained: str = "ab", **options: Any) -> StreamingNMF:
    """Known phases a, b, c and, unless something is free, the background."""
    known = [pattern("a"), pattern("b"), pattern("c"), *([] if free else [background()])]
    options = {"dtype": torch.float64, "device": "cpu"} | options
    families = {name: family(name) for name in strained}
    names = ["a", "b", "c", "background"][: len(known)]
    return StreamingNMF(
        F,
        len(known) + free,
        names=names,
        components=known,
        fixed=[True] * len(known),
        families=families,
        **options,
    )


def fitted(X: np.ndarray, *, converge: bool = True, **options: Any) -> StreamingNMF:
    stream = model(**options)
    for x in X:
        stream.append(x)
        stream.refit()
    if converge:
        stream.refit(converge=True)
    return stream


def result_of(stream: StreamingNMF) -> FitResult:
    assert stream.result is not None
    return stream.result


def reconstructed(stream: StreamingNMF, result: FitResult, row: int) -> np.ndarray:
    """One pattern by the formula, from nothing but what the result says."""
    known = stream.families
    shapes = [
        known[name].at(strain) if name in known and np.isfinite(strain) else component
        for name, strain, component in zip(
            result.names, result.strains[row], result.components.astype(float), strict=True
        )
    ]
    return np.asarray(result.weights[row].astype(float) @ np.array(shapes))


def half_square(X: np.ndarray, stream: StreamingNMF) -> float:
    result = result_of(stream)
    left = [x - reconstructed(stream, result, row) for row, x in enumerate(X)]
    return float(0.5 * np.square(left).sum())


# --- shapes ---------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.floats(*BOUNDS))
def test_a_family_gives_the_shape_at_any_strain_and_its_derivative(strain: float) -> None:
    a = family("a")
    np.testing.assert_allclose(a.at(strain), pattern("a", strain), atol=1e-3)
    step = 1e-6
    slope = (pattern("a", strain + step) - pattern("a", strain - step)) / (2 * step)
    np.testing.assert_allclose(a.derivative(strain), slope, atol=0.01 * np.abs(slope).max())


def test_a_table_is_no_finer_than_its_lines_ask_for() -> None:
    wide = tabulated(lambda e: np.exp(-((X_AXIS * (1 + e) - 3) ** 2)), BOUNDS, what="wide")
    assert len(wide) == 9 < len(family("a"))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (([[1.0] * F] * 3, BOUNDS, [1.0] * F), "at least 4 shapes"),
        (([[1.0] * 7] * 5, BOUNDS, [1.0] * F), "as many points as shape"),
        (([[1.0] * F] * 5, (0.02, -0.01), [1.0] * F), "the lower first|lowest, highest"),
        (([[1.0] * F] * 5, (-1.0, 2.0), [1.0] * F), "1 % of expansion is 0.01"),
        (([[-1.0] * F] * 5, BOUNDS, [1.0] * F), "non-negative"),
        (([[np.nan] * F] * 5, BOUNDS, [1.0] * F), "finite"),
    ],
)
def test_what_is_no_family_is_refused(arguments: tuple[Any, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Family(*arguments)


# --- the fit --------------------------------------------------------------------------------


def test_weights_and_strains_are_those_of_an_independent_least_squares() -> None:
    X, W, E = ramp(6, noise=0.01)
    stream = fitted(X)
    result = result_of(stream)
    a, b = family("a"), family("b")
    for row, x in enumerate(X):

        def left(p: np.ndarray, x: np.ndarray = x) -> np.ndarray:
            shapes = [a.at(p[4]), b.at(p[5]), pattern("c"), background()]
            return np.asarray(p[:4] @ np.array(shapes) - x)

        lows, highs = [0] * 4 + [BOUNDS[0]] * 2, [np.inf] * 4 + [BOUNDS[1]] * 2
        start = [*W[row] + 0.01, 1.0, *E[row] + 0.0005]
        expected = least_squares(
            left,
            start,
            bounds=(lows, highs),
            x_scale=[1.0] * 4 + [1e-3] * 2,
            xtol=1e-14,
            ftol=1e-14,
        )
        np.testing.assert_allclose(result.weights[row], expected.x[:4], atol=1e-6)
        np.testing.assert_allclose(result.strains[row, :2], expected.x[4:], atol=1e-6)
        assert np.isnan(result.strains[row, 2:]).all()


@pytest.mark.parametrize("free", [0, 1])
def test_what_is_reported_is_what_the_strained_model_says(free: int) -> None:
    X, _, _ = ramp(noise=0.01)
    stream = fitted(X, free=free, converge=False)
    result, rows = stream.refresh(), stream.rows()
    fits = np.array([reconstructed(stream, result, row) for row in range(len(X))])
    left = X - fits
    assert result.objective == pytest.approx(0.5 * (left**2).sum(), rel=1e-9)
    r_factor = np.sqrt((left**2).sum(1) / (X**2).sum(1))
    np.testing.assert_allclose(result.r_factor, r_factor, rtol=1e-9)
    np.testing.assert_allclose(rows.r_factor, r_factor, rtol=1e-9)
    np.testing.assert_allclose(rows.unexplained, left.clip(0).sum(1) / X.sum(1), rtol=1e-9)
    np.testing.assert_allclose(rows.reconstruction, fits[-1], atol=1e-12)
    np.testing.assert_array_equal(rows.strains, result.strains)
    assert result.components[0].tobytes() == pattern("a").tobytes()


def test_the_objective_is_told_in_the_midst_of_a_stream_too() -> None:
    X, _, _ = ramp(noise=0.01)
    stream = model(free=1)
    for n, x in enumerate(X, 1):
        stream.append(x)
        result = stream.refit()
        assert result.objective == pytest.approx(half_square(X[:n], stream), rel=1e-9)


def sweeps(free: int = 2, *, noise: float = 0.01, **rules: Any) -> StrainedSweeps:
    X, _, _ = ramp(noise=noise)
    stream = model(free=free, **rules)
    stream.append(X)
    fit = stream._composition.fit(stream._X, seed=0)
    assert isinstance(fit, StrainedFit)
    start = next(iter(torch.tensor(X)[None, :free] + 0.1))
    H = torch.cat([stream._composition.components.H[:3], start])
    return StrainedSweeps(fit._factors(stream._X, H, None))


@pytest.mark.parametrize("rules", [{}, {"alpha": 0.05, "l1_ratio": 0.5}, {"sum_to_one": True}])
def test_the_objective_never_rises_and_comes_to_rest(rules: dict[str, Any]) -> None:
    descent = sweeps(**rules)
    for _ in range(60):
        before = descent.factors.objective
        descent.sweep(1)
        assert descent.factors.objective <= before * (1 + 1e-12)
    assert descent.curve[-1] < 0.8 * descent.curve[0]
    assert np.diff(descent.curve).max() <= 0
    if "sum_to_one" in rules:
        np.testing.assert_allclose(descent.weights.sum(1), 1.0, rtol=1e-9)


def test_a_converged_refit_is_stationary_in_weights_strains_and_free_components() -> None:
    X, _, _ = ramp(noise=0.01)
    stream = fitted(X, free=1)
    # What converged to 1e-5 goes on to where nothing moves.
    descent = StrainedSweeps(stream._fit.factors)  # type: ignore[arg-type]
    descent.sweep(300)
    factors = descent.factors
    W, E, H = factors.W.tensor().numpy(), factors.strains.tensor().numpy(), factors.H.numpy()
    families = family("a"), family("b")
    scale = np.sqrt(2 * factors.objective)
    gradient_H = np.zeros(F)
    for x, w, e in zip(X, W, E, strict=True):
        shapes = np.array([*(f.at(s) for f, s in zip(families, e, strict=True)), H[2], H[3]])
        left = w @ shapes - x
        gradient_H += w[3] * left
        slopes = [w[s] * f.derivative(e[s]) for s, f in enumerate(families)]
        for direction in (*shapes[w > 0], *slopes):
            assert abs(left @ direction) <= 1e-5 * scale * np.linalg.norm(direction)
        assert (shapes[w == 0] @ left >= -1e-9).all()
    free = H[3] > 0
    size = np.linalg.norm(W[:, 3]) * scale
    assert np.abs(gradient_H[free]).max() <= 1e-5 * size
    assert gradient_H[~free].min(initial=0.0) >= -1e-5 * size


def test_a_ramp_with_expansion_is_followed_and_needs_two_more_components_without_strain() -> None:
    rng = np.random.default_rng(3)
    X, W, E = ramp(60)
    X = rng.poisson(20_000 * X) / 20_000
    stream = fitted(X, dtype=torch.float32)
    result = result_of(stream)
    assert np.abs(result.weights[:, :3] - W).max() < 0.01
    assert np.abs(result.strains[:, :2] - E).max() < 2e-4
    for more in (0, 1):
        without = model(strained="")
        for _ in range(more):
            without.add_component()
        without.append(X)
        assert without.refit(converge=True).objective > 2 * result.objective


def test_the_end_does_not_depend_on_how_patterns_arrive() -> None:
    X, _, _ = ramp(noise=0.01)
    one = result_of(fitted(X, free=1))
    together = model(free=1)
    together.append(X[::-1].copy()[::-1])
    other = together.refit(converge=True)
    assert other.objective == pytest.approx(one.objective, rel=1e-3)
    np.testing.assert_allclose(other.strains[:, :2], one.strains[:, :2], atol=2e-4)


def test_patterns_that_begin_far_away_and_jump_are_found() -> None:
    E = np.repeat([0.018, -0.008, 0.012], 5)
    noise = 0.005 * np.random.default_rng(0).standard_normal((len(E), F))
    X = (0.8 * np.array([pattern("a", e) for e in E]) + background() + noise).clip(0)
    stream = model()
    for n, x in enumerate(X):
        stream.append(x)
        stream.refit()
        rows = stream.rows(n)
        assert rows.strains[0, 0] == pytest.approx(E[n], abs=2e-4)
        assert rows.weights[0, 0] == pytest.approx(0.8, abs=0.01)


def test_a_phase_that_comes_back_is_found_with_another_strain() -> None:
    amounts, E = np.repeat([1.0, 0.0, 0.7], 6), np.repeat([0.0, 0.0, 0.015], 6)
    noise = 0.005 * np.random.default_rng(1).standard_normal((len(E), F))
    shapes = [w * pattern("a", e) for w, e in zip(amounts, E, strict=True)]
    X = (np.array(shapes) + background() + noise).clip(0)
    stream = fitted(X)
    result = result_of(stream)
    there = amounts > 0
    np.testing.assert_allclose(result.strains[there, 0], E[there], atol=2e-4)
    np.testing.assert_allclose(result.weights[:, 0], amounts, atol=0.01)


def test_a_strain_that_is_not_there_is_nan() -> None:
    X = np.array([0.5 * pattern("b", 0.004), np.zeros(F), 0.5 * pattern("b", 0.004)])
    stream = fitted(X)
    result, rows = result_of(stream), stream.rows()
    assert (result.weights[1] == 0).all()
    assert np.isnan(result.strains[1]).all()
    assert np.isnan(rows.strain_errors[1]).all()
    np.testing.assert_allclose(result.strains[::2, 1], 0.004, atol=1e-5)


def test_strains_stay_within_their_bounds_and_those_at_a_bound_are_told() -> None:
    E = np.linspace(0.0, 0.03, 10)
    X = np.array([pattern("a", e) + background() for e in E])
    stream = fitted(X)
    strains, rows = result_of(stream).strains[:, 0], stream.rows()
    assert strains.max() == BOUNDS[1]
    beyond = BOUNDS[1] < E
    np.testing.assert_allclose(strains[E < 0.019], E[E < 0.019], atol=1e-4)
    told = stream.strains_at_bounds()
    assert list(told) == ["a"] and set(np.flatnonzero(beyond)) <= set(told["a"])
    assert (rows.strain_errors[beyond, 0] == 0).all()
    assert not model(strained="").strains_at_bounds()


def test_bounds_next_to_nothing_leave_everything_as_without_strain() -> None:
    X, _, _ = ramp(noise=0.01)
    small = (-1e-10, 1e-10)
    strained = model(strained="")
    strained.fix("a", family=family("a", small))
    plain = model(strained="")
    for stream in (strained, plain):
        stream.append(X)
    one, two = strained.refit(converge=True), plain.refit(converge=True)
    np.testing.assert_allclose(one.weights, two.weights, atol=1e-6)
    assert one.objective == pytest.approx(two.objective, rel=1e-6)


@pytest.mark.parametrize(
    ("free", "n", "rules"),
    [
        (0, 12, {}),
        (1, 12, {}),
        (1, 12, {"alpha": 0.05, "l1_ratio": 0.5}),
        (0, 3, {"sum_to_one": 1}),
    ],
)
def test_without_kernels_the_same_comes_out(
    monkeypatch: pytest.MonkeyPatch, free: int, n: int, rules: dict[str, Any]
) -> None:
    X, _, _ = ramp(n, noise=0.02)
    X[n // 2 :] = X[n // 2 :][::-1]
    held = {"weights": [np.nan, 0.3, *[np.nan] * 2]}
    row = n // 3

    def run() -> tuple[StreamingNMF, FitResult]:
        stream = model(free=free, **rules)
        for number, x in enumerate(X):
            stream.append(x, **(held if number == row else {}))
            stream.refit()
        stream._fit.factors.settle()  # type: ignore[attr-defined]
        return stream, stream.refresh()

    fused, one = run()
    monkeypatch.setattr(strainedfactors, "strained_kernels_for", lambda device: None)
    monkeypatch.setattr(strainedfactors, "kernels_for", lambda device: None)
    reference, two = run()
    assert two.objective == pytest.approx(one.objective, rel=1e-8)
    np.testing.assert_allclose(two.weights, one.weights, atol=1e-6)
    np.testing.assert_allclose(two.strains, one.strains, atol=1e-7)
    for key in ("errors", "r_factor", "reconstruction"):
        np.testing.assert_allclose(
            getattr(reference.rows(), key), getattr(fused.rows(), key), rtol=1e-3, atol=1e-4
        )
    np.testing.assert_allclose(
        reference.rows().strain_errors, fused.rows().strain_errors, rtol=1e-3, atol=1e-8
    )
    assert one.weights[row, 1] == pytest.approx(0.3)


# --- errors ---------------------------------------------------------------------------------


def test_errors_of_weights_and_strains_tell_how_far_they_are_off() -> None:
    X, W, E = ramp(150, noise=0.01)
    stream = fitted(X)
    rows = stream.rows()
    off = np.concatenate(
        [
            (rows.weights[:, :3] - W) / rows.errors[:, :3],
            (rows.strains[:, :2] - E) / rows.strain_errors[:, :2],
        ],
        axis=1,
    )
    rms = np.sqrt((off**2).mean(axis=0))
    assert ((rms > 0.8) & (rms < 1.2)).all(), rms


def test_noise_that_is_known_takes_the_place_of_the_residual() -> None:
    X, _, _ = ramp(5, noise=0.01)
    stream = fitted(X)
    factors = stream._fit.factors
    squared = factors.squared.tensor()[:, 0]
    known = [lambda vectors: 4e-4 * vectors @ vectors.T, None, *[None] * 3]
    one = factors.deviations(0, squared)  # type: ignore[attr-defined]
    two = factors.deviations(0, squared, known)  # type: ignore[attr-defined]
    variance = float(squared[0]) / (F - 6)
    np.testing.assert_allclose(two[0], one[0] * np.sqrt(4e-4 / variance), rtol=1e-6)
    np.testing.assert_array_equal(two[1:], one[1:])


# --- changes and checkpoints ------------------------------------------------------------------


@pytest.mark.parametrize("free", [0, 1])
def test_a_checkpoint_goes_on_where_it_stood(free: int) -> None:
    X, _, _ = ramp(noise=0.01)
    stream = fitted(X[:20], free=free, converge=False)
    buffer = io.BytesIO()
    np.savez(buffer, **stream.state())
    buffer.seek(0)
    with np.load(buffer) as state:
        restored = StreamingNMF.from_state(state, device="cpu")
    assert restored.families["a"].bounds == BOUNDS
    for twin in (stream, restored):
        for x in X[20:]:
            twin.append(x)
            twin.refit()
    one, two = result_of(stream), result_of(restored)
    assert two.objective == pytest.approx(one.objective, rel=1e-12)
    np.testing.assert_allclose(two.strains, one.strains, atol=1e-12)
    np.testing.assert_allclose(restored.rows().errors, stream.rows().errors, rtol=1e-9)


def test_a_checkpoint_whose_arrays_do_not_fit_is_refused() -> None:
    X, _, _ = ramp(5)
    state = fitted(X).state()
    with pytest.raises(InputError, match=r"family_bounds.* are missing"):
        StreamingNMF.from_state({k: v for k, v in state.items() if k != "family_bounds"})
    with pytest.raises(InputError, match="strains"):
        StreamingNMF.from_state({**state, "strains": state["strains"][:2]})


def test_a_component_is_strained_released_and_held_again_while_patterns_come() -> None:
    X, _, E = ramp(noise=0.01)
    stream = fitted(X, converge=False)
    before = result_of(stream)
    stream.fix("a")
    after = stream.refit()
    np.testing.assert_allclose(after.strains, before.strains, atol=1e-6)
    stream.release("a")
    assert "a" not in stream.families
    assert np.isnan(stream.refit().strains[:, 0]).all()
    np.testing.assert_allclose(stream.refit(converge=True).strains[:, 1], E[:, 1], atol=2e-3)
    stream.fix("a", family=family("a"))
    again = stream.refit(converge=True)
    np.testing.assert_allclose(again.strains[:, :2], before.strains[:, :2], atol=1e-4)
    stream.fix("b", pattern("b"))
    assert np.isnan(stream.refit().strains[:, 1]).all()
    stream.remove_component("a")
    assert not stream.families
    stream.add_component("a", family=family("a"))
    assert stream.fixed[-1]
    np.testing.assert_allclose(stream.refit().strains[:5, -1], E[:5, 0], atol=2e-3)


def test_strains_are_kept_through_idle_work_on_many_patterns() -> None:
    X, _, E = ramp(700, noise=0.01)
    stream = model(free=1, dtype=torch.float32)
    for first in range(0, 700, 100):
        stream.append(X[first : first + 100])
        stream.refit()
        stream.improve(0.2)
    result = stream.refresh()
    assert stream._fit.sampled
    # Where there is little of a phase yet, its strain goes with what the free component lacks.
    np.testing.assert_allclose(result.strains[100:, :2], E[100:], atol=1e-3)
    assert result.objective == pytest.approx(half_square(X, stream), rel=1e-3)


def test_what_cannot_be_strained_is_refused() -> None:
    with pytest.raises(InputError, match="loss: a strain is fitted by least squares"):
        model(loss="kullback-leibler")
    with pytest.raises(ComponentError, match="'other'"):
        StreamingNMF(F, 2, families={"other": family("a")})
    with pytest.raises(InputError, match="expected a Family of 7 points"):
        StreamingNMF(7, 1, names=["a"], families={"a": family("a")})


# --- phases ---------------------------------------------------------------------------------


@pytest.mark.parametrize("wavelength", [0.1671, 1.5406])
def test_on_two_theta_a_line_moves_as_bragg_says(wavelength: float) -> None:
    d, strain = 2.0, 0.012
    x = np.linspace(2.0, 70.0, 20_000)
    angle = float(np.degrees(2 * np.arcsin(wavelength / 2 / d)))
    moved = float(np.degrees(2 * np.arcsin(wavelength / 2 / (d * (1 + strain)))))
    phase = Phase.from_array(
        "line", x, np.exp(-(((x - angle) / 0.05) ** 2)), strain=(-0.02, 0.02), axis="two_theta"
    )
    data = np.linspace(angle - 0.9, angle + 0.9, 4001)
    assert data[phase.on(data, strain=strain).argmax()] == pytest.approx(moved, abs=1e-3)


def test_on_q_a_phase_is_the_stretched_pattern_with_its_heights() -> None:
    phase = Phase.from_array("a", WIDE, pattern("a", x=WIDE), strain=BOUNDS, axis="q")
    for strain in (-0.01, 0.003, 0.02):
        np.testing.assert_allclose(phase.on(X_AXIS, strain=strain), pattern("a", strain), atol=1e-3)
    np.testing.assert_array_equal(phase.on(WIDE), pattern("a", x=WIDE))


def test_a_crystal_is_strained_as_its_cell_is(tmp_path: Any) -> None:
    def crystal(a: float) -> str:
        path = tmp_path / f"{a}.cif"
        path.write_text(
            f"data_x\n_cell_length_a {a}\n_cell_length_b {a}\n_cell_length_c {a}\n"
            "_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
            "_symmetry_space_group_name_H-M 'P m -3 m'\n"
            "loop_\n_atom_site_label\n_atom_site_type_symbol\n_atom_site_fract_x\n"
            "_atom_site_fract_y\n_atom_site_fract_z\nPo1 Po 0 0 0\n"
        )
        return str(path)

    x = np.linspace(2.0, 20.0, 3000)
    options: Any = {"wavelength": 0.1671, "width": 0.05, "displacement": False}
    phase = Phase.from_cif(crystal(4.0), strain=(-0.01, 0.02), **options)
    larger = Phase.from_cif(crystal(4.04), **options).on(x)
    places = phase.on(x, strain=0.01)
    lines = (larger > 0.2 * larger.max()) | (places > 0.2 * larger.max())
    overlap = places[lines] @ larger[lines]
    overlap /= np.linalg.norm(places[lines]) * np.linalg.norm(larger[lines])
    assert overlap > 0.999
    table = family_of(phase, x, Preprocess())
    np.testing.assert_allclose(
        table.at(0.0123), phase.on(x, strain=0.0123), atol=1e-3 * larger.max()
    )


def test_a_phase_that_does_not_cover_what_its_strain_asks_for_is_refused() -> None:
    phase = Phase.from_array("short", X_AXIS, pattern("a"), strain=BOUNDS, axis="q")
    with pytest.raises(AxisError, match=r"phase 'short' covers 1 to 6, but .*roi=\(1, 5\.88"):
        phase.on(X_AXIS, strain=0.02)
    table = family_of(phase, X_AXIS[20:-20], Preprocess())
    assert table.bounds == BOUNDS


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"strain": (-0.01, 0.02)}, "axis: expected 'q' or 'two_theta'.*say what the phase's x is"),
        ({"strain": (-0.01, 0.02), "axis": "d"}, "axis: expected"),
        ({"axis": "d"}, "axis: expected"),
        ({"strain": 0.02, "axis": "q"}, r"phase 'a': strain: expected strains"),
        ({"strain": (-1, 2), "axis": "q"}, "1 % of expansion is 0.01"),
        ({"strain": BOUNDS, "axis": "q", "signed": True}, "pair distribution function"),
    ],
)
def test_what_says_no_strain_is_refused(options: dict[str, Any], told: str) -> None:
    with pytest.raises(InputError, match=told):
        Phase.from_array("a", WIDE, pattern("a", x=WIDE), **options)


@pytest.mark.parametrize("normalize", ["max", "area"])
def test_what_a_phase_is_normalised_by_does_not_depend_on_its_strain(normalize: Any) -> None:
    phase = Phase.from_array("a", WIDE, 7 * pattern("a", x=WIDE), strain=BOUNDS, axis="q")
    steps = Preprocess(roi=(1.2, 5.0), normalize=normalize)
    x = steps.axis(X_AXIS)
    table = family_of(phase, x, steps)
    np.testing.assert_array_equal(table.shape, steps(x, phase.on(x)))
    ratio = table.shape.sum() / phase.on(x).sum()
    np.testing.assert_allclose(table.at(0.015), ratio * phase.on(x, strain=0.015), atol=1e-3)


# --- the live analysis ------------------------------------------------------------------------


def phases(*names: str, **options: Any) -> list[Phase]:
    options = {"strain": BOUNDS, "axis": "q"} | options
    return [Phase.from_array(name, WIDE, pattern(name, x=WIDE), **options) for name in names]


def live_with(*subscribers: Any, **options: Any) -> LiveNMF:
    options = {"phases": phases("a", "b"), "n_components": 4} | options
    live = LiveNMF("chi_I", x="chi_Q", background=False, **options)
    for subscriber in subscribers:
        live.subscribe(subscriber)
    return live


def test_a_run_publishes_strains_and_its_figure_draws_them() -> None:
    X, _, E = ramp(24, noise=0.003)
    detector = streams.Detector(X, X_AXIS)
    out, reader, plot = Collector(), AnalysisReader(), LiveNMFPlot()
    live = LiveNMF(
        "det_chi_I",
        x="det_chi_Q",
        phases=[
            *phases("a", "b"),
            *phases("c", strain=None),
            Phase.from_array("background", X_AXIS, background()),
        ],
        n_components=4,
    )
    for subscriber in (out, reader, plot):
        live.subscribe(subscriber)
    engine = streams.engine()
    engine.subscribe(live)
    engine(scan([detector], streams.axis(), 300, 600, len(X)))
    assert live.wait(60)
    assert live.error is None
    start = out.named("start")[0]
    bounds = {record["name"]: record.get("strain") for record in start["cmf"]["components"]}
    assert bounds == {"a": list(BOUNDS), "b": list(BOUNDS), "c": None, "background": None}
    primary, weights = out.data("primary"), out.data("weights")
    keys = {key for key in primary if key.startswith("strain")}
    assert keys == {f"strain_{name}{end}" for name in "ab" for end in ("", "_error")}
    assert {key for key in weights if key.startswith("strain")} == {"strain_a", "strain_b"}
    assert np.abs(primary["strain_a"] - E[:, 0]).max() < 2e-4
    assert (primary["strain_a_error"] > 0).all()
    np.testing.assert_allclose(reader.strains[:, :2], E, atol=3e-4)
    np.testing.assert_allclose(reader.strains, live.result.strains)
    assert np.isnan(reader.strains[:, 2:]).all()
    assert reader.strain_errors.shape == (24, 4)
    assert read_analysis(out.documents).strains.tobytes() == reader.strains.tobytes()
    (line,) = [line for line in plot.axes["strain"].lines if len(line.get_xdata()) == 24][:1]
    np.testing.assert_allclose(line.get_ydata(), 100 * reader.strains[:, 0])
    live.close()


def test_without_strains_documents_and_figure_are_as_ever() -> None:
    X, _, _ = ramp(6)
    out, plot = Collector(), LiveNMFPlot()
    strained, plain = live_with(plot), live_with(out, plot, phases=phases("a", strain=None))
    for name, doc in run_documents(X, x=X_AXIS):
        strained(name, doc)
    assert "strain" in plot.axes
    for name, doc in run_documents(X, x=X_AXIS):
        plain(name, doc)
    assert "strain" not in plot.axes
    assert not [key for key in out.data("primary") if key.startswith("strain")]
    assert all("strain" not in r for r in out.named("start")[0]["cmf"]["components"])


def test_a_bound_that_is_reached_is_told_once_in_the_run_and_the_log(
    caplog: pytest.LogCaptureFixture,
) -> None:
    X = np.array([pattern("a", e) + background() for e in np.linspace(0, 0.03, 12)])
    out = Collector()
    live = live_with(out)
    for name, doc in run_documents(X, x=X_AXIS):
        live(name, doc)
    (fault,) = [event["data"]["fault"] for event in out.events("faults")]
    assert "the strain of 'a' is at a bound" in fault and "widen strain=(-0.01, 0.02)" in fault
    assert "is at a bound" in str(live.error)
    assert [r for r in caplog.records if "is at a bound" in r.message]
    assert out.named("stop")[0]["exit_status"] == "success"


def test_releasing_drops_a_strain_and_holding_a_phase_that_has_one_opens_another_run() -> None:
    X, _, E = ramp(18, noise=0.003)
    out = Collector()
    live = live_with(out, phases=[*phases("a"), *phases("b", strain=None)])
    for n, (name, doc) in enumerate(run_documents(X, x=X_AXIS)):
        live(name, doc)
        if n == 6:
            live.fix("a")
        if n == 9:
            live.release("a")
        if n == 14:
            live.fix("a", phases("a")[0])
            live.fix("b", phases("b")[0])
    assert live.error is None
    starts = out.named("start")
    strained = [[r["name"] for r in s["cmf"]["components"] if r.get("strain")] for s in starts]
    assert strained == [["a"], ["a", "b"]]
    told = [event["data"] for event in out.events("primary")]
    assert np.isfinite([data["strain_a"] for data in told[:8]]).all()
    assert np.isnan([data["strain_a"] for data in told[8:12]]).all()
    np.testing.assert_allclose(live.result.strains[:, :2], E, atol=1e-3)


def test_a_strain_with_another_loss_is_refused_at_once() -> None:
    with pytest.raises(InputError, match="loss: expected 'frobenius' where a phase has a strain"):
        live_with(loss="kullback-leibler")


def test_a_phase_that_does_not_reach_far_enough_rejects_patterns_with_the_reason() -> None:
    short = Phase.from_array("short", X_AXIS, pattern("a"), strain=BOUNDS, axis="q")
    X, _, _ = ramp(3)
    out = Collector()
    live = live_with(out, phases=[short])
    for name, doc in run_documents(X, x=X_AXIS):
        live(name, doc)
    assert len(out.events("rejected")) == 3
    assert "phase 'short' covers 1 to 6" in out.events("rejected")[0]["data"]["reason"]

"""How many components data carry, and which of their patterns serve as components."""

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from event_model import compose_run
from matplotlib.figure import Figure

from bluesky_cmf.catalogs import open_catalog
from bluesky_cmf.catalogs.catalog import Catalog
from bluesky_cmf.collecting import collect, collect_documents
from bluesky_cmf.errors import DataKeyError, InputError, PatternError
from bluesky_cmf.figure.selection import plot_constraints, plot_sweep
from bluesky_cmf.nmf.counting import suggestion
from bluesky_cmf.nmf.heldout import Model, hidden_blocks, prediction_losses
from bluesky_cmf.nmf.selection import ComponentSweep, constraints_from_data, sweep_components
from bluesky_cmf.phases import Phase
from bluesky_cmf.preprocess import Preprocess

DATA = Path(__file__).parents[2] / "shared" / "data" / "batio3" / "ramp.npz"

# databroker's catalog in memory imports Starlette's test client.
pytestmark = pytest.mark.filterwarnings("ignore:Using `httpx` with `starlette.testclient`")


def line(x: np.ndarray, centre: float, width: float = 0.08) -> np.ndarray:
    return np.exp2(-(((x - centre) / (width / 2)) ** 2))


def phases(count: int, *, seed: int, n_features: int = 400) -> np.ndarray:
    """Patterns (K, F) of phases whose lines overlap here and there, over a small background."""
    random = np.random.default_rng(seed)
    x = np.linspace(1.5, 9.5, n_features)
    patterns = []
    for _ in range(count):
        centres, heights = random.uniform(1.7, 9.3, 8), random.uniform(0.1, 1, 8)
        patterns.append(sum(h * line(x, c) for h, c in zip(heights, centres, strict=True)))
    found = np.array(patterns)
    return found / found.max(1, keepdims=True) + 0.02


def ramp(transitions: list[float], n: int, *, width: float = 0.015) -> np.ndarray:
    """Amounts (N, K) of phases that give way to each other where they are told to."""
    t = np.linspace(0, 1, n)[:, None]
    grown = 1 / (1 + np.exp(-(t - np.array(transitions)) / width))
    edges = np.column_stack([np.ones(n), grown, np.zeros(n)])
    return edges[:, :-1] - edges[:, 1:]


def counted(expected: np.ndarray, *, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).poisson(expected).astype(float)


def hand_overs(shares: np.ndarray) -> list[tuple[int, int, int]]:
    """Where the dominant component changes: the pattern after it, and which two."""
    dominant = shares.argmax(1)
    return [
        (i + 1, int(before), int(after))
        for i, (before, after) in enumerate(itertools.pairwise(dominant))
        if before != after
    ]


def barium_titanate() -> Any:
    if not DATA.exists():
        pytest.skip("real data are not in ../shared/data")
    return np.load(DATA)


def tried(counts: list[int], held_out: list[float]) -> ComponentSweep:
    values = np.array(held_out)
    return ComponentSweep(
        n_components=np.array(counts),
        objective=100 * values,
        held_out=values,
        held_out_error=0.2 * values,
        suggested=counts[1],
        reason="It was chosen.",
        n_known=1,
        shape=(10, 20),
    )


# --- how many ------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [500, 50_000])
@pytest.mark.parametrize(("n_phases", "n_known"), [(3, 0), (4, 2), (5, 0)])
def test_the_number_of_phases_is_suggested(counts: int, n_phases: int, n_known: int) -> None:
    H = phases(n_phases, seed=n_phases)
    W = ramp(np.linspace(0.2, 0.8, n_phases - 1).tolist(), 40, width=0.05)
    X = counted(counts * W @ H, seed=counts)
    sweep = sweep_components(X, 7, known=H[:n_known], device="cpu")
    assert sweep.suggested == n_phases
    assert sweep.n_components.tolist() == list(range(max(n_known, 1), 8))
    assert "standard errors" in sweep.reason


def test_a_phase_that_is_in_five_patterns_alone_is_counted() -> None:
    H = phases(3, seed=1)
    W = np.column_stack([ramp([0.5], 60, width=0.1), np.zeros(60)])
    W[40:45] = 0.9 * W[40:45] + [0, 0, 0.1]
    assert sweep_components(counted(5000 * W @ H, seed=2), 5, device="cpu").suggested == 3


def test_counts_that_scatter_about_one_pattern_are_one_component() -> None:
    X = counted(100 * np.ones((40, 1)) * phases(1, seed=0), seed=3)
    assert sweep_components(X, 4, device="cpu").suggested == 1


def test_the_known_phases_alone_are_enough_where_they_are_all() -> None:
    H = phases(3, seed=5)
    X = counted(2000 * ramp([0.3, 0.7], 40) @ H, seed=0)
    sweep = sweep_components(X, known=H, device="cpu")
    assert sweep.n_components[0] == 3
    assert sweep.suggested == 3


def test_the_loss_of_counts_finds_the_number_too() -> None:
    X = counted(300 * ramp([0.3, 0.7], 30) @ phases(3, seed=5, n_features=150), seed=0)
    sweep = sweep_components(X, 4, loss="kullback-leibler", device="cpu")
    assert sweep.suggested == 3
    # Of counts about their mean, the divergence is about one half; it is more where it is taken
    # about a typical intensity.
    assert 0.5 < sweep.held_out[2] < 0.8
    assert sweep.objective[2] / X.size == pytest.approx(0.5, rel=0.1)


def cells(means: list[float], *, spread: float, seed: int = 0) -> np.ndarray:
    """Errors (cells, M) whose means are these, with noise that they share and some of their own."""
    random = np.random.default_rng(seed)
    noise = spread * random.standard_normal((400, len(means)))
    shared = random.gamma(4.0, 0.25, (400, 1))
    return np.array(means) * (shared / shared.mean()) + noise - noise.mean(0)


@pytest.mark.parametrize(
    ("means", "number", "reason"),
    [
        ([8.0, 3.0, 1.0, 1.01, 1.02], 4, "is lowest with 4 components, and its gain over 3 is"),
        (
            [8.0, 3.0, 1.0, 0.9999, 1.02],
            4,
            "with 4 components is not above the lowest, that with 5",
        ),
        (
            [8.0, 3.0, 1.0, 0.9, 0.95],
            5,
            "4 is the last number that halves it, and more may be lines",
        ),
        ([8.0, 3.0, 1.0, 0.9, 0.8], 4, "still falls at 6, the most .* 4 is the last number that"),
        ([8.0, 7.0, 6.0, 5.0, 4.0], 6, "still falls at 6, the most that were tried: try more"),
        ([8.0, 7.0, 6.0, 5.0, 1.0], 6, "try more"),
        ([1.0, 1.1, 1.2, 1.3, 1.4], 2, "lowest with 2 components; fewer were not tried"),
        ([1.0, 0.9999, 1.2, 1.3, 1.4], 2, "with 2 components is not above the lowest"),
    ],
)
def test_a_number_is_suggested_by_what_is_above_the_noise(
    means: list[float], number: int, reason: str
) -> None:
    suggested, why = suggestion(np.arange(2, 7), cells(means, spread=0.02))
    assert suggested == number
    assert re.search(reason, why)


def test_the_barium_titanate_ramp_has_four_components_and_lines_that_move() -> None:
    stored = barium_titanate()
    sweep = sweep_components(stored["intensity"], range(3, 7), repeats=3, device="cpu")
    assert sweep.suggested == 4
    assert "lines move" in sweep.reason


def test_the_held_out_error_of_exact_data_is_that_of_linear_algebra() -> None:
    """With as many components as there are, everything is predicted; with fewer, nothing new."""
    H, W = phases(2, seed=3, n_features=60), ramp([0.5], 12, width=0.2)
    X = W @ H
    options: dict[str, Any] = {"beta": 2.0, "device": torch.device("cpu"), "seed": 0}
    for hidden in hidden_blocks(X.shape, fraction=0.1, repeats=9, seed=0):
        losses = prediction_losses(X, Model(W, H, 2, 0.0), hidden, **options)
        assert losses.shape == (hidden.rows.sum(), hidden.stretches.sum())
        assert losses.max() < 1e-20 * (X**2).sum()
        one = prediction_losses(X, Model(W[:, :1], H[:1], 1, 0.0), hidden, **options)
        seen, crossing = (
            X[np.ix_(hidden.rows, ~hidden.points)],
            X[np.ix_(hidden.rows, hidden.points)],
        )
        known, at = H[0, ~hidden.points], H[0, hidden.points]
        weights = seen @ known / (known @ known)
        assert one.sum() == pytest.approx(0.5 * ((crossing - np.outer(weights, at)) ** 2).sum())


def test_every_entry_is_hidden_once_before_any_is_again() -> None:
    times = np.zeros((20, 100))
    for hidden in hidden_blocks(times.shape, fraction=0.1, repeats=9, seed=4):
        times[np.ix_(hidden.rows, hidden.points)] += 1
        # Whole stretches: each cut has points on either side that belong together.
        assert np.flatnonzero(np.diff(hidden.points)).size < 2 * hidden.stretches.sum() + 1
    assert (times == 1).all()


def test_the_same_seed_gives_the_same_sweep() -> None:
    X = counted(200 * ramp([0.5], 20) @ phases(2, seed=0, n_features=100), seed=0)
    one, two = (sweep_components(X, 3, seed=7, device="cpu") for _ in range(2))
    assert (one.held_out == two.held_out).all()
    assert one.reason == two.reason


def test_progress_is_told_after_each_fit() -> None:
    told: list[tuple[int, int]] = []
    X = counted(50 * ramp([0.5], 10) @ phases(2, seed=0, n_features=50), seed=0)
    sweep_components(X, 2, repeats=2, device="cpu", progress=lambda *step: told.append(step))
    assert told == [(n, 6) for n in range(1, 7)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"X": np.ones(5)}, r"X: expected patterns \(N, F\), at least 2"),
        ({"X": [[1, 2], [3]]}, "X: expected an array"),
        ({"X": [[1.0, np.nan], [1.0, 1.0]]}, "X: expected finite"),
        ({"X": [[1.0, -1.0], [1.0, 1.0]]}, "X: expected non-negative"),
        ({"X": np.zeros((5, 5))}, "X: expected patterns, got nothing but zeros"),
        ({"n_components": 9}, r"n_components: expected numbers from 1 .* to 6 .*, got 9"),
        ({"n_components": 0}, "n_components: expected numbers from 1"),
        ({"n_components": [1, "two"]}, "n_components: expected numbers"),
        ({"n_components": [1], "known": np.eye(2, 60)}, "there are 2 known"),
        ({"known": [np.ones(3)]}, r"known\[0\]: expected 60 points"),
        ({"known": [np.zeros(60)], "names": ["cubic"]}, r"known\[0\] \('cubic'\): expected one"),
        ({"known": np.ones((2, 60)), "names": ["cubic"]}, "names: expected one for each of 2"),
        ({"held_out": 0.5}, "held_out: expected a part"),
        ({"held_out": "some"}, "held_out: expected a part"),
        ({"repeats": 1}, "repeats: expected an integer of at least 2"),
        ({"loss": "least"}, "loss: expected one of"),
        ({"device": "abacus"}, "device: expected"),
    ],
)
def test_a_sweep_that_cannot_be_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    given = {"X": np.ones((9, 60)), "device": "cpu"} | options
    with pytest.raises(InputError, match=message):
        sweep_components(given.pop("X"), given.pop("n_components", None), **given)


# --- which patterns ------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_phases_hand_over_where_they_do(seed: int) -> None:
    random = np.random.default_rng(seed)
    ranges = np.maximum(random.dirichlet([2, 2, 2, 2]), 0.12)
    transitions = (np.cumsum(ranges) / ranges.sum())[:3]
    W, exposure = ramp(transitions.tolist(), 50), random.lognormal(0, 0.4, (50, 1))
    X = counted(2000 * exposure * W @ phases(4, seed=seed), seed=seed)
    found = constraints_from_data(X, 4, device="cpu")
    assert W[list(found.indices)].argmax(1).tolist() == [0, 1, 2, 3]
    changes = hand_overs(found.shares)
    assert [(before, after) for _, before, after in changes] == [(0, 1), (1, 2), (2, 3)]
    places = [(i - 0.5) / 49 for i, _, _ in changes]
    assert places == pytest.approx(transitions.tolist(), abs=0.02)


def test_the_barium_titanate_ramp_hands_over_at_its_transitions() -> None:
    stored = barium_titanate()
    found = constraints_from_data(stored["intensity"], 4, device="cpu")
    temperature = stored["temperature"]
    changes = hand_overs(found.shares)
    assert [(before, after) for _, before, after in changes] == [(0, 1), (1, 2), (2, 3)]
    places = [(temperature[i - 1] + temperature[i]) / 2 for i, _, _ in changes]
    assert places[0] == pytest.approx(185, abs=15)
    assert places[1:] == pytest.approx([280, 400], abs=10)


def test_components_are_patterns_of_the_data_to_the_bit() -> None:
    X = counted(500 * ramp([0.3, 0.7], 30) @ phases(3, seed=0), seed=1)
    found = constraints_from_data(X, 3, device="cpu")
    assert (found.components == X[list(found.indices)]).all()
    assert found.names == tuple(f"pattern {index}" for index in found.indices)
    assert found.order[:2] == (0, 29)
    assert sorted(found.order) == list(found.indices)
    assert found.weights[list(found.indices)] == pytest.approx(np.eye(3), abs=1e-6)
    left = X - found.weights @ found.components
    assert found.objective == pytest.approx(0.5 * (left**2).sum(), rel=1e-6)
    size = np.linalg.norm(X, axis=1)
    assert found.r_factor == pytest.approx(np.linalg.norm(left, axis=1) / size, abs=1e-6)
    assert found.shares.sum(1) == pytest.approx(np.ones(30))
    assert found.free_objective < found.objective


def test_a_pattern_like_one_that_is_held_is_no_new_member() -> None:
    """Patterns of long plateaus, and feeble ones, whose noise would pass for another phase."""
    X = 3000 * ramp([0.7, 0.85], 60, width=0.004) @ phases(3, seed=2)
    X[[5, 30, 48]] *= 0.004
    X = counted(X, seed=0)
    found = constraints_from_data(X, 3, device="cpu")
    assert 42 <= found.indices[1] <= 50
    assert found.indices[1] != 48
    assert "largest share" in found.history[-1].reason


def test_more_members_than_phases_are_chosen_as_the_worst_explained() -> None:
    X = counted(3000 * ramp([0.5], 30, width=0.004) @ phases(2, seed=2), seed=0)
    found = constraints_from_data(X, 3, device="cpu")
    assert "explained worst" in found.history[-1].reason


def test_a_ramp_that_comes_back_is_held_at_one_end() -> None:
    there = ramp([0.3, 0.7], 30)
    X = counted(2000 * np.vstack([there, there[::-1]]) @ phases(3, seed=4), seed=0)
    found = constraints_from_data(X, 3, device="cpu")
    assert 59 not in found.indices
    assert np.vstack([there, there[::-1]])[list(found.indices)].argmax(1).tolist() in (
        [0, 1, 2],
        [0, 2, 1],
    )


def test_an_end_that_a_known_phase_explains_is_not_held() -> None:
    H = phases(3, seed=6)
    X = counted(2000 * ramp([0.3, 0.7], 40) @ H, seed=0)
    found = constraints_from_data(X, 3, known=H[:1], names=["cubic"], device="cpu")
    assert found.names[0] == "cubic"
    assert found.n_known == 1
    assert (found.components[0] == H[0]).all()
    assert 0 not in found.indices
    assert 39 in found.indices
    assert [(b, a) for _, b, a in hand_overs(found.shares)] == [(0, 1), (1, 2)]


def test_one_component_is_the_pattern_that_is_known_best() -> None:
    X = counted(np.array([[1.0], [50.0], [3.0]]) * phases(1, seed=0) * 20, seed=0)
    found = constraints_from_data(X, 1, ends=False, device="cpu")
    assert found.indices == (1,)
    assert constraints_from_data(X, 1, ends=[-1], device="cpu").indices == (2,)
    assert constraints_from_data(X[:1], 1, device="cpu").indices == (0,)


def test_a_few_patterns_are_enough_to_tell_their_ends_apart() -> None:
    X = counted(500 * np.array([[1, 0], [0.5, 0.5], [0, 1]]) @ phases(2, seed=0), seed=0)
    assert constraints_from_data(X, 2, device="cpu").order == (0, 2)
    assert constraints_from_data(X[::2], 2, device="cpu").order == (0, 1)


def test_two_components_are_the_ends_alone() -> None:
    X = counted(500 * ramp([0.5], 12) @ phases(2, seed=0), seed=0)
    assert constraints_from_data(X, 2, device="cpu").order == (0, 11)


def test_patterns_of_zeros_are_passed_over() -> None:
    X = counted(500 * ramp([0.4], 20) @ phases(2, seed=0), seed=0)
    X[7] = 0
    found = constraints_from_data(X, 2, ends=False, device="cpu")
    assert 7 not in found.indices
    assert not found.shares[7].any()


def test_members_are_found_by_the_loss_of_counts_too() -> None:
    W = ramp([0.35, 0.7], 30)
    X = counted(300 * W @ phases(3, seed=1, n_features=150), seed=0)
    found = constraints_from_data(X, 3, loss="kullback-leibler", device="cpu")
    assert W[list(found.indices)].argmax(1).tolist() == [0, 1, 2]


def test_progress_of_a_choice_ends_at_its_total() -> None:
    told: list[tuple[int, int]] = []
    X = counted(500 * ramp([0.3, 0.7], 20) @ phases(3, seed=0), seed=1)
    constraints_from_data(X, 3, device="cpu", progress=lambda *step: told.append(step))
    assert told == [(n, 5) for n in range(1, 6)]


MIXED = ramp([0.5], 6) @ phases(2, seed=0)
TWICE = np.vstack([np.eye(2, 6)] * 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_components": 0}, "n_components: expected an integer of at least 1"),
        (
            {"n_components": 1, "X": MIXED},
            "n_components: ends=True holds the patterns 0, 5, and th",
        ),
        ({"n_components": 7}, "n_components: expected at most 6, as there are 6 patterns"),
        (
            {"n_components": 3, "X": TWICE},
            "n_components: 3 are more than patterns in X that differ",
        ),
        ({"n_components": 2, "known": np.eye(2, 6)}, "n_components: expected an integer of at le"),
        ({"X": np.diag([0, 1, 1, 1, 1, 1.0])}, "ends: pattern 0 is nothing but zeros"),
        ({"ends": [0, 9]}, "ends: expected True, False or numbers of patterns, up to 5"),
        ({"ends": "first"}, "ends: expected True, False"),
        ({"ends": [0, 1, 2, 3, 4]}, r"n_components: ends=\[0, 1, 2, 3, 4\] holds"),
        ({"X": np.full((6, 6), np.nan)}, "X: expected finite"),
        ({"X": np.ones(6)}, r"X: expected patterns \(N, F\)"),
        ({"X": np.array([["a", "b"]])}, "X: expected real numbers in a tensor or array"),
        ({"names": ["a"]}, "names: expected one for each of 0"),
        ({"known": np.eye(2, 6), "names": ["a", "a"]}, "names: expected names that differ"),
    ],
)
def test_a_choice_that_cannot_be_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {"X": np.eye(6) + 0.1, "n_components": 4, "device": "cpu"} | options
    with pytest.raises(InputError, match=message):
        constraints_from_data(given.pop("X"), given.pop("n_components"), **given)


# --- figures -------------------------------------------------------------------------------


def test_a_sweep_is_drawn_with_its_suggestion_and_the_reason() -> None:
    figure = plot_sweep(tried([2, 3, 5], [3.0, 1.0, 0.9]), Figure())
    (axes,) = figure.axes
    assert axes.get_yscale() == "log"
    held_out = next(
        line for line in axes.lines if len(line.get_xdata()) == 3 and line.get_marker() == "o"
    )
    assert held_out.get_ydata() == pytest.approx([3.0, 1.0, 0.9])
    assert any(list(line.get_xdata()) == [3] for line in axes.lines)
    texts = [text.get_text() for text in figure.texts]
    assert texts == ["3 components, 1 of them known", "It was chosen."]


def test_a_sweep_of_exact_data_is_drawn_on_a_linear_scale() -> None:
    figure = plot_sweep(tried([1, 2], [3.0, 0.0]), Figure())
    assert figure.axes[0].get_yscale() == "linear"


def test_constraints_are_drawn_at_their_positions() -> None:
    X = counted(500 * ramp([0.3, 0.7], 30) @ phases(3, seed=0), seed=1)
    found = constraints_from_data(X, 3, device="cpu")
    T, x = np.linspace(300, 590, 30), np.linspace(1, 9, X.shape[1])
    figure = plot_constraints(
        X, found, x=x, positions=T, position_label="temperature (K)", figure=Figure()
    )
    figure.canvas.draw()
    shares, quality, stack, image = figure.axes
    marked = [line.get_xdata()[0] for line in shares.lines if len(line.get_xdata()) == 1]
    assert marked == T[list(found.indices)].tolist()
    assert quality.get_xlabel() == "temperature (K)"
    named = [text.get_text() for text in stack.texts]
    assert named == [f"{T[index]:.6g} K" for index in found.indices]
    assert [line.get_ydata()[0] for line in image.lines] == marked


@pytest.mark.parametrize("told", [True, False])
def test_positions_without_a_label_are_not_called_numbers_of_patterns(told: bool) -> None:
    X = counted(500 * ramp([0.5], 12) @ phases(2, seed=0), seed=0)
    found = constraints_from_data(X, 2, device="cpu")
    values = {"x": np.linspace(1, 9, X.shape[1]), "positions": np.arange(12.0) + 300}
    figure = plot_constraints(X, found, **(values if told else {}), figure=Figure())
    labels = figure.axes[3].get_xlabel(), figure.axes[1].get_xlabel()
    assert labels == (("x", "position") if told else ("point", "pattern"))


def test_constraints_of_other_data_are_refused() -> None:
    X = counted(500 * ramp([0.5], 12) @ phases(2, seed=0), seed=0)
    found = constraints_from_data(X, 2, device="cpu")
    with pytest.raises(InputError, match=r"X: expected the patterns \(N, F\) = \(12, 400\)"):
        plot_constraints(X[:5], found, figure=Figure())
    with pytest.raises(InputError, match="positions: expected 12 finite numbers"):
        plot_constraints(X, found, positions=[1, 2], figure=Figure())


# --- stored runs ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def catalog(tmp_path_factory: pytest.TempPathFactory) -> Any:
    with open_catalog(tmp_path_factory.mktemp("collect") / "catalog") as opened:
        yield opened


X_AXIS = np.linspace(1.0, 3.0, 5)


def store(catalog: Catalog, patterns: list[Any], *, temperatures: list[float]) -> str:
    run = compose_run(metadata={"hints": {"dimensions": [(["temperature"], "primary")]}})
    shape = [len(X_AXIS)]
    stream = run.compose_descriptor(
        name="primary",
        data_keys={
            "chi_I": {"source": "test", "dtype": "array", "shape": shape},
            "chi_Q": {"source": "test", "dtype": "array", "shape": shape, "units": "1/A"},
            "temperature": {"source": "test", "dtype": "number", "shape": [], "units": "K"},
        },
    )
    writer = catalog.writer()
    writer("start", run.start_doc)
    writer("descriptor", stream.descriptor_doc)
    for pattern, temperature in zip(patterns, temperatures, strict=True):
        data = {"chi_I": np.asarray(pattern), "chi_Q": X_AXIS, "temperature": temperature}
        now = dict.fromkeys(data, 0.0)
        writer("event", stream.compose_event(data=data, timestamps=now, validate=False))
    writer("stop", run.compose_stop())
    assert writer.close()
    return str(run.start_doc["uid"])


def test_patterns_of_a_stored_run_are_collected_as_they_would_be_fitted(catalog: Catalog) -> None:
    patterns = [[9.0, 2, 4, 0, 9], [9.0, np.nan, 1, 1, 9], [9.0, 1, 1, 5, 9]]
    uid = store(catalog, patterns, temperatures=[300.0, 310.0, 320.0])
    found = collect(
        catalog,
        uid,
        "chi_I",
        x="chi_Q",
        phases=[Phase.from_array("cubic", X_AXIS, [7.0, 1, 3, 2, 7])],
        preprocess=Preprocess(roi=(1.4, 2.6), normalize="max"),
    )
    assert found.x.tolist() == [1.5, 2.0, 2.5]
    assert found.X.tolist() == [[0.5, 1, 0], [0.2, 0.2, 1]]
    assert found.position.tolist() == [300, 320]
    assert found.position_label == "temperature (K)"
    assert found.x_label.startswith("chi_Q")
    assert found.known == pytest.approx(np.array([[1, 3, 2]]) / 3, abs=1e-15)
    assert found.names == ("cubic",)
    assert found.rejected == ((2, "NaN or infinity at 1 of 3 points"),)


def test_documents_from_anywhere_are_collected_alike(catalog: Catalog) -> None:
    uid = store(catalog, [[1.0, 2, 3, 4, 5]], temperatures=[300.0])
    documents = list(catalog.documents(uid))
    found = collect_documents(documents, "chi_I", x="chi_Q", independent=())
    assert found.X.tolist() == [[1, 2, 3, 4, 5]]
    assert found.variables == ("pattern",)
    assert collect(catalog, uid, "chi_I", x="chi_Q").X.tolist() == found.X.tolist()


def test_several_runs_of_one_pattern_each_are_collected_in_order(catalog: Catalog) -> None:
    uids = [store(catalog, [[1.0, 2, 3, 4, k]], temperatures=[300.0 + k]) for k in (5, 1)]
    found = collect(catalog, uids, "chi_I", x="chi_Q")
    assert found.X[:, -1].tolist() == [5, 1]
    assert found.position.tolist() == [305, 301]
    assert found.known.shape == (0, 5)


def test_runs_without_patterns_say_why(catalog: Catalog) -> None:
    uid = store(catalog, [[0.0] * 5], temperatures=[300.0])
    with pytest.raises(DataKeyError, match="chi_J"):
        collect(catalog, uid, "chi_J")
    with pytest.raises(PatternError, match="every point is zero"):
        collect(catalog, uid, "chi_I", x="chi_Q")
    with pytest.raises(PatternError, match="no pattern in stream 'baseline'"):
        collect(catalog, uid, "chi_I", stream="baseline")
    with pytest.raises(PatternError, match="no raw run"):
        collect(catalog, uid, "chi_I", skip=lambda start: True)
    with pytest.raises(InputError, match="uid: expected"):
        collect(catalog, [], "chi_I")

"""The search between events: what comes first, what waits, and what goes on later."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from bluesky_cmf.nmf import blocks, fit
from bluesky_cmf.nmf.blocks import Blocks
from bluesky_cmf.nmf.factorization import Factorization
from bluesky_cmf.nmf.fit import Fit
from bluesky_cmf.nmf.leastsquares import LeastSquares
from bluesky_cmf.nmf.rules import Rules

F, N = 120, 1000
PHASES = np.exp(-0.5 * ((np.arange(F) - np.array([[20.0], [50.0], [60.0], [90.0]])) / 9) ** 2)


def patterns(n: int, seed: int = 0, *, moved: int = 0) -> np.ndarray:
    random = np.random.default_rng(seed)
    t = np.linspace(0, 1, n)[:, None]
    weights = np.exp(-(((t - [0.0, 0.3, 0.6, 1.0]) / 0.3) ** 2)) * random.uniform(0.8, 1.2, (n, 4))
    return (weights @ np.roll(PHASES, moved, 1) + 0.01 * random.random((n, F))).astype("f4")


@pytest.fixture(autouse=True)
def _many_is_few(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(blocks, "_FIRST_ROWS", 64)
    monkeypatch.setattr(fit.Fit, "sample", 64)
    monkeypatch.setattr(fit.Fit, "trial_sweeps", 9)
    monkeypatch.setattr(fit.Fit, "all_rows", 40 * F * 4)
    monkeypatch.setattr(LeastSquares, "step_work", 16 * F * 4)
    monkeypatch.setattr(LeastSquares, "idle_step_work", 160 * F * 4)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def begun(X: np.ndarray) -> LeastSquares:
    rows = Blocks(F, dtype=torch.float32, device=torch.device("cpu"))
    rows.append(X)
    H = torch.zeros(4, F, dtype=torch.float64)
    H[0] = torch.tensor(PHASES[0])
    found = LeastSquares(rows, H, Rules((1, 2, 3)), seed=0)
    found.follow()
    return found


def idle_steps_to_a_better_fit(found: Fit, most: int = 10_000) -> int:
    for count in range(1, most):
        if found.search.step(idle=True):
            return count
    raise AssertionError("no better fit was found")


def counted_starts(found: Fit, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Note how many rows there are, each time that other starts are asked for."""
    asked: list[int] = []
    starts = found.starts

    def noted(X: object, H: torch.Tensor, *, draws: int) -> Iterator[torch.Tensor | None]:
        asked.append(len(found.X))
        return starts(X, H, draws=draws)

    monkeypatch.setattr(found, "starts", noted)
    return asked


def with_starts_under_way(monkeypatch: pytest.MonkeyPatch) -> tuple[LeastSquares, list[int]]:
    """A fit of which the search has just begun to try other starts, and the notes of them."""
    found = begun(patterns(N))
    asked = counted_starts(found, monkeypatch)
    found.search.alarm.quiet(N, 0.01, gain=0.1)
    while not asked:
        found.search.step(idle=True)
    return found, asked


def test_idle_time_follows_the_fit_before_it_tries_elsewhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = begun(patterns(N))
    asked = counted_starts(found, monkeypatch)
    first = idle_steps_to_a_better_fit(found)
    assert asked == []
    for _ in range(15):
        found.search.step(idle=True)
    assert asked == [N]

    # Other starts are under way; a few patterns come that the fit has not been brought up to.
    found.X.append(patterns(N // 100, seed=3, moved=3))
    found.follow()
    again = idle_steps_to_a_better_fit(found)

    assert again <= first + 2
    assert asked == [N]


def test_starts_that_waited_for_the_fit_to_be_followed_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, asked = with_starts_under_way(monkeypatch)
    found.X.append(patterns(N // 100, seed=3, moved=3))
    found.follow()
    idle_steps_to_a_better_fit(found)

    # They come to their end, and only then others are begun for the rows that are there now.
    count = 0
    while len(asked) == 1 and not found.search.settled:
        found.search.step(idle=True)
        count += 1
    assert count > 20

    assert asked[1:] in ([], [N + N // 100])


def test_what_was_begun_long_ago_is_begun_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    found, asked = with_starts_under_way(monkeypatch)
    found.X.append(patterns(N // 10, seed=4, moved=3))
    found.follow()
    idle_steps_to_a_better_fit(found)

    for _ in range(3):
        found.search.step(idle=True)

    assert asked == [N, N + N // 10]


def test_idle_steps_are_larger_than_those_that_go_with_events() -> None:
    X = patterns(N)
    idle, beside = begun(X), begun(X)

    count = 1
    while not beside.search.step():
        count += 1

    assert 2 * idle_steps_to_a_better_fit(idle) < count


def test_a_search_ends_where_no_patterns_come() -> None:
    found = begun(patterns(N))

    for _ in range(20_000):
        if found.search.settled:
            break
        found.search.step(idle=True)

    assert found.search.settled
    found.X.append(patterns(1))
    found.follow()
    assert not found.search.settled


def test_events_alone_try_elsewhere_though_the_data_have_grown_in_the_meantime(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X = patterns(400)
    found = begun(X[:200])
    asked = counted_starts(found, monkeypatch)

    calm = 0
    for row in X[200:]:
        found.X.append(row[None])
        found.follow()
        calm += not found.search.alarm.on

    # Following the fit alone takes longer than the data need to grow by a part that matters.
    assert asked and asked[0] > 1.05 * 200
    assert calm > 0


def test_an_alarm_ends_what_was_begun_before_the_data_that_raised_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found, asked = with_starts_under_way(monkeypatch)

    # Idle time is over, other starts wait; what comes now is unlike what they know of.
    found.X.append(patterns(N // 10, seed=5))
    found.follow()
    assert found.search.alarm.on
    for _ in range(1000):
        if len(asked) > 1:
            break
        found.search.step(idle=True)

    assert asked == [N, N + N // 10]


def through_a_round(found: Fit) -> None:
    for _ in range(5000):
        if not found.search.alarm.on:
            return
        found.search.step()
    raise AssertionError("a round has no end")


def test_beside_events_other_starts_are_tried_anew_only_where_the_data_have_grown_much(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X = patterns(N)
    found = begun(X)
    asked = counted_starts(found, monkeypatch)
    through_a_round(found)
    assert asked == [N]

    for _ in range(3):
        found.X.append(X[:: N // 50])
        found.follow()
        assert found.search.alarm.on
        through_a_round(found)
    assert asked == [N]

    # Idle time has nothing better to do.
    for _ in range(500):
        found.search.step(idle=True)
    assert asked[1:2] == [len(found.X)]


def test_a_jump_that_following_the_fit_twice_has_not_mended_leads_to_other_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = begun(patterns(N))
    through_a_round(found)
    asked = counted_starts(found, monkeypatch)
    sampled, some = [], found.some

    def noted(rows: torch.Tensor, **options: Any) -> Any:
        sampled.append(len(asked))
        return some(rows, **options)

    monkeypatch.setattr(found, "some", noted)
    # Next to nothing used to be left.
    found.search.alarm.quiet(N, 1e-12, gain=0.0)
    while not found.search.due(0.5):
        pass
    through_a_round(found)

    assert sampled == [0, 0]
    assert asked == [N]


def test_a_jump_that_comes_right_after_a_round_is_looked_for_in_the_rows_that_have_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    X = patterns(N)
    found = begun(X)
    through_a_round(found)
    found.X.append(X[:: N // 50])
    found.follow()
    through_a_round(found)
    n, chosen, some = len(found.X), [], found.some

    def noted(rows: torch.Tensor, **options: Any) -> Any:
        chosen.append(int(rows.max()))
        return some(rows, **options)

    monkeypatch.setattr(found, "some", noted)
    # Where idle time would begin elsewhere, on the rows of the round: there are hardly more.
    found.X.append(patterns(1, seed=7)[:, ::-1].copy())
    found.factors.follow()
    while not found.search.due(0.9):
        pass
    while not chosen:
        found.search.step()

    assert chosen == [n]


def test_a_challenge_catches_up_with_patterns_that_come_many_at_a_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = begun(patterns(300))
    settled, settle = [], found.settle

    def noted(challenger: Factorization) -> None:
        settled.append(len(challenger))
        settle(challenger)

    monkeypatch.setattr(found, "settle", noted)
    for seed in range(100):
        found.X.append(patterns(100, seed=seed))
        found.follow()

    assert settled


def test_where_everything_is_held_nothing_is_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    X = patterns(N)
    rows = Blocks(F, dtype=torch.float32, device=torch.device("cpu"))
    rows.append(X[:-50])
    found = LeastSquares(rows, torch.tensor(PHASES), Rules(()), seed=0)
    found.follow()
    monkeypatch.setattr(found.search, "step", pytest.fail)

    for row in X[-50:]:
        found.X.append(row[None])
        found.follow()

    assert not found.search.alarm.on


def test_beside_events_rows_of_a_challenge_come_in_portions_and_events_rest_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = begun(patterns(N))
    taken, follow = [0], Factorization.follow

    def noted(self: Factorization, most: int | None = None) -> int:
        if self is not found.factors:
            taken[-1] += most or 0
        return follow(self, most)

    monkeypatch.setattr(Factorization, "follow", noted)
    while not found.search.step():
        taken.append(0)

    # Of components with rows of 16 for each event.
    portion = 16 * LeastSquares.portion
    challenge = taken[taken.index(portion) :]
    assert LeastSquares.portion > 1
    once = [portion, *[0] * (LeastSquares.portion - 1)]
    assert challenge[: 2 * len(once)] == once * 2
    assert set(taken) == {0, portion}


def no_memory(H: torch.Tensor) -> Factorization:
    raise MemoryError


def test_a_step_that_fails_ends_nothing_but_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    found = begun(patterns(N))
    for _ in range(3):
        found.search.step(idle=True)
    with monkeypatch.context() as patch:
        patch.setattr(found, "new_challenger", no_memory)
        with pytest.raises(MemoryError):
            idle_steps_to_a_better_fit(found)

    assert idle_steps_to_a_better_fit(found) < 100


def with_a_stranger(X: np.ndarray, share: float) -> np.ndarray:
    """Add to the first patterns what no component is there for."""
    X, n = X.copy(), int(share * len(X))
    hump = np.exp(-0.5 * ((np.arange(F) - 75.0) / 20) ** 2)
    X[:n] += np.linspace(0.5, 0, n)[:, None] * hump
    return X


@pytest.mark.parametrize(
    "rules", [Rules((1, 2, 3)), Rules((1, 2, 3), l1=1e-9)], ids=["weighed", "not weighed"]
)
def test_a_few_rows_that_no_component_explains_do_not_keep_others_from_being_fitted(
    rules: Rules,
) -> None:
    X = with_a_stranger(patterns(N), share=0.05)
    rows = Blocks(F, dtype=torch.float32, device=torch.device("cpu"))
    rows.append(X)
    H = torch.zeros(4, F, dtype=torch.float64)
    H[0] = torch.tensor(PHASES[0])
    found = LeastSquares(rows, H, rules, seed=0)
    found.follow()
    while not found.search.settled:
        found.search.step(idle=True)
    searched = found.objective
    found.converge()

    assert searched == pytest.approx(found.objective, rel=1e-3)


@pytest.mark.parametrize(
    "rules", [Rules((1, 2, 3)), Rules((1, 2, 3), l1=1e-9)], ids=["weighed", "not weighed"]
)
def test_starts_are_taken_from_the_worst_rows_also_after_these_have_led_nowhere(
    rules: Rules, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = Blocks(F, dtype=torch.float32, device=torch.device("cpu"))
    rows.append(patterns(N))
    H = torch.zeros(4, F, dtype=torch.float64)
    H[0] = torch.tensor(PHASES[0])
    found = LeastSquares(rows, H, rules, seed=0)
    found.follow()
    found.converge()
    # Three rows, between those at even distances, of what nobody has seen.
    stranger = np.zeros((3, F), dtype="f4")
    stranger[:, 5:9] = 3.0
    found.X.append(stranger)
    found.X.append(patterns(N // 50, seed=5))
    found.follow()
    monkeypatch.setattr(found, "take", lambda challenger: False)
    given: list[Any] = []
    monkeypatch.setattr(found, "starts", lambda X, H, draws: given.append(X) or iter([H]))
    while not given:
        found.search.step(idle=True)

    peaks = [float(given[0].row(i)[5:9].min()) for i in range(len(given[0]))]
    assert sum(peak > 2.5 for peak in peaks) == 3

"""How many components data carry: fits and predictions for one number of them after another."""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from .components import as_patterns
from .constraints import checked_count
from .heldout import (
    Hidden,
    Model,
    descended,
    hidden_blocks,
    most_components,
    prediction_losses,
)
from .numerics import beta_of, check_numerics, chosen_device
from .streaming import StreamingNMF

__all__ = [
    "ComponentSweep",
    "Progress",
    "Steps",
    "as_data",
    "as_known",
    "suggestion",
    "sweep_components",
]

Array = npt.NDArray[Any]
#: Called as ``progress(done, total)``.
Progress = Callable[[int, int], None]

#: Where a sweep ends that is not told: so many components, and so many beside those that are known.
_MOST, _MOST_FREE = 8, 4
#: Standard errors that the gain of the last component must exceed.
_SURE = 2.0
#: By how much a component must lower the error to be one of those that make the difference.
_HALF = 0.5


@dataclass(frozen=True, eq=False)
class ComponentSweep:
    """Objective and held-out error against the number of components: M numbers.

    Attributes
    ----------
    n_components : ndarray (M,) of int
        What was tried, increasing; the known components count.
    objective : ndarray (M,)
        What the loss says over all N patterns, of the converged fit of all of them.
    held_out : ndarray (M,)
        Mean loss of an entry that the fit has not seen; ``objective / (N F)`` is that of one that
        it has.
    held_out_error : ndarray (M,)
        Standard error of ``held_out``, from the spread over repeats. The same entries are held out
        for each number of components, so that differences are much surer than the values.
    suggested : int
        The number of components that is suggested.
    reason : str
        Why, in a sentence.
    n_known : int
        How many components are held.
    shape : (int, int)
        N and F.
    """

    n_components: Array
    objective: Array
    held_out: Array
    held_out_error: Array
    suggested: int
    reason: str
    n_known: int
    shape: tuple[int, int]


def sweep_components(
    X: npt.ArrayLike,
    n_components: int | Sequence[int] | None = None,
    *,
    known: Sequence[npt.ArrayLike] | Array = (),
    names: Sequence[str] | None = None,
    loss: str | float = "frobenius",
    held_out: float = 0.1,
    repeats: int = 9,
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: Progress | None = None,
) -> ComponentSweep:
    """Fit data with one number of components after another, and suggest one.

    Parameters
    ----------
    X : array_like (N, F)
        Patterns as they are fitted, not negative.
    n_components : int or sequence of int, optional
        What to try, the known components counted: up to a number, or these numbers. By default
        from 1, or as many as are known, to 8, or 4 more than are known, as far as N and F allow.
    known : sequence of array_like (F,), optional
        Known components, held in every fit.
    names : sequence of str, optional
        Their names, for messages.
    loss : {"frobenius", "kullback-leibler", "itakura-saito"} or float, optional
        As that of `StreamingNMF`.
    held_out : float, optional
        About the part of the entries of X that is hidden at a time, up to 0.25.
    repeats : int, optional
        How many times; 9 hide every entry once where ``held_out`` is 0.1.
    seed : int, optional
        Of the choice of what is hidden, and of the fits' starts.
    device : str or torch.device, optional
        ``"auto"``: CUDA where there is one, else the CPU.
    progress : callable, optional
        Called as ``progress(done, total)`` after each fit.

    Returns
    -------
    ComponentSweep

    Raises
    ------
    InputError
        Where an argument has the wrong shape, sign or range, or the data are too few.

    Notes
    -----
    The held-out error is found by bi-cross-validation (Owen and Perry, Ann. Appl. Stat. 3, 564,
    2009): some patterns, at random, and some stretches of points are set aside; what is left is
    factorized and predicts the entries where they cross. Suggested is the least number whose error
    is within one standard error of the lowest, by differences in each stretch of each pattern, as
    long as its last component's gain is above their noise. Where the error falls to the end, as it
    does where lines move or widen from pattern to pattern, no number explains all; then it is the
    last that has halved the error.

    Examples
    --------
    >>> import numpy as np
    >>> random = np.random.default_rng(0)
    >>> mixed = random.dirichlet([1, 1, 1], 40) @ random.gamma(0.5, 200, (3, 300))
    >>> sweep_components(random.poisson(mixed), 5, device="cpu").suggested
    3
    """
    check_numerics(device=device, dtype=torch.float64, seed=seed)
    beta, place = beta_of(loss), chosen_device(device)
    data = as_data(X, least=2)
    if not data.any():
        raise InputError("X: expected patterns, got nothing but zeros")
    held = as_known(known, data, names=names)
    fraction = _fraction(held_out)
    repeats = checked_count("repeats", repeats, least=2)
    most = most_components(data.shape, fraction=fraction)
    counts = _counts(n_components, len(held), most)
    hidden = list(hidden_blocks(data.shape, fraction=fraction, repeats=repeats, seed=seed))
    steps = Steps(progress, len(counts) * (1 + repeats))
    options = {"beta": beta, "device": place, "seed": seed}
    before, objectives = held, []
    errors = _Errors(hidden, len(counts))
    for m, count in enumerate(counts):
        full = _full(data, held, count, before, loss=loss, **options)
        before = full.H
        objectives.append(full.objective)
        steps.done()
        for repeat, block in enumerate(hidden):
            errors.add(m, repeat, prediction_losses(data, full, block, **options))
            steps.done()
    suggested, reason = suggestion(np.array(counts), errors.by_cell)
    return ComponentSweep(
        n_components=np.array(counts),
        objective=np.array(objectives),
        held_out=errors.by_repeat.mean(axis=1),
        held_out_error=errors.by_repeat.std(axis=1, ddof=1) / np.sqrt(repeats),
        suggested=suggested,
        reason=reason,
        n_known=len(held),
        shape=data.shape,
    )


def as_data(X: npt.ArrayLike, *, least: int) -> Array:
    """Check patterns, (N, F), and give them in float64, or as float32 where they are that."""
    try:
        given = np.asarray(X)
    except ValueError as error:
        raise InputError(f"X: expected an array (N, F) of numbers, got {error}") from error
    if given.ndim != 2 or len(given) < least or given.shape[1] < 2:
        raise InputError(
            f"X: expected patterns (N, F), at least {least} of 2 points or more, "
            f"got shape {given.shape}"
        )
    dtype = torch.float32 if given.dtype == np.float32 else torch.float64
    cpu = torch.device("cpu")
    return as_patterns(given, given.shape[1], argument="X", dtype=dtype, device=cpu).numpy()


def as_known(
    known: Sequence[npt.ArrayLike] | Array, X: Array, *, names: Sequence[str] | None
) -> Array:
    """Check known components, and give them as an array (K, F) in float64."""
    listed = [] if known is None else list(known)
    if names is not None and len(names) != len(listed):
        raise InputError(f"names: expected one for each of {len(listed)} known, got {len(names)}")
    if names is not None and len(set(names)) < len(listed):
        raise InputError(f"names: expected names that differ, got {list(names)}")
    held = np.zeros((len(listed), X.shape[1]))
    for k, values in enumerate(listed):
        argument = f"known[{k}]" if names is None else f"known[{k}] ({names[k]!r})"
        cpu = torch.device("cpu")
        rows = as_patterns(
            values, X.shape[1], argument=argument, dtype=torch.float64, device=cpu
        ).numpy()
        if len(rows) != 1 or not rows.any():
            got = f"{len(rows)} patterns" if len(rows) != 1 else "nothing but zeros"
            raise InputError(f"{argument}: expected one pattern (F,), got {got}")
        held[k] = rows[0]
    return held


def _full(
    X: Array, known: Array, count: int, before: Array, *, loss: str | float, **options: Any
) -> Model:
    """Fit all patterns to convergence, from the data and from the fit with fewer components."""
    nmf = StreamingNMF(
        X.shape[1],
        count,
        components=list(before),
        fixed=[True] * len(known),
        loss=loss,
        device=options["device"],
        dtype=torch.float32 if X.dtype == np.float32 else torch.float64,
        seed=options["seed"],
    )
    nmf.append(X)
    H = nmf.refit(converge=True).components.astype(float)
    return descended(X, H, held=len(known), **options)


class _Errors:
    """Losses of what was hidden: by repeat, (M, R), and by stretch of a pattern, a cell.

    The gain of a component that is in a few patterns stands in a few cells: whether it is above
    the noise is told by many cells, and not by a handful of repeats of which one or two have it.
    """

    def __init__(self, hidden: list[Hidden], count: int) -> None:
        self._hidden = hidden
        shape = (len(hidden[0].rows), len(hidden[0].stretches))
        self._sums, self._times = np.zeros((count, *shape)), np.zeros(shape)
        for block in hidden:
            self._times[np.ix_(block.rows, block.stretches)] += 1
        self.by_repeat = np.zeros((count, len(hidden)))

    def add(self, m: int, repeat: int, losses: Array) -> None:
        """Take the losses of the cells of one repeat."""
        block = self._hidden[repeat]
        self._sums[m][np.ix_(block.rows, block.stretches)] += losses
        entries = len(losses) * block.lengths[block.stretches].sum()
        self.by_repeat[m, repeat] = losses.sum() / entries

    @property
    def by_cell(self) -> Array:
        """The mean over the times that a cell was hidden, (cells, M)."""
        told = self._times > 0
        return np.stack([sums[told] / self._times[told] for sums in self._sums], axis=1)


class Steps:
    """Counts what is done, and tells."""

    def __init__(self, progress: Progress | None, total: int) -> None:
        self._progress, self._total, self._count = progress, total, 0

    def done(self) -> None:
        """Count a fit."""
        self._count += 1
        if self._progress is not None:
            self._progress(self._count, self._total)


def _fraction(held_out: float) -> float:
    try:
        fraction = float(held_out)
    except (TypeError, ValueError):
        fraction = np.nan
    if not 0 < fraction <= 0.25:
        raise InputError(
            f"held_out: expected a part of the entries, above 0 and up to 0.25, got {held_out!r}"
        )
    return fraction


def _counts(n_components: int | Sequence[int] | None, n_known: int, most: int) -> list[int]:
    """Give the numbers of components to try, increasing."""
    least = max(1, n_known)
    if n_components is None:
        if least > most:
            raise InputError(
                f"X: too few patterns or points to hold some out beside {n_known} known components"
            )
        return list(range(least, min(max(_MOST, n_known + _MOST_FREE), most) + 1))
    try:
        last = operator.index(n_components)  # type: ignore[arg-type]
        counts = set(range(least, last + 1)) or {last}
    except TypeError:
        try:
            counts = {operator.index(count) for count in n_components}  # type: ignore[union-attr]
        except TypeError:
            counts = set()
    if not counts or min(counts) < least or max(counts) > most:
        raise InputError(
            f"n_components: expected numbers from {least} (there are {n_known} known components) "
            f"to {most} (what is left of the data when some is held out), got {n_components!r}"
        )
    return sorted(counts)


# --- the suggestion ------------------------------------------------------------------------


def suggestion(counts: Array, errors: Array) -> tuple[int, str]:
    """Suggest a number of components by the errors of what was hidden, and say why.

    Parameters
    ----------
    counts : ndarray (M,)
        What was tried, increasing.
    errors : ndarray (cells, M)
        Loss in each stretch of each pattern that was hidden.

    Returns
    -------
    int
        The number.
    str
        The reason, in a sentence.
    """
    if len(counts) == 1:
        return int(counts[0]), f"{_components(counts[0])} was all that was tried."
    best = int(errors.mean(axis=0).argmin())
    chosen = next(m for m in range(best + 1) if _excess(errors, m, best) <= 1.0)
    while chosen and _excess(errors, chosen - 1, chosen) < _SURE:
        chosen -= 1
    if chosen == len(counts) - 1:
        return _unsettled(counts, errors)
    return int(counts[chosen]), _settled(counts, errors, chosen, best)


def _excess(errors: Array, m: int, other: int) -> float:
    """Tell by how many standard errors the error of one is above that of another."""
    differences = errors[:, m] - errors[:, other]
    mean = float(differences.mean())
    error = float(differences.std()) / np.sqrt(max(len(differences) - 1, 1))
    return mean / error if error > 0 else float(np.inf * np.sign(mean) if mean else 0.0)


def _settled(counts: Array, errors: Array, chosen: int, best: int) -> str:
    """Say why where the error falls no more."""
    lead = f"The held-out error is lowest with {_components(counts[chosen])}"
    if chosen != best:
        lead = (
            f"The held-out error with {_components(counts[chosen])} is not above the lowest, that "
            f"with {counts[best]}, by more than its noise"
        )
    if not chosen:
        return f"{lead}; fewer were not tried."
    gain = _excess(errors, chosen - 1, chosen)
    told = "more than 100" if gain > 100 else f"{gain:.3g}"
    why = f"{lead}, and its gain over {counts[chosen - 1]} is {told} standard errors"
    halving = _last_halving(errors[:, : chosen + 1])
    if halving == chosen:
        return f"{why}."
    return (
        f"{why}; {_halving(counts, halving)} halves it, and more may be lines that move or widen."
    )


def _unsettled(counts: Array, errors: Array) -> tuple[int, str]:
    """Suggest where most of the fall is over, for an error that falls to the end, and say why."""
    last = len(counts) - 1
    chosen = _last_halving(errors)
    lead = f"The held-out error still falls at {counts[-1]}, the most that were tried"
    if chosen in (0, last):
        return int(counts[-1]), f"{lead}: try more."
    return int(counts[chosen]), (
        f"{lead}, as it does where lines move or widen from pattern to pattern, so that no number "
        f"explains all; {_halving(counts, chosen)} halves it."
    )


def _last_halving(errors: Array) -> int:
    """Tell which number is the last to lower the error to half; 0 where none does."""
    means = errors.mean(axis=0)
    halving = np.flatnonzero(means[1:] <= _HALF * means[:-1])
    return int(halving[-1]) + 1 if len(halving) else 0


def _halving(counts: Array, m: int) -> str:
    return f"{counts[m]} is the last number that" if m else "no number"


def _components(count: int) -> str:
    return "1 component" if count == 1 else f"{count} components"

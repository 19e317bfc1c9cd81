"""Which patterns of the data serve as components: ends first, then the most prominent others."""

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from .constraints import checked_count
from .counting import Progress, Steps, as_data, as_known
from .numerics import beta_of, check_numerics
from .results import FitResult
from .streaming import StreamingNMF

__all__ = ["Choice", "DataConstraints", "constraints_from_data"]

Array = npt.NDArray[Any]

#: What a pattern must differ from the members by, beside what noise makes two patterns differ by.
_NEW = 1.5
#: Directions beside one for each component that are taken out of the data to see the noise, and
#: how often they are turned to where most is.
_MORE, _ITERATIONS = 4, 4
#: Standard errors within which the share of a component in one pattern is that in another.
_AS_GOOD = 2.0
#: Squared relative residual below which a pattern is explained but for rounding.
_EXPLAINED = 1e-10


@dataclass(frozen=True)
class Choice:
    """A pattern of the data that was chosen as a component.

    Attributes
    ----------
    index : int
        Number of the pattern, from 0.
    prominence : float
        Share of the explained intensity that the free component had which it stands for; NaN
        where there was none.
    share : float
        Share of the intensity of this pattern that this component explained, NaN likewise.
    reason : str
        Why it was chosen.
    """

    index: int
    prominence: float
    share: float
    reason: str


@dataclass(frozen=True, eq=False)
class DataConstraints:
    """Components that are patterns of the data: N patterns, F points, K components.

    Attributes
    ----------
    indices : tuple of int
        Numbers of the patterns that are components, from 0, increasing.
    names : tuple of str
        Of all components: those of the known ones, then ``pattern <number>``.
    components : ndarray (K, F)
        The known ones as they were given, then the patterns of `indices` as they are in X.
    weights : ndarray (N, K)
        Weights of the components.
    shares : ndarray (N, K)
        Share of the explained intensity of each pattern, by components.
    history : tuple of Choice
        What was chosen, in order, and why.
    objective : float
        What the loss says over all N patterns.
    free_objective : float
        The same of the fit in which all but the known components are free: what it costs that
        components are patterns of the data.
    r_factor : ndarray (N,)
        R-factor of each pattern.
    n_known : int
        How many of the components were known.
    """

    indices: tuple[int, ...]
    names: tuple[str, ...]
    components: Array = field(repr=False)
    weights: Array = field(repr=False)
    shares: Array = field(repr=False)
    history: tuple[Choice, ...]
    objective: float
    free_objective: float
    r_factor: Array = field(repr=False)
    n_known: int

    @property
    def order(self) -> tuple[int, ...]:
        """Numbers of the patterns in the order in which they were chosen."""
        return tuple(choice.index for choice in self.history)


def constraints_from_data(
    X: npt.ArrayLike,
    n_components: int,
    *,
    known: Sequence[npt.ArrayLike] | Array = (),
    names: Sequence[str] | None = None,
    ends: bool | Sequence[int] = True,
    loss: str | float = "frobenius",
    seed: int = 0,
    device: str | torch.device = "auto",
    progress: Progress | None = None,
) -> DataConstraints:
    """Choose patterns of the data as the components.

    Parameters
    ----------
    X : array_like (N, F)
        Patterns as they are fitted, in the order in which they were measured, not negative.
    n_components : int
        K, the known components counted.
    known : sequence of array_like (F,), optional
        Known components, held from the start.
    names : sequence of str, optional
        Their names, ``known <number>`` by default.
    ends : bool or sequence of int, optional
        Whether the first and the last pattern are components, as far as they are new; or the
        numbers of the patterns that are, from 0, negative ones from the end.
    loss : {"frobenius", "kullback-leibler", "itakura-saito"} or float, optional
        As that of `StreamingNMF`.
    seed : int, optional
        Of the fits' starts.
    device : str or torch.device, optional
        ``"auto"``: CUDA where there is one, else the CPU.
    progress : callable, optional
        Called as ``progress(done, total)`` after each fit.

    Returns
    -------
    DataConstraints

    Raises
    ------
    InputError
        Where an argument has the wrong shape, sign or range; where `ends` asks for more components
        than there are, or for a pattern of zeros; where fewer patterns differ than are asked for.

    Notes
    -----
    The scheme of Maffettone, Daly and Olds, Appl. Phys. Rev. 8, 041410 (2021): the ends of a ramp
    are held first and the rest is fitted; of the free components the most prominent, which has the
    largest share of the explained intensity, gives way to the pattern in which its share is
    largest, and so on until all components are patterns. Two rules are added. A pattern that is
    not told from the members by more than the noise is no new one, and a free component that is
    largest in such patterns is the members' noise and not another phase: the next prominent one is
    taken. And the shares of feeble patterns are uncertain: the largest share is that of the highest
    lower bound.

    Examples
    --------
    >>> import numpy as np
    >>> phases = np.array([[9.0, 0, 1, 0], [0, 9, 0, 1], [1, 0, 9, 0]])
    >>> amounts = np.array([[1, 0, 0], [0.5, 0.5, 0], [0, 1, 0], [0, 0.3, 0.7], [0, 0, 1]])
    >>> constraints_from_data(amounts @ phases, 3, device="cpu").indices
    (0, 2, 4)
    """
    check_numerics(device=device, dtype=torch.float64, seed=seed)
    beta_of(loss)
    data = as_data(X, least=1)
    held = as_known(known, data, names=names)
    count = checked_count("n_components", n_components, least=len(held) + 1)
    if count - len(held) > len(data):
        raise InputError(
            f"n_components: expected at most {len(data) + len(held)}, as there are {len(data)} "
            f"patterns and {len(held)} known components, got {count}"
        )
    room = count - len(held)
    # Before anything is fitted, and again when it is known which ends are new.
    _asked(ends, data)
    steps = Steps(progress, 2 + room)
    options = {"loss": loss, "seed": seed, "device": device}
    search = _Search(data, held, count, options, steps)
    history = search.ends(ends)
    _check_room(history, room, ends)
    for _ in history:
        steps.done()
    while len(history) < room:
        history.append(search.next([choice.index for choice in history]))
    return search.end(history, names)


class _Search:
    """The patterns, what is known, and what their noise is."""

    def __init__(
        self, X: Array, known: Array, count: int, options: dict[str, Any], steps: Steps
    ) -> None:
        self._X, self._known, self._count = X, known, count
        self._options, self._steps = options, steps
        # Before data are squared, float32 is left.
        self._squares = (X.astype(float) ** 2).sum(1)
        self._noise = _noise(X, self._squares, count, seed=options["seed"])
        self.free_objective = self._fitted([], count).refit(converge=True).objective
        steps.done()

    def ends(self, ends: bool | Sequence[int]) -> list[Choice]:
        """Give the patterns to begin with: those that are asked for, or the ends that are new."""
        if ends is not True:
            asked = _asked(ends, self._X)
            return [Choice(index, np.nan, np.nan, "it was asked for") for index in asked]
        history: list[Choice] = []
        for which, index in {"first": 0, "last": len(self._X) - 1}.items():
            members = [choice.index for choice in history]
            first = not members and not len(self._known)
            if first or self._novelty(members)[index] > 1:
                history.append(Choice(index, np.nan, np.nan, f"it is the {which} pattern"))
        return history

    def next(self, members: list[int]) -> Choice:
        """Choose the next member."""
        model = self._fitted(members, self._count)
        result = model.refit(converge=True)
        self._steps.done()
        shares, errors, prominence = _shares(result, model.rows().errors)
        novelty = self._novelty(members)
        novelty[members] = 0.0
        free = range(len(self._known) + len(members), self._count)
        for k in sorted(free, key=lambda k: -prominence[k]):
            index = _purest(shares[:, k], errors[:, k], novelty)
            if index is not None:
                reason = (
                    f"of the free components the most prominent that is new ({prominence[k]:.2g} "
                    f"of the intensity) has its largest share there ({shares[index, k]:.2g})"
                )
                return Choice(index, float(prominence[k]), float(shares[index, k]), reason)
        return self._worst(novelty)

    def end(self, history: list[Choice], names: Sequence[str] | None) -> DataConstraints:
        """Solve for the weights of the members."""
        indices = sorted(choice.index for choice in history)
        result = self._fitted(indices, len(self._known) + len(indices)).refit(converge=True)
        self._steps.done()
        return DataConstraints(
            indices=tuple(indices),
            names=_named(names, len(self._known), indices),
            components=np.vstack([self._known, self._X[indices]]),
            weights=result.weights,
            shares=_shares(result, None)[0],
            history=tuple(history),
            objective=result.objective,
            free_objective=self.free_objective,
            r_factor=result.r_factor,
            n_known=len(self._known),
        )

    def _fitted(self, members: list[int], count: int) -> StreamingNMF:
        held = [*self._known, *self._X[members]]
        # In float64 a member explains itself to rounding.
        model = StreamingNMF(
            self._X.shape[1],
            count,
            components=held,
            fixed=[True] * len(held),
            dtype=torch.float64,
            **self._options,
        )
        model.append(self._X)
        return model

    def _novelty(self, members: list[int]) -> Array:
        """Tell how far patterns lie from the members beside what noise makes of equal ones, (N,).

        Above 1 a pattern is new. 0 is one that the members, which have noise of their own, explain
        but for rounding.
        """
        left, noise = self._squares.copy(), self._noise.copy()
        count = len(self._known) + len(members)
        if count:
            result = self._fitted(members, count).refit(converge=True)
            left = self._squared(result.r_factor)
            of_members = result.weights[:, len(self._known) :].astype(float)
            noise += of_members**2 @ self._noise[members]
        floor = _EXPLAINED * self._squares
        # A noise that is lost in rounding is as good as none.
        told = np.divide(left, _NEW * np.maximum(noise, floor), where=left > floor, out=left * 0)
        return np.asarray(told)

    def _worst(self, novelty: Array) -> Choice:
        """Choose the pattern that the members explain worst, for want of a better one."""
        index = int(novelty.argmax())
        if not novelty[index] > 0:
            raise InputError(
                f"n_components: {self._count} are more than patterns in X that differ; choose fewer"
            )
        reason = "no free component stands for a new pattern, and this one is explained worst"
        return Choice(index, np.nan, np.nan, reason)

    def _squared(self, r_factor: Array) -> Array:
        """Squared residuals of the patterns, (N,)."""
        # Of a pattern of zeros that something is fitted to, it is infinite.
        squared: Array = np.nan_to_num(r_factor.astype(float), posinf=0.0) ** 2 * self._squares
        return squared


def _asked(ends: bool | Sequence[int], X: Array) -> list[int]:
    """Give the numbers of the patterns that may be begun with."""
    N = len(X)
    try:
        numbers = [0, N - 1] if ends is True else [] if ends is False else [*ends]
        indices = list(dict.fromkeys(range(N)[operator.index(number)] for number in numbers))
    except (TypeError, IndexError):
        raise InputError(
            f"ends: expected True, False or numbers of patterns, up to {N - 1}, got {ends!r}"
        ) from None
    for index in indices:
        if not X[index].any():
            raise InputError(
                f"ends: pattern {index} is nothing but zeros; leave it out of X, or give the "
                "numbers of others"
            )
    return indices


def _check_room(history: Sequence[Choice], room: int, ends: bool | Sequence[int]) -> None:
    if len(history) > room:
        taken = ", ".join(str(choice.index) for choice in history)
        raise InputError(
            f"n_components: ends={ends!r} holds the patterns {taken}, and there is room for {room} "
            "beside the known components; raise n_components, or give ends=False or fewer numbers"
        )


def _noise(X: Array, squares: Array, count: int, *, seed: int) -> Array:
    """Estimate the squared noise of patterns, (N,): what more directions than components leave."""
    N, F = X.shape
    most = min(count + _MORE, N - 1, F // 2)
    if most <= count:
        # Nothing is left to see noise in: any difference is taken for one.
        return np.zeros(N)
    basis = np.random.default_rng(seed).standard_normal((F, most))
    for _ in range(_ITERATIONS):
        basis = np.linalg.qr(X.T @ (X @ basis))[0]
    left = np.maximum(squares - ((X @ basis) ** 2).sum(1), 0.0) / (1 - most / N)
    # A direction may be the noise of one pattern; so none has less than is usual, for its counts.
    intensity = X.sum(1, dtype=float)
    usual = np.median(left) * np.minimum(1.0, intensity / max(np.median(intensity), 1e-300))
    noise: Array = np.maximum(left, usual)
    return noise


def _shares(result: FitResult, errors: Array | None) -> tuple[Array, Array, Array]:
    """Give shares of the explained intensity (N, K), their errors, and the shares of all (K,)."""
    area = result.components.astype(float).sum(1)
    amounts = result.weights.astype(float) * area
    whole = amounts.sum(1, keepdims=True)
    whole = np.where(whole > 0, whole, 1.0)
    spread = np.zeros_like(amounts) if errors is None else np.nan_to_num(errors) * area
    return amounts / whole, spread / whole, amounts.sum(0) / max(amounts.sum(), 1e-300)


def _purest(shares: Array, errors: Array, novelty: Array) -> int | None:
    """Choose the pattern in which a component has its largest share; None where that is not new."""
    # Members themselves are explained without any free component.
    least = shares - errors
    if not least.max() > 0:
        return None
    as_good: Array = (shares + _AS_GOOD * errors >= least.max()) & (novelty > 1)
    return int(np.where(as_good, least, -np.inf).argmax()) if as_good.any() else None


def _named(names: Sequence[str] | None, n_known: int, indices: Sequence[int]) -> tuple[str, ...]:
    known = [f"known {k + 1}" for k in range(n_known)] if names is None else [*names]
    labels = [f"pattern {index}" for index in indices]
    return (*known, *(f"{label} of the data" if label in known else label for label in labels))

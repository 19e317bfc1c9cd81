"""A factorization that grows: append a pattern, refit from where it stood, change constraints."""

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from .blocks import Blocks
from .components import Components, as_patterns
from .constraints import checked_count
from .results import FitResult, RowFit, relative
from .seeds import data_seeds, match_components, seed_worst
from .sweeps import Descent, descend, exact_weights, residuals
from .updates import weight_errors

__all__ = ["FitResult", "RowFit", "StreamingNMF", "check_numerics"]

Array = npt.NDArray[Any]

#: Sweeps and relative decrease of a refit between events.
_EVENT_SWEEPS, _EVENT_TOL = 4, 1e-4
#: Sweeps by which the starts of a converged refit are told apart, and how many go on.
_TRIAL_SWEEPS, _FINALISTS = 30, 3
#: How much worse than the fit that stands a start may be after its trial and still be followed.
_PROMISING = 1.1
#: Most sweeps of a converged refit, and the relative decrease over 20 sweeps that ends it.
_MAX_SWEEPS, _TOL = 2000, 1e-5
#: What a start that depends on the history must win by: within this the data's own start is
#: taken, so that the end does not depend on timing.
_MARGIN = 2e-4


class StreamingNMF:
    """X ≈ W H over rows that arrive one by one, with W, H ≥ 0 and some components held fixed.

    Parameters
    ----------
    n_features : int
        F, points of a pattern.
    n_components : int
        K.
    names : sequence of str or None, optional
        Names of the components; those without one become ``unknown 1``, ``unknown 2``, ….
    components : sequence of array_like (F,) or None, optional
        Patterns to hold or to start from; missing ones are seeded from the data.
    fixed : sequence of bool, optional
        Which components are held; missing flags mean free.
    loss : {"frobenius"}, optional
        ½‖X - WH‖².
    device : str or torch.device, optional
        ``"auto"``: CUDA where there is one, else the CPU.
    dtype : torch.dtype, optional
        What patterns are stored in and the result is given in. Arithmetic is in float64.
    seed : int, optional
        Seed of the draws among the starts of a converged refit.

    Raises
    ------
    InputError
        Where an argument has the wrong shape, sign or length.

    Notes
    -----
    The scale that the factorization leaves free is pinned: after each refit a free component has
    maximum 1; a held one is never rescaled and comes back bit-identical.

    Examples
    --------
    >>> import numpy as np
    >>> model = StreamingNMF(3, 2, names=["known"], components=[[1.0, 0, 0]], fixed=[True])
    >>> model.append([[1.0, 0, 0], [1.0, 0, 2.0]])
    >>> result = model.refit()
    >>> result.names, result.fixed
    (('known', 'unknown 1'), (True, False))
    >>> np.round(result.weights, 6)
    array([[1., 0.],
           [1., 2.]], dtype=float32)
    """

    def __init__(
        self,
        n_features: int,
        n_components: int,
        *,
        names: Sequence[str | None] | None = None,
        components: Sequence[Any] | Array | torch.Tensor | None = None,
        fixed: Sequence[bool] = (),
        loss: str = "frobenius",
        device: str | torch.device = "auto",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
    ) -> None:
        n_features = checked_count("n_features", n_features)
        n_components = checked_count("n_components", n_components)
        check_numerics(device=device, dtype=dtype, seed=seed)
        if loss != "frobenius":
            raise InputError(f"loss: expected 'frobenius', got {loss!r}")
        self.device = _device(device)
        self.dtype, self.loss, self.seed = dtype, loss, seed
        self._components = Components.build(
            n_features,
            n_components,
            names=names,
            components=components,
            fixed=fixed,
            dtype=dtype,
            device=self.device,
        )
        self._X = Blocks(n_features, dtype=dtype, device=self.device)
        self._W = torch.zeros(0, n_components, dtype=torch.float64, device=self.device)
        self._result: FitResult | None = None
        self._changed = False

    @property
    def n_features(self) -> int:
        """F, points of a pattern."""
        return self._X.n_features

    @property
    def n_patterns(self) -> int:
        """N, patterns appended so far."""
        return len(self._X)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the components, in order."""
        return tuple(self._components.names)

    @property
    def fixed(self) -> tuple[bool, ...]:
        """Which components are held."""
        return tuple(self._components.fixed)

    @property
    def components(self) -> Array:
        """The components as they are now, (K, F); zeros where one has no shape yet."""
        return np.array(self._components.H.to(self.dtype).cpu().numpy())

    @property
    def result(self) -> FitResult | None:
        """The latest refit, None before the first."""
        return self._result

    def append(self, patterns: npt.ArrayLike | torch.Tensor) -> None:
        """Append one pattern (F,) or several (M, F); they take part from the next refit on.

        Raises
        ------
        InputError
            Where the shape is another one, or a value is negative or not finite: nothing is
            appended then.
        """
        self._X.append(self._patterns(patterns, "patterns"))
        self._changed = True

    def refit(self, converge: bool = False) -> FitResult:
        """Refit all patterns, from where the last refit stood.

        Parameters
        ----------
        converge : bool, optional
            Go on until the objective falls by less than 1e-5 of itself in 20 sweeps, and also
            from starts that depend on the data alone; take the best.

        Returns
        -------
        FitResult

        Raises
        ------
        InputError
            Where no pattern was appended yet.
        """
        if not len(self._X):
            raise InputError("refit: expected at least one pattern; append one first")
        started = time.perf_counter()
        found = self._converge() if converge else self._follow()
        return self._adopt(found, started)

    def improve(self, budget: float) -> bool:
        """Look for a better fit from starts that depend on the data alone.

        Parameters
        ----------
        budget : float
            Seconds; at most one sweep, or the seeding of one start, more is spent.

        Returns
        -------
        bool
            Whether a better fit was found; it is then the `result`. Free components keep their
            names by overlap.
        """
        started = time.perf_counter()
        if not len(self._X) or not self._components.free:
            return False
        deadline = started + budget
        # What is to be improved on is the fit of what is there now.
        result = self.refit() if self._result is None or self._changed else self._result
        best = self._explore(started, deadline)
        # Less than this is no reason to redraw everything.
        if best.objective >= (1 - _MARGIN) * result.objective:
            return False
        self._adopt(self._matched(best), started)
        return True

    def _explore(self, started: float, deadline: float) -> Descent:
        """Go on from where the fit stands, try other starts, and follow the best of them."""
        third = started + (deadline - started) / 3
        own = self._descend(self._W, self._components.H, tol=_EVENT_TOL, deadline=third)
        best: Descent | None = None
        for W, H in self._starts():
            if time.perf_counter() >= deadline:
                break
            found = self._descend(W, H, max_sweeps=_TRIAL_SWEEPS, deadline=deadline)
            if best is None or found.objective < best.objective:
                best = found
        if best is None or best.objective > _PROMISING * own.objective:
            best = own
        best = self._descend(best.W, best.H, tol=_EVENT_TOL, deadline=deadline)
        return min(own, best, key=lambda end: end.objective)

    def rows(self, start: int = 0, stop: int | None = None) -> RowFit:
        """Tell how the patterns from ``start`` to ``stop`` are explained by the latest refit."""
        start, stop, _ = slice(start, stop).indices(len(self._W))
        H, W = self._components.H, self._W[start:stop]
        squared, norms = residuals(self._X, W, H, start, stop), self._X.norms[start:stop]
        # With one point for each weight nothing is left to take the noise from.
        spare = (self.n_features - (W > 0).sum(1)).to(W.dtype)
        variance = torch.where(spare > 0, squared / spare.clamp_min(1), math.nan)
        errors = weight_errors(W, H @ H.T, variance)
        fit = W[-1] @ H if len(W) else H.new_zeros(self.n_features)
        return RowFit(
            weights=W.cpu().numpy().copy(),
            errors=errors.cpu().numpy(),
            r_factor=relative(squared, norms).sqrt().cpu().numpy(),
            unexplained=self._unexplained(W, start, stop).cpu().numpy(),
            reconstruction=fit.to(self.dtype).cpu().numpy(),
        )

    def patterns(self, start: int = 0, stop: int | None = None) -> Array:
        """Patterns as they were appended, (M, F)."""
        start, stop, _ = slice(start, stop).indices(len(self._X))
        empty = torch.empty(0, self.n_features, dtype=torch.float64, device=self.device)
        chunks = [empty, *(rows for _, rows in self._X.chunks(start, stop))]
        return np.array(torch.cat(chunks).to(self.dtype).cpu().numpy())

    def fix(self, name: str, pattern: npt.ArrayLike | torch.Tensor | None = None) -> None:
        """Hold a component at a pattern (F,), or at the shape that it has.

        Raises
        ------
        ComponentError
            Where no component has this name.
        InputError
            Where the pattern cannot be used, or none is given and the component has no shape.
        """
        k = self._components.index(name)
        self._components.pin(k, None if pattern is None else self._pattern(pattern))
        self._changed = True

    def release(self, name: str) -> None:
        """Let a component go free; it starts from where it was held."""
        self._components.fixed[self._components.index(name)] = False
        self._changed = True

    def add_component(
        self,
        name: str | None = None,
        pattern: npt.ArrayLike | torch.Tensor | None = None,
        fixed: bool = False,
    ) -> str:
        """Append a component and return its name; without a pattern it is seeded from the data.

        Raises
        ------
        ComponentError
            Where the name is taken.
        InputError
            Where the pattern cannot be used, or ``fixed`` is set without one.
        """
        if fixed and pattern is None:
            raise InputError("pattern: a fixed component needs a pattern to hold, got None")
        name = self._components.new_name(name)
        values = None if pattern is None else self._pattern(pattern)
        self._components.add(name, values, fixed=fixed)
        self._W = torch.cat([self._W, self._W.new_zeros(len(self._W), 1)], 1)
        self._changed = True
        return name

    def remove_component(self, name: str) -> None:
        """Take a component out.

        Raises
        ------
        ComponentError
            Where no component has this name.
        InputError
            Where it is the last one.
        """
        k = self._components.index(name)
        if len(self._components) == 1:
            raise InputError(f"name: {name!r} is the only component; add another one first")
        self._components.remove(k)
        self._W = torch.cat([self._W[:, :k], self._W[:, k + 1 :]], 1)
        self._changed = True

    def state(self) -> dict[str, Array]:
        """Everything needed to go on later, as plain arrays: `numpy.savez` takes it as it is."""
        return {
            "patterns": self._X.stored().cpu().numpy(),
            "weights": self._W.cpu().numpy().copy(),
            "components": self._components.H.cpu().numpy().copy(),
            "names": np.array(self._components.names, dtype=np.str_),
            "fixed": np.array(self._components.fixed, dtype=bool),
            "loss": np.array(self.loss),
            "seed": np.array(self.seed),
        }

    @classmethod
    def from_state(
        cls, state: Mapping[str, npt.ArrayLike], *, device: str | torch.device = "auto"
    ) -> "StreamingNMF":
        """Build the factorization that `state` was taken of; `refit` goes on from there.

        Raises
        ------
        InputError
            Where an array is missing or the arrays do not fit together.
        """
        needed = ("patterns", "weights", "components", "names", "fixed", "loss", "seed")
        missing = [key for key in needed if key not in state]
        if missing:
            raise InputError(f"state: expected the arrays {needed}, {missing} are missing")
        arrays = {key: np.asarray(state[key]) for key in needed}
        patterns, weights, components = (arrays[key] for key in needed[:3])
        if (
            components.ndim != 2
            or patterns.shape[1:] != components.shape[1:]
            or weights.shape[1:] != components.shape[:1]
            or len(weights) > len(patterns)
            or not len(components) == len(arrays["names"]) == len(arrays["fixed"])
        ):
            raise InputError(
                "state: expected patterns (N, F), weights (at most N, K), components (K, F), "
                f"names (K,) and fixed (K,), got {patterns.shape}, {weights.shape}, "
                f"{components.shape}, {arrays['names'].shape} and {arrays['fixed'].shape}"
            )
        model = cls(
            components.shape[1],
            len(components),
            names=[str(name) for name in arrays["names"]],
            components=list(components),
            fixed=arrays["fixed"].tolist(),
            loss=str(arrays["loss"]),
            device=device,
            dtype=torch.as_tensor(patterns[:0]).dtype,
            seed=int(arrays["seed"]),
        )
        if len(patterns):
            model.append(patterns)
        # The constructor rounds components to ``dtype``; these are masters in float64.
        model._components.H = torch.tensor(components, dtype=torch.float64, device=model.device)
        model._W = torch.tensor(weights, dtype=torch.float64, device=model.device)
        return model

    # --- refits ----------------------------------------------------------------------------

    def _follow(self) -> Descent:
        """Bring the factors up to the newest pattern, from where they stood."""
        H, empty = self._components.H, self._components.shapeless
        if empty:
            W, H = seed_worst(self._X, H, empty, residual=True)
        else:
            W = self._weights_so_far()
        return self._descend(W, H, max_sweeps=_EVENT_SWEEPS, tol=_EVENT_TOL)

    def _converge(self) -> Descent:
        followed = self._follow()
        if not self._components.free:
            return followed
        trials = [self._descend(*start, max_sweeps=_TRIAL_SWEEPS) for start in self._starts()]
        trials.sort(key=lambda trial: trial.objective)
        ends = [self._descend(trial.W, trial.H) for trial in trials[:_FINALISTS]]
        best = min(ends, key=lambda end: end.objective)
        own = self._descend(followed.W, followed.H)
        if own.objective < (1 - _MARGIN) * best.objective:
            return own
        return self._matched(best)

    def _starts(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return data_seeds(self._X, self._components.H, self._components.free, seed=self.seed)

    def _descend(
        self,
        W: torch.Tensor,
        H: torch.Tensor,
        *,
        max_sweeps: int = _MAX_SWEEPS,
        tol: float = _TOL,
        deadline: float = math.inf,
    ) -> Descent:
        free = self._components.free
        return descend(self._X, W, H, free=free, max_sweeps=max_sweeps, tol=tol, deadline=deadline)

    def _weights_so_far(self) -> torch.Tensor:
        new = exact_weights(self._X, self._components.H, len(self._W))
        return torch.cat([self._W, new])

    def _matched(self, found: Descent) -> Descent:
        """Give the free components of another start the names that they had."""
        order = match_components(found.H, self._components.H, self._components.free)
        return replace(found, W=found.W[:, order], H=found.H[order])

    def _adopt(self, found: Descent, started: float) -> FitResult:
        free = torch.tensor(self._components.free, dtype=torch.long, device=self.device)
        scale = torch.ones(len(found.H), dtype=torch.float64, device=self.device)
        scale[free] = found.H[free].amax(1)
        scale = torch.where(scale > 0, scale, 1.0)
        self._components.H = torch.where(scale[:, None] == 1, found.H, found.H / scale[:, None])
        self._W = found.W * scale
        self._changed = False
        self._result = FitResult(
            names=self.names,
            fixed=self.fixed,
            objective=found.objective,
            n_patterns=len(self._X),
            converged=found.converged,
            seconds=time.perf_counter() - started,
            _W=self._W.to(self.dtype),
            _H=self._components.H.to(self.dtype),
            _squared_residual=found.squared,
            _squared_norm=self._X.norms,
        )
        return self._result

    # --- details ---------------------------------------------------------------------------

    def _patterns(self, values: npt.ArrayLike | torch.Tensor, argument: str) -> torch.Tensor:
        return as_patterns(
            values, self.n_features, argument=argument, dtype=self.dtype, device=self.device
        )

    def _pattern(self, values: npt.ArrayLike | torch.Tensor) -> torch.Tensor:
        patterns = self._patterns(values, "pattern")
        if len(patterns) != 1:
            raise InputError(f"pattern: expected one pattern, got {len(patterns)}")
        return patterns[0].to(torch.float64)

    def _unexplained(self, W: torch.Tensor, start: int, stop: int) -> torch.Tensor:
        over, total = [W.new_zeros(0)], [W.new_zeros(0)]
        for first, rows in self._X.chunks(start, stop):
            fit = W[first - start : first - start + len(rows)] @ self._components.H
            over.append((rows - fit).clamp_min(0).sum(1))
            total.append(rows.sum(1))
        return relative(torch.cat(over), torch.cat(total))


def check_numerics(*, device: str | torch.device, dtype: torch.dtype, seed: int) -> None:
    """Check how a factorization is to compute, before there are data.

    Raises
    ------
    InputError
        Where the device is not there, ``dtype`` is neither float32 nor float64, or ``seed`` is no
        whole number from 0 to 2⁶³ - 1.
    """
    _device(device)
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")
    checked_count("seed", seed, least=0, most=2**63 - 1)


def _device(device: str | torch.device) -> torch.device:
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(0, device=chosen)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(
            f"device: expected 'auto' or a torch device of this machine, got {device!r} ({error})"
        ) from error
    return chosen

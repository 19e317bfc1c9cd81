"""A factorization that grows: append a pattern, refit from where it stood, change constraints."""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import InputError
from .checkpoint import FIT_STATE, STRAIN_STATE, checked_state, families_of, family_state
from .components import Components, as_patterns, as_rows
from .composition import Composition
from .constraints import checked_count, checked_flag, checked_number, checked_seconds
from .covariance import Noises
from .deadline import Deadline
from .deviceblocks import blocks_on
from .explaining import explain_rows, reconstruct_rows, strains_at_bounds
from .families import Family
from .kernels import device_products, warm_up
from .numerics import beta_of, check_numerics, chosen_device
from .results import FitResult, RowFit
from .strainedfactors import StrainedFactors

__all__ = ["FitResult", "RowFit", "StreamingNMF"]

Array = npt.NDArray[Any]


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
    loss : {"frobenius", "kullback-leibler", "itakura-saito"} or float, optional
        ½‖X - WH‖², or the beta-divergence of X from WH: 1 is Kullback and Leibler's, right for
        counts, 0 Itakura and Saito's. Below 1 zeros in the data make many minima: where counts are
        few, fits between events may be far above the best.
    device : str or torch.device, optional
        ``"auto"``: CUDA where there is one and nothing is strained, else the CPU.
    dtype : torch.dtype, optional
        What patterns are stored in and the result is given in. Arithmetic is in float64.
    seed : int, optional
        Seed of the draws among the starts of a converged refit.
    alpha, l1_ratio : float, optional
        Penalty on both factors as in `NMF.fit`: ``alpha * l1_ratio`` times their sum and
        ``alpha * (1 - l1_ratio) / 2`` times the sum of their squares.
    sum_to_one : bool, optional
        Weights of a pattern add up to 1: fractions.
    families : mapping of str to Family, optional
        Components whose shape has a strain of its own in each pattern, by name: they are held,
        and the strain is fitted with the weights. Their entry in ``components`` is the family's
        shape, given or not. For the loss ``"frobenius"`` alone.

    Raises
    ------
    InputError
        Where an argument has the wrong shape, sign or length.

    Notes
    -----
    The scale that the factorization leaves free is pinned: after each refit a free component has
    maximum 1; a held one is never rescaled and comes back bit-identical. A penalty, weights that
    are held or that add up to 1 say what the scale is, and then it is left alone.

    An event costs the same for 1,000 patterns as for 100,000: beyond some hundreds the weights of
    older patterns are solved anew a few at a time, and a search follows the fit in small steps
    beside the events. `refresh` and a converged refit bring all of them up to date, and `improve`
    does where it finds a better fit.

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
        loss: str | float = "frobenius",
        device: str | torch.device = "auto",
        dtype: torch.dtype = torch.float32,
        seed: int = 0,
        alpha: float = 0.0,
        l1_ratio: float = 0.0,
        sum_to_one: bool = False,
        families: Mapping[str, Family] | None = None,
    ) -> None:
        n_features = checked_count("n_features", n_features)
        n_components = checked_count("n_components", n_components)
        check_numerics(device=device, dtype=dtype, seed=seed)
        beta = beta_of(loss)
        # With strains the kernels of the CPU are faster than any device.
        chosen = "cpu" if device == "auto" and families else device
        self.device = chosen_device(chosen)
        self.dtype, self.loss, self.seed = dtype, loss, seed
        given = Components.build(
            n_features,
            n_components,
            names=names,
            components=components,
            fixed=fixed,
            dtype=dtype,
            device=self.device,
        )
        self.alpha, self.l1_ratio = (
            checked_number("alpha", alpha),
            checked_number("l1_ratio", l1_ratio, most=1),
        )
        self.sum_to_one = checked_flag("sum_to_one", sum_to_one)
        self._composition = Composition(
            given,
            loss=loss,
            dtype=dtype,
            alpha=self.alpha,
            l1_ratio=self.l1_ratio,
            sum_to_one=self.sum_to_one,
        )
        self._composition.strain(families or {})
        if self.device.type == "cpu":
            # Now, and not at the first pattern.
            warm_up(beta=beta)
        else:
            device_products(self.device)
        self._X = blocks_on(n_features, dtype=dtype, device=self.device)
        self._fit = self._composition.fit(self._X, seed=seed)
        self._exact = True
        self._result: FitResult | None = None
        self._changed = self._rebuild = False

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
        return self._composition.names

    @property
    def fixed(self) -> tuple[bool, ...]:
        """Which components are held."""
        return tuple(self._composition.components.fixed)

    @property
    def families(self) -> dict[str, Family]:
        """Components that are strained, by name."""
        return dict(self._composition.families)

    @property
    def components(self) -> Array:
        """The components as they are now, (K, F); zeros where one has no shape yet."""
        H = self._composition.components.H if self._rebuild else self._fit.factors.shapes
        return np.array(H.to(self.dtype).cpu().numpy())

    @property
    def result(self) -> FitResult | None:
        """The latest refit, None before the first."""
        return self._result

    def append(
        self, patterns: npt.ArrayLike | torch.Tensor, weights: npt.ArrayLike | None = None
    ) -> None:
        """Append one pattern (F,) or several (M, F); they take part from the next refit on.

        Parameters
        ----------
        patterns : array_like (F,) or (M, F)
            Intensities, not negative.
        weights : array_like (K,) or (M, K), optional
            Weights that are held for these patterns; NaN where they are free.

        Raises
        ------
        InputError
            Where a shape is another one, or a value is negative or not finite: nothing is
            appended then.
        """
        rows: Array | torch.Tensor
        # Checked where they are: a device is not waited for.
        if isinstance(patterns, torch.Tensor):
            place = patterns.device if patterns.device.type == "cpu" else self.device
            rows = as_patterns(
                patterns, self.n_features, argument="patterns", dtype=self.dtype, device=place
            )
        else:
            rows = as_rows(patterns, self.n_features, argument="patterns", dtype=self.dtype)
        composition = self._composition
        composition.held.append(len(self._X), len(rows), weights)
        self._X.append(rows)
        self._changed = True
        if composition.held.used and not self._rebuild and composition.rules != self._fit.rules:
            # Weights are held now, or say what the scale of a component is.
            composition.follow(self._fit)
            self._rebuild = True

    def refit(self, converge: bool = False) -> FitResult:
        """Refit all patterns, from where the last refit stood.

        Parameters
        ----------
        converge : bool, optional
            Go on until the objective falls by less than 1e-5 of itself in 20 sweeps, also from
            starts that depend on the data alone, and from others beside the best of these; take
            the best.

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
        if self._rebuild:
            self._fit, self._rebuild = self._composition.fit(self._X, seed=self.seed), False
        self._exact = self._fit.follow()
        self._changed = False
        if converge:
            converged, self._exact = self._fit.converge(), True
            return self._publish(started, converged=converged)
        return self._publish(started, converged=not self._fit.rules.free, latest=True)

    @property
    def settled(self) -> bool:
        """Whether `improve` has come to its end, or to that of its budget where they are few."""
        return not self._changed and (not self._free or self._fit.search.settled)

    def improve(self, budget: float, *, interrupted: Callable[[], bool] | None = None) -> bool:
        """Look for a better fit: from where the fit stands, and from other starts.

        Parameters
        ----------
        budget : float
            Seconds; at most one step more is spent: a sweep, the seeding of a component, or the
            weights of some hundred patterns. Where there are many patterns the search goes on, at
            the next call, from where it stopped.
        interrupted : callable, optional
            Tells whether to stop earlier; asked every few milliseconds.

        Returns
        -------
        bool
            Whether a better fit was found; it is then the `result`. Free components keep their
            names by overlap.

        Raises
        ------
        InputError
            Where the budget is no number of at least 0.
        """
        started, budget = time.perf_counter(), checked_seconds("budget", budget)
        if not len(self._X) or not self._free:
            return False
        # What is to be improved on is the fit of what is there now.
        if self._result is None or self._changed:
            self.refit()
        found = self._fit.search.improve(Deadline(started + budget, interrupted))
        if found:
            self._exact = not self._fit.sampled
            self._publish(started, converged=False)
        return found

    def refresh(self) -> FitResult:
        """Solve for the weights of all patterns, for the components as they are.

        Raises
        ------
        InputError
            Where no pattern was appended yet.
        """
        started = time.perf_counter()
        result = self.refit() if self._result is None or self._changed else self._result
        if self._exact:
            return result
        self._fit.refresh()
        self._exact = True
        return self._publish(started, converged=False)

    def rows(
        self, start: int = 0, stop: int | None = None, *, noises: Noises | None = None
    ) -> RowFit:
        """Tell how the patterns from ``start`` to ``stop`` are explained by the latest refit.

        Parameters
        ----------
        start, stop : int, optional
            Which patterns, as slices take them.
        noises : sequence of callable or None, optional
            The noise of each of these patterns: a callable that gives, for vectors (K, F) in
            float64, the covariance (K, K) of ``vectors @ pattern``. None, for one or for all,
            takes it from the residual: the same in all points for least squares, in proportion
            to v^(2-β) at the fit v for the β-divergence.

        Returns
        -------
        RowFit

        Raises
        ------
        InputError
            Where ``noises`` is none for each of the patterns, or gives another shape.

        Notes
        -----
        Covariances are Huber and White's sandwich, ``bread⁻¹ · meat · bread⁻¹``, on the weights
        that are positive and not held (on their plane, where they add up to 1): the bread holds
        the second derivatives of the loss and the penalty, the meat is the covariance of the
        first ones. For ½‖x - wH‖² these are HHᵀ and the noise of Hx. For the β-divergence they
        are H diag((β-1) v^(β-2) + (2-β) x v^(β-3)) Hᵀ and the noise of (H v^(β-2)) x. They are
        conditional on the components' shapes, which are taken as exact, and do not hold near
        zero, where a weight cannot scatter to both sides (White, Econometrica 50, 1 (1982)).
        """
        start, stop, _ = slice(start, stop).indices(len(self._fit.factors))
        return explain_rows(self._fit.factors, start, stop, noises, dtype=self.dtype)

    def patterns(self, start: int = 0, stop: int | None = None) -> Array:
        """Patterns as they were appended, (M, F)."""
        start, stop, _ = slice(start, stop).indices(len(self._X))
        empty = torch.empty(0, self.n_features, dtype=torch.float64, device=self.device)
        chunks = [empty, *(rows for _, rows in self._X.chunks(start, stop))]
        return np.array(torch.cat(chunks).to(self.dtype).cpu().numpy())

    def reconstruction(self, start: int = 0, stop: int | None = None) -> Array:
        """Give what the last fit makes of the patterns, (M, F): components times weights.

        Components with a strain are stretched by that of each pattern. Patterns that came after
        the last refit are left out.
        """
        start, stop, _ = slice(start, stop).indices(len(self._fit.factors))
        rows = reconstruct_rows(self._fit.factors, start, stop)
        return np.array(rows.to(self.dtype).cpu().numpy())

    def strains_at_bounds(self, start: int = 0, stop: int | None = None) -> dict[str, list[int]]:
        """Tell which patterns have the strain of a component at one of its bounds, by component."""
        start, stop, _ = slice(start, stop).indices(len(self._fit.factors))
        return strains_at_bounds(self._fit.factors, start, stop, names=self.names)

    def fix(
        self,
        name: str,
        pattern: npt.ArrayLike | torch.Tensor | None = None,
        *,
        family: Family | None = None,
    ) -> None:
        """Hold a component at a pattern (F,), at the shape that it has, or at a family's.

        At another pattern a component has no strain any more.

        Raises
        ------
        ComponentError
            Where no component has this name.
        InputError
            Where the pattern cannot be used, or none is given and the component has no shape.
        """
        with self._changing():
            self._composition.fix(name, pattern, family)

    def release(self, name: str) -> None:
        """Let a component go free; it starts from where it was held, and has no strain any more."""
        with self._changing():
            self._composition.release(name)

    def add_component(
        self,
        name: str | None = None,
        pattern: npt.ArrayLike | torch.Tensor | None = None,
        fixed: bool = False,
        *,
        family: Family | None = None,
    ) -> str:
        """Append a component and return its name; without a pattern it is seeded from the data.

        With a family it is held, and has a strain.

        Raises
        ------
        ComponentError
            Where the name is taken.
        InputError
            Where the pattern cannot be used, or ``fixed`` is set without one.
        """
        with self._changing():
            return self._composition.add(name, pattern, fixed, family)

    def remove_component(self, name: str) -> None:
        """Take a component out.

        Raises
        ------
        ComponentError
            Where no component has this name.
        InputError
            Where it is the last one.
        """
        with self._changing():
            self._composition.remove(name)

    def fix_weights(self, name: str, weights: npt.ArrayLike) -> None:
        """Hold the weights of a component.

        Parameters
        ----------
        name : str
            The component.
        weights : float or array_like (N,)
            One number for all patterns, also those to come; or one for each pattern so far, NaN
            where it is free.

        Raises
        ------
        ComponentError
            Where no component has this name.
        InputError
            Where the shape is another one, or a weight is negative or infinite.
        """
        with self._changing():
            self._composition.components.index(name)
            self._composition.held.fix(name, weights, len(self._X))

    def release_weights(self, name: str) -> None:
        """Let all weights of a component go free.

        Raises
        ------
        ComponentError
            Where no component has this name.
        """
        with self._changing():
            self._composition.components.index(name)
            self._composition.held.release(name, len(self._X))

    def state(self) -> dict[str, Array]:
        """Everything needed to go on later, as plain arrays: `numpy.savez` takes it as it is."""
        made = self._composition
        # After a change of constraints weights are solved for anew.
        fit = made.fit(self._X, seed=self.seed) if self._rebuild else self._fit
        return {
            "patterns": self._X.stored().cpu().numpy(),
            **fit.state(),
            "names": np.array(self.names, dtype=np.str_),
            "fixed": np.array(self.fixed, dtype=bool),
            **made.held.state(len(self._X)),
            "loss": np.array(self.loss),
            "seed": np.array(self.seed),
            "alpha": np.array(self.alpha),
            "l1_ratio": np.array(self.l1_ratio),
            "sum_to_one": np.array(self.sum_to_one),
            **family_state(made.families),
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
        arrays = checked_state(state)
        patterns, components = arrays["patterns"], arrays["components"]
        model = cls(
            components.shape[1],
            len(components),
            names=[str(name) for name in arrays["names"]],
            components=list(components),
            fixed=arrays["fixed"].tolist(),
            loss=arrays["loss"].item(),
            device=device,
            dtype=torch.as_tensor(patterns[:0]).dtype,
            seed=int(arrays["seed"]),
            alpha=float(arrays["alpha"]),
            l1_ratio=float(arrays["l1_ratio"]),
            sum_to_one=bool(arrays["sum_to_one"]),
            families=families_of(arrays),
        )
        if len(patterns):
            model.append(patterns)
        made = model._composition
        made.held.restore(arrays["held_weights"], arrays["held_columns"])
        # The constructor rounds components to ``dtype``; these are masters in float64.
        made.components.H = torch.tensor(components, dtype=torch.float64, device=model.device)
        model._fit, model._rebuild = made.fit(model._X, seed=model.seed), False
        model._fit.restore(
            {key: arrays[key] for key in (*FIT_STATE, *STRAIN_STATE) if key in arrays}
        )
        return model

    # --- the fit ---------------------------------------------------------------------------

    @property
    def _free(self) -> list[int]:
        return self._composition.components.free

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Change what is fitted, from where the fit stands."""
        if not self._rebuild:
            self._composition.follow(self._fit)
        try:
            yield
        finally:
            # To build anew what has not changed does no harm.
            self._changed = self._rebuild = True

    def _publish(self, started: float, *, converged: bool, latest: bool = False) -> FitResult:
        """Freeze the fit as it is; ``latest`` after an event, when nobody waits for a device."""
        fit, factors = self._fit, self._fit.factors
        objective = fit.latest_objective if latest else fit.objective
        if isinstance(objective, float) and not math.isfinite(objective):
            raise InputError(
                f"loss: what {self.loss!r} says of these patterns exceeds float64; begin anew with "
                "patterns that are scaled, or with a loss nearer to 'kullback-leibler'"
            )
        strained = factors if isinstance(factors, StrainedFactors) else None
        self._result = FitResult(
            names=self.names,
            fixed=self.fixed,
            _objective=objective,
            n_patterns=len(self._X),
            converged=converged,
            seconds=time.perf_counter() - started,
            _W=factors.W.frozen(),
            _H=fit.latest_shapes(self.dtype) if latest else factors.rounded(self.dtype),
            _scalable=factors.rules.scalable,
            _squared_residual=factors.squared.frozen(),
            _squared_norm=self._X.norm_table,
            _strains=None if strained is None else strained.strains.frozen(),
            _strained=() if strained is None else tuple(strained.tables.strained),
        )
        return self._result

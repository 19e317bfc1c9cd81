"""The ways to the same factorization: ours and the peers', each as (seconds, objective) curves.

All of them hold the first and the last pattern and look for the rest, but for scikit-learn and
nmf-torch, which cannot hold components and so have an easier problem.
"""

import contextlib
import io
import math
import time
import warnings
from collections.abc import Callable, Iterator

import numpy as np
import torch

from bluesky_cmf import NMFBase, StreamingNMF
from bluesky_cmf.nmf.blocks import Blocks
from bluesky_cmf.nmf.divergencefit import ReweightedSweeps
from bluesky_cmf.nmf.kernels import warm_up
from bluesky_cmf.nmf.reweighting import Floor
from bluesky_cmf.nmf.rules import Rules
from bluesky_cmf.nmf.seeds import seed_worst
from bluesky_cmf.nmf.sweeps import Extrapolation, exact_weights

Curve = Iterator[tuple[float, float]]


def set_up() -> None:
    """Work on one thread, with kernels at hand."""
    torch.set_num_threads(1)
    warm_up()


def event(model: StreamingNMF, pattern: np.ndarray) -> tuple[float, object]:
    """Append a pattern and refit; give the seconds, and the result."""
    started = time.perf_counter()
    model.append(pattern)
    result = model.refit()
    return time.perf_counter() - started, result


def exact_objective(X: np.ndarray, H: np.ndarray) -> float:
    """½‖X - WH‖² with the best weights for H."""
    blocks = Blocks(X.shape[1], dtype=torch.float64, device=torch.device("cpu"))
    blocks.append(torch.tensor(X, dtype=torch.float64))
    components = torch.tensor(np.maximum(H, 0), dtype=torch.float64)
    W, _ = exact_weights(blocks, components)
    return 0.5 * float(((torch.tensor(X, dtype=torch.float64) - W @ components) ** 2).sum())


def ours(X: np.ndarray, K: int, seed: int, *, known: np.ndarray | None = None) -> Curve:
    """Extrapolated sweeps: from the worst-explained patterns (seed 0), else from drawn ones."""
    known = X[[0, -1]] if known is None else known
    started = time.perf_counter()
    blocks, H, free = _start(X, known, K, seed)
    state = Extrapolation(blocks, H, Rules(free))
    while True:
        state.sweep(2)
        yield time.perf_counter() - started, state.curve[-1]


def reweighted(X: np.ndarray, K: int, seed: int) -> Curve:
    """The same for the Kullback-Leibler divergence."""
    started = time.perf_counter()
    blocks, H, free = _start(X, X[[0, -1]], K, seed)
    state = ReweightedSweeps(blocks, H, Rules(free, beta=1.0), floor=Floor())
    while True:
        yield time.perf_counter() - started, state.curve[-1]
        state.sweep(1)


def _start(
    X: np.ndarray, known: np.ndarray, K: int, seed: int
) -> tuple[Blocks, torch.Tensor, tuple[int, ...]]:
    blocks = _blocks(X)
    H = torch.zeros(K, X.shape[1], dtype=torch.float64)
    H[: len(known)] = torch.from_numpy(known)
    free = tuple(range(len(known), K))
    if seed == 0:
        return blocks, seed_worst(blocks, H, free, residual=False), free
    rows = np.random.default_rng(seed).choice(len(X), len(free), replace=False)
    H[list(free)] = torch.from_numpy(X[rows]).double()
    return blocks, H, free


def _blocks(X: np.ndarray) -> Blocks:
    blocks = Blocks(X.shape[1], dtype=torch.float32, device=torch.device("cpu"))
    blocks.append(torch.from_numpy(X))
    return blocks


def exact_sweep_seconds(X: np.ndarray, phases: np.ndarray, components: np.ndarray) -> float:
    """Seconds of one extrapolated sweep over all the data."""
    state = Extrapolation(_blocks(X), torch.from_numpy(components).double(), Rules((3, 4, 5)))
    started = time.perf_counter()
    state.sweep(1)
    return time.perf_counter() - started


def exact_until(X: np.ndarray, phases: np.ndarray, objective: float, *, limit: float) -> Curve:
    """Extrapolated sweeps over all the data, from drawn patterns, until an objective is reached."""
    started = time.perf_counter()
    blocks, H, free = _start(X, phases[:3].astype("f4"), len(phases), 1)
    state = Extrapolation(blocks, H, Rules(free))
    while True:
        state.sweep(2)
        yield time.perf_counter() - started, state.curve[-1]
        if state.curve[-1] <= objective or time.perf_counter() - started > limit:
            return


def from_truth(X: np.ndarray, phases: np.ndarray) -> float:
    """The converged objective of a fit that starts from the true phases."""
    fixed = [True] * 3
    model = StreamingNMF(X.shape[1], len(phases), components=phases, fixed=fixed, device="cpu")
    model.append(X)
    model.refit()
    return model.refit(converge=True).objective


class Multiplicative(NMFBase):
    """The general road: autograd through `reconstruct`, as constrainedmf goes it."""

    def reconstruct(self, H: torch.Tensor, W: torch.Tensor) -> torch.Tensor:
        return W @ H

    def get_W_positive(self, WH, beta, H_sum):
        return WH.pow(beta - 1) @ self.H.T, H_sum

    def get_H_positive(self, WH, beta, W_sum):
        return self.W.T @ WH.pow(beta - 1), W_sum


def multiplicative(
    X: np.ndarray, K: int, seed: int, *, step: int = 500, beta: float = 2.0
) -> Curve:
    """`NMFBase.fit`, ``step`` iterations at a time; the curve counts the fit's own seconds."""
    known = [torch.from_numpy(X[[k]]) for k in (0, -1)]
    model = Multiplicative(
        (len(X), K),
        (K, X.shape[1]),
        K,
        initial_components=known,
        fix_components=[True, True],
        seed=seed,
    )
    data, seconds = torch.from_numpy(X), 0.0
    while True:
        started = time.perf_counter()
        curve = model.fit(data, beta=beta, tol=0, max_iter=step)
        seconds += time.perf_counter() - started
        yield seconds, curve[-1]


def pymcr(X: np.ndarray, K: int, seed: int) -> Curve:
    """pyMCR's `McrAR` with fixed spectra and NNLS, to its own end."""
    from pymcr.mcr import McrAR
    from pymcr.regressors import NNLS

    rows = np.random.default_rng(seed).choice(len(X), K - 2, replace=False)
    spectra = np.concatenate([X[[0, -1]], X[rows]]).astype(float)
    model = McrAR(max_iter=200, st_regr=NNLS(), c_regr=NNLS(), tol_increase=1.0)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(X.astype(float), ST=spectra, st_fix=[0, 1])
    yield time.perf_counter() - started, exact_objective(X, model.ST_opt_)


def sklearn(X: np.ndarray, K: int, seed: int) -> Curve:
    """scikit-learn's coordinate descent, without held components, to its own end."""
    from sklearn.decomposition import NMF

    yield from _estimator(X, NMF(K, init="random", random_state=seed, max_iter=2000, tol=1e-6))


def minibatch(X: np.ndarray, K: int, seed: int) -> Curve:
    """scikit-learn's MiniBatchNMF, without held components, to its own end."""
    from sklearn.decomposition import MiniBatchNMF

    yield from _estimator(X, MiniBatchNMF(K, init="random", random_state=seed, max_iter=500))


def nmf_torch(X: np.ndarray, K: int, seed: int) -> Curve:
    """nmf-torch's HALS, without held components, to its own end."""
    from nmf import run_nmf

    started = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()):
        _, H, _ = run_nmf(X, K, algo="hals", random_state=seed, n_jobs=1, tol=1e-6)
    yield time.perf_counter() - started, exact_objective(X, np.asarray(H))


def _estimator(X: np.ndarray, model) -> Curve:
    data = X.astype(float)
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.fit(data)
    yield time.perf_counter() - started, exact_objective(X, model.components_)


def time_to(curve: Curve, objective: float, *, limit: float = math.inf) -> tuple[float, float]:
    """Seconds until the objective is reached (inf: not within ``limit``), and the last value."""
    seconds, value = 0.0, math.inf
    for seconds, value in curve:
        if value <= objective:
            return seconds, value
        if seconds > limit:
            break
    return math.inf, value


Road = Callable[[np.ndarray, int, int], Curve]

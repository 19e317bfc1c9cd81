"""Print what errors, alarms, strains and choices of the model are worth."""

import argparse
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from bluesky_cmf import LiveNMF, Phase, Preprocess, StreamingNMF
from bluesky_cmf.nmf.selection import constraints_from_data
from bluesky_cmf.strains import family_of
from tests.conftest import DATA
from tests.streams import Collector, run_documents

Array = np.ndarray

#: Temperatures at which BaTiO3 changes, in kelvin, and how far off is right.
TRANSITIONS, NEAR = (185.0, 280.0, 400.0), (15.0, 10.0, 10.0)


#: Counts at the highest point of a pure phase that expands.
_COUNTS = 5000.0


@dataclass
class Simulation:
    """Phases (K, F) on an axis of q (F,), in shares (N, K) of a ramp, counted."""

    x: Array
    phases: Array
    shares: Array
    patterns: Array

    @property
    def known(self) -> list[Phase]:
        return [Phase.from_array(f"p{k}", self.x, y) for k, y in enumerate(self.phases)]


def lines(x: Array, places: Array, areas: Array, width: float) -> Array:
    """Pseudo-Voigt lines, the highest of them 1."""
    u = ((x - places[:, None]) / (width / 2)) ** 2
    y = areas @ (0.5 * np.exp2(-u) + 0.5 / (1 + u))
    return np.asarray(y / y.max())


def simulation(
    seed: int, n: int, *, k: int = 3, f: int = 2000, counts: float = 5000.0, late: bool = False
) -> Simulation:
    """Random phases that grow and go over a ramp, on a declared background.

    With ``late`` the last phase is absent from the first half, and then grows by 0.2 % of the
    intensity a pattern.
    """
    rng = np.random.default_rng(seed)
    x = np.linspace(1.0, 9.0, f)
    phases = np.array(
        [
            *(lines(x, rng.uniform(1.2, 8.8, 14), rng.uniform(0.1, 1, 14), 0.03) for _ in range(k)),
            0.1 + 0.9 * np.exp(-x / 3),
        ]
    )
    t = np.linspace(0, 1, n)[:, None]
    shares = np.exp(-(((t - rng.uniform(0, 1, k)) / 0.4) ** 2))
    if late:
        areas = phases.sum(axis=1)
        grown = 0.002 * np.maximum(0, np.arange(n) - n // 2 + 1)
        before = shares[:, :-1] @ areas[: k - 1] + 0.1 * areas[-1]
        shares[:, -1] = grown / (1 - grown) * before / areas[k - 1]
    shares = np.column_stack([shares, np.full(n, 0.1)])
    ideal = counts * shares @ phases
    return Simulation(x, phases, shares, rng.poisson(ideal).astype(float))


def run(simulated: Simulation, phases: list[Phase], **options: Any) -> tuple[LiveNMF, Collector]:
    """Stream a simulation through `LiveNMF`."""
    live = LiveNMF("chi_I", x="chi_Q", phases=phases, background=False, device="cpu", **options)
    out = Collector()
    live.subscribe(out)
    for name, doc in run_documents(simulated.patterns, x=simulated.x):
        live(name, doc)
    return live, out


def coverage(seeds: int) -> None:
    """How often intervals of one standard error hold the truth."""
    print("\n68 % intervals of weights above 3 sigma (bar: 60 to 76 %)")
    for counts in (100.0, 1000.0, 10000.0):
        for errors in ("counts", None):
            held = looked = 0
            for seed in range(seeds):
                made = simulation(seed, 60, counts=counts)
                _, out = run(made, made.known, n_components=4, errors=errors)
                events = [event["data"] for event in out.events("primary")]
                for k in range(4):
                    weights = np.array([e[f"weight_p{k}"] for e in events])
                    sigma = np.array([e[f"weight_p{k}_error"] for e in events])
                    clear = weights > 3 * sigma
                    truth = counts * made.shares[:, k]
                    held += int((np.abs(weights - truth) <= sigma)[clear].sum())
                    looked += int(clear.sum())
            print(f"  {counts:>7g} counts, errors={errors!s:>6}: {held / looked:6.1%} of {looked}")


def alarms(seeds: int) -> None:
    """How soon an undeclared phase is told, and how often none is there."""
    print("\nalarm, 5000 counts, no free component (bar: 3 patterns after 2 %, 1 in 1000 without)")
    delays, false = [], 0
    for seed in range(seeds):
        made = simulation(seed, 60, late=True)
        known = [phase for k, phase in enumerate(made.known) if k != 2]
        _, out = run(made, known, n_components=3, errors="counts")
        told = [event["data"]["n_patterns"] for event in out.events("alarms")]
        there = 30 - 1 + 10
        false += sum(n <= 29 for n in told)
        first = min((n for n in told if n > 29), default=10**6)
        delays.append(first - 1 - there)
    print(f"  patterns after the one with 2 %: {sorted(delays)}; before any: {false}")
    n_false = 0
    for seed in range(seeds):
        made = simulation(100 + seed, 1000)
        _, out = run(made, made.known, n_components=4, errors="counts")
        n_false += len(out.events("alarms"))
    print(f"  without one: {n_false} alarms in {seeds} x 1000 patterns")


def hands_over(weights: Array, temperature: Array) -> list[float]:
    """Temperatures at which the dominant component changes."""
    dominant = weights.argmax(axis=1)
    changes = np.flatnonzero(np.diff(dominant))
    return [float(temperature[i : i + 2].mean()) for i in changes]


def batio3() -> None:
    """The real ramp: constraints from the data, and four crystal structures."""
    path = DATA / "batio3" / "ramp.npz"
    if not path.exists():
        print(f"\nBaTiO3: {path} is not here")
        return
    with np.load(path) as data:
        X, x, wavelength = data["intensity"], data["two_theta"], float(data["wavelength"])
        temperature = data["temperature"]
    found = constraints_from_data(X, 4)
    print(f"\nBaTiO3, constraints from the data: patterns at {temperature[list(found.indices)]} K")
    print(f"  hands over at {hands_over(found.weights, temperature)} K (185, 280, 400)")
    names = ("rhomb", "ortho", "tetra", "cubic")
    phases = [Phase.from_cif(path.parent / f"{n}.cif", wavelength=wavelength) for n in names]
    clear = (np.abs(temperature[:, None] - TRANSITIONS) > 15).all(axis=1)
    for k in (4, 5):
        live = LiveNMF("chi_I", x="chi_Q", phases=phases, n_components=k, background=False)
        for name, doc in run_documents(X, x=x, positions=temperature):
            live(name, doc)
        dominant = live.result.weights[:, :4].argmax(axis=1)
        right = (dominant == np.digitize(temperature, TRANSITIONS))[clear].mean()
        print(f"  four CIFs, K = {k}: dominant phase right for {right:.1%} (bar 95 %)")


def strains(seeds: int) -> None:
    """A ramp that expands by 1 %, with strain and without."""
    print("\n1 % expansion, 3 known phases of which 2 expand, 5000 counts, errors by counting")
    for seed in range(min(5, seeds)):
        simulated, phases, still, eps = expanding(seed)
        live, out = run(simulated, phases, n_components=3, errors="counts")
        events = [event["data"] for event in out.events("weights")][-len(eps) :]
        off = {
            key: max(
                float(np.abs(np.array([e[f"{key}_p{k}"] for e in events]) - truth).max())
                for k, truth in enumerate(truths)
            )
            for key, truths in (
                ("weight", _COUNTS * simulated.shares.T[:2]),
                ("strain", (eps, eps)),
            )
        }
        print(
            f"  seed {seed}: weights within {off['weight'] / _COUNTS:.4f} (bar 0.01), "
            f"strains within {off['strain']:.1e} (bar 2e-4)"
        )
        goal = live.result.objective
        ratios = []
        for extra in range(7):
            plain, _ = run(simulated, still, n_components=3 + extra)
            ratios.append(plain.result.objective / goal)
            if ratios[-1] <= 1:
                break
        print(f"    without: objective {[f'{r:.3g}' for r in ratios]} times, by components added")
    _cost()


def expanding(seed: int, n: int = 60) -> tuple[Simulation, list[Phase], list[Phase], Array]:
    """Two phases that expand by 1 % on a background: with strain, and without."""
    rng = np.random.default_rng(seed)
    x, wide = np.linspace(1.0, 9.0, 3500), np.linspace(0.9, 9.3, 8400)
    bounds = (-0.005, 0.015)
    strained = [
        Phase.from_array(
            f"p{k}",
            wide,
            lines(wide, rng.uniform(1.2, 8.8, 14), rng.uniform(0.1, 1, 14), 0.03),
            strain=bounds,
            axis="q",
        )
        for k in range(2)
    ]
    background = Phase.from_array("background", x, 0.1 + 0.9 * np.exp(-x / 3))
    t = np.linspace(0, 1, n)
    eps, shares = 0.01 * t, np.column_stack([1 - 0.8 * t, 0.1 + 0.8 * t, np.full(n, 0.1)])
    shapes = [np.array([*(p.on(x, strain=float(e)) for p in strained), background.y]) for e in eps]
    ideal = np.array([row @ shape for row, shape in zip(shares, shapes, strict=True)])
    patterns = rng.poisson(_COUNTS * ideal).astype(float)
    still = [Phase.from_array(p.name, x, p.on(x)) for p in strained]
    simulated = Simulation(x, np.empty(0), shares, patterns)
    return simulated, [*strained, background], [*still, background], eps


def _cost() -> None:
    """Median time of an event of 300, with strain and without, in turns."""
    simulated, strained, still, _ = expanding(0, 300)
    times: dict[str, list[float]] = {"with": [], "without": []}
    models = {}
    for name, phases in (("with", strained), ("without", still)):
        families = {
            p.name: family_of(p, simulated.x, Preprocess()) for p in phases if p.strain is not None
        }
        models[name] = StreamingNMF(
            len(simulated.x),
            4,
            names=[p.name for p in phases],
            components=[p.on(simulated.x) for p in phases],
            fixed=[True] * 3,
            families=families,
            device="cpu",
        )
    for i, pattern in enumerate(simulated.patterns):
        for name, model in models.items():
            started = time.perf_counter()
            model.append(pattern)
            model.refit()
            model.rows(i)
            times[name].append(time.perf_counter() - started)
    medians = {name: 1e3 * float(np.median(values[20:])) for name, values in times.items()}
    print(
        f"  an event: {medians['with']:.2f} ms with strain, {medians['without']:.2f} ms without: "
        f"{medians['with'] / medians['without']:.1f} times (bar 5)"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tables", nargs="*", default=["coverage", "alarms", "batio3", "strains"])
    parser.add_argument("--seeds", type=int, default=20)
    options = parser.parse_args()
    for table in options.tables:
        {
            "coverage": lambda: coverage(options.seeds),
            "alarms": lambda: alarms(options.seeds),
            "batio3": batio3,
            "strains": lambda: strains(options.seeds),
        }[table]()


if __name__ == "__main__":
    main()

"""Fixtures that several test files share."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
# Threads that wait for each other by spinning make small problems slow on a busy machine.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest

#: Real data lie beside the checkout, or where this variable says.
DATA = Path(
    os.environ.get("BLUESKY_CMF_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")
)


@dataclass(frozen=True)
class Ramp:
    """The BaTiO3 heating ramp: 60 patterns from 150 K to 445 K."""

    path: Path
    temperature: np.ndarray
    two_theta: np.ndarray
    intensity: np.ndarray
    wavelength: float


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Problems this small are slower on many threads, above all on a busy machine."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def batio3() -> Iterator[Ramp]:
    path = DATA / "batio3" / "ramp.npz"
    if not path.exists():
        pytest.skip(f"real data are not here: {path}")
    with np.load(path) as ramp:
        yield Ramp(
            path,
            ramp["temperature"],
            ramp["two_theta"],
            ramp["intensity"],
            float(ramp["wavelength"]),
        )

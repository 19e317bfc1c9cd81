"""What a factorization computes with: device, precision, seed, loss; checked before data come."""

import torch

from ..errors import InputError
from .constraints import checked_count
from .divergences import checked_beta

__all__ = ["LOSSES", "beta_of", "check_numerics", "chosen_device"]

#: Losses by name, with their beta.
LOSSES = {"frobenius": 2.0, "kullback-leibler": 1.0, "itakura-saito": 0.0}


def beta_of(loss: str | float) -> float:
    """Give the beta of a loss.

    Raises
    ------
    InputError
        Where it is neither a known name nor a finite number.
    """
    if isinstance(loss, str):
        if loss not in LOSSES:
            raise InputError(f"loss: expected one of {list(LOSSES)} or a number, got {loss!r}")
        return LOSSES[loss]
    try:
        return checked_beta(loss)
    except InputError as error:
        raise InputError(
            f"loss: expected one of {list(LOSSES)} or a finite number, got {loss!r}"
        ) from error


def check_numerics(*, device: str | torch.device, dtype: torch.dtype, seed: int) -> None:
    """Check how a factorization is to compute, before there are data.

    Raises
    ------
    InputError
        Where the device is not there, ``dtype`` is neither float32 nor float64, or ``seed`` is no
        whole number from 0 to 2⁶³ - 1.
    """
    chosen_device(device)
    if dtype not in (torch.float32, torch.float64):
        raise InputError(f"dtype: expected torch.float32 or torch.float64, got {dtype!r}")
    checked_count("seed", seed, least=0, most=2**63 - 1)


def chosen_device(device: str | torch.device) -> torch.device:
    """Give the torch device of a name; ``"auto"`` is CUDA where there is one, else the CPU.

    Raises
    ------
    InputError
        Where it is not there.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        # With its number, as tensors that are there have it.
        chosen = torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(
            f"device: expected 'auto' or a torch device of this machine, got {device!r} ({error})"
        ) from error
    return chosen

"""Steps on buffers that never move, without a word to the host: on CUDA a graph, replayed."""

import logging
from collections.abc import Callable, Sequence

import torch

from .updates import coordinate_descent

__all__ = ["Descent", "Recording", "descent_for", "recorded", "reference", "uses_graphs"]

logger = logging.getLogger(__name__)

#: Coordinate descent on V (K, M) in place, for G (K, K), C (K, M), flags (K,) and passes.
Descent = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, int], None]


def uses_graphs(device: torch.device) -> bool:
    """Whether steps on a device go as graphs."""
    return device.type == "cuda"


def descent_for(device: torch.device) -> Descent:
    """Give the descent for a device: one launch on CUDA, else the reference."""
    if device.type == "cuda":
        from .kernels.cuda import coordinate_descent as fused

        return fused
    return reference


def reference(
    V: torch.Tensor, G: torch.Tensor, C: torch.Tensor, free: torch.Tensor, passes: int
) -> None:
    """Descend on V in place, as a device does, by the reference."""
    moving = free.nonzero()[:, 0].tolist()
    V.copy_(coordinate_descent(V, G, C, free=moving, passes=passes))


class Recording:
    """A step that can be taken again and again: on CUDA recorded once, elsewhere just called.

    Parameters
    ----------
    step : callable
        What it works on is allocated before, or within.
    masters : sequence of Tensor
        What the step changes: it is as before once the step is recorded.
    """

    def __init__(self, step: Callable[[], None], masters: Sequence[torch.Tensor]) -> None:
        self._graph = None
        if masters[0].device.type == "cuda":
            self._graph = _warmed_up(step, masters)
        # Who has taken the step may be let go of at once.
        self._step = step if self._graph is None else None

    def __call__(self) -> None:
        """Take the step."""
        if self._graph is not None:
            self._graph.replay()
        elif self._step is not None:
            self._step()


def recorded(step: Callable[[], None], device: torch.device) -> torch.cuda.CUDAGraph | None:
    """Record a step that has been taken before, without taking it; None where nothing records."""
    if device.type != "cuda":
        return None
    try:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.stream(stream):
            # Others may go on with the device meanwhile.
            graph.capture_begin(capture_error_mode="thread_local")
            try:
                step()
            finally:
                graph.capture_end()
        torch.cuda.current_stream().wait_stream(stream)
    except RuntimeError:
        logger.exception("no CUDA graph could be recorded; steps run without one")
        return None
    return graph


def _warmed_up(
    step: Callable[[], None], masters: Sequence[torch.Tensor]
) -> torch.cuda.CUDAGraph | None:
    """Record a step; what is compiled or set up at first use must not be."""
    kept = [master.clone() for master in masters]
    try:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(2):
                step()
        torch.cuda.current_stream().wait_stream(stream)
        return recorded(step, masters[0].device)
    finally:
        for master, before in zip(masters, kept, strict=True):
            master.copy_(before)

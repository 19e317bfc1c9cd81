"""Live constrained NMF of diffraction patterns from a Bluesky document stream.

Public names are resolved on first use, so that ``import bluesky_cmf`` is quick and pulls in
nothing heavy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import nmf
    from .callback import LiveNMF
    from .catalogs import open_catalog
    from .errors import CMFError
    from .figure import LiveNMFPlot
    from .frames import Integrator
    from .nmf.models import NMF, NMFD, NMFBase
    from .nmf.streaming import FitResult, StreamingNMF
    from .phases import Phase
    from .preprocess import Preprocess
    from .settings import Settings
    from .sources import replay

__version__ = "0.1.0"

__all__ = [
    "NMF",
    "NMFD",
    "CMFError",
    "FitResult",
    "Integrator",
    "LiveNMF",
    "LiveNMFPlot",
    "NMFBase",
    "Phase",
    "Preprocess",
    "Settings",
    "StreamingNMF",
    "nmf",
    "open_catalog",
    "replay",
]

_HOMES = {
    "CMFError": ".errors",
    "FitResult": ".nmf.streaming",
    "Integrator": ".frames",
    "LiveNMF": ".callback",
    "LiveNMFPlot": ".figure",
    "NMF": ".nmf.models",
    "NMFBase": ".nmf.models",
    "NMFD": ".nmf.models",
    "Phase": ".phases",
    "Preprocess": ".preprocess",
    "Settings": ".settings",
    "StreamingNMF": ".nmf.streaming",
    "open_catalog": ".catalogs",
    "replay": ".sources",
}


def __getattr__(name: str) -> Any:
    if name == "nmf":
        return import_module(".nmf", __name__)
    if name in _HOMES:
        value = getattr(import_module(_HOMES[name], __name__), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

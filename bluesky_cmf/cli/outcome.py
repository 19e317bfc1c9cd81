"""What went wrong beside the scan, said once it is over."""

from typing import TYPE_CHECKING

from ..callback import LiveNMF
from ..documents import AnalysisReader
from ..errors import CatalogError, CMFError, InputError
from ..figure import LiveNMFPlot

if TYPE_CHECKING:
    from ..catalogs import CatalogWriter

__all__ = ["raise_failures"]


def raise_failures(
    live: LiveNMF,
    analysis: AnalysisReader,
    plot: LiveNMFPlot | None,
    writer: "CatalogWriter | None",
) -> None:
    """Raise what fitting, storing or drawing has kept, as an error of this package.

    Single patterns that were rejected are no failure as long as others were fitted.

    Raises
    ------
    CMFError
        The fit's own error; what storing and drawing met, with its cause.
    """
    told = {reason for _seq_num, reason in analysis.rejected} if analysis.n_patterns else set()
    if live.error is not None and str(live.error) not in told:
        _raise_fit_error(live.error)
    if writer is not None and writer.error is not None:
        raise CatalogError(f"not all was stored: {_told(writer.error)}") from writer.error
    if plot is not None and plot.error is not None:
        raise InputError(f"the figure failed: {_told(plot.error)}") from plot.error


def _raise_fit_error(error: BaseException) -> None:
    if isinstance(error, CMFError):
        raise error
    raise CMFError(f"the fit failed: {_told(error)}") from error


def _told(error: BaseException) -> str:
    return str(error) if isinstance(error, CMFError) else f"{type(error).__name__}: {error}"

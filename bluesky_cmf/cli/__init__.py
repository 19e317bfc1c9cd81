"""The ``bluesky-cmf`` command; imports the rest inside its commands."""

import contextlib
import gc
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import CMFError

__all__ = ["app", "main", "run"]

app = typer.Typer(
    help="Live constrained NMF of diffraction patterns from a Bluesky document stream.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=False,
)

#: What typer raises for a command line that it cannot read; no name of its own is public.
_UsageError: Any = typer.BadParameter.__mro__[2]

_Catalog = Annotated[
    str,
    typer.Argument(
        help="A folder, the http(s) address or profile of a Tiled server, or databroker:NAME."
    ),
]
#: More are a slip of the keyboard, which would take the memory of the machine.
_MOST_COMPONENTS = 1000
_LARGEST_SEED = 2**63 - 1

_Seed = Annotated[
    int, typer.Option(min=0, max=_LARGEST_SEED, help="Seed of the fit's random starts.")
]
_Device = Annotated[str, typer.Option(help="Where the fit runs: auto, cpu, cuda, cuda:1, …")]


def main() -> None:
    """Run the command line and leave with its exit code."""
    # Who manages processes ends them so: it is heeded as an interrupt by the keyboard is.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    code = run()
    # The interpreter would look for garbage in all that was imported, for seconds.
    gc.freeze()
    sys.exit(code)


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Those of the process by default.

    Returns
    -------
    int
        0, or 2 after one line of error on stderr, or 130 after an interrupt by the keyboard.
    """
    try:
        code = app(args=arguments, prog_name="bluesky-cmf", standalone_mode=False)
    except CMFError as error:
        return _failed(str(error))
    except _UsageError as error:
        return _failed(error.format_message())
    except OSError as error:
        return _failed(str(error))
    except KeyboardInterrupt:
        return 130
    return code if isinstance(code, int) else 0


@contextlib.contextmanager
def _importing() -> Iterator[None]:
    """Leave the collector at rest: what is imported is no garbage, and takes it a second."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _failed(message: str) -> int:
    typer.echo(f"bluesky-cmf: error: {' '.join(message.split())}", err=True)
    return 2


def _show_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        typer.echo(f"bluesky-cmf {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    verbose: Annotated[bool, typer.Option(help="Show the log on stderr.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it.")
    ] = False,
) -> None:
    from .console import set_up_logging

    set_up_logging(verbose=verbose)


@app.command()
def demo(
    catalog: Annotated[
        str, typer.Option(help="Where both runs are stored; a folder is made if need be.")
    ] = "demo-catalog",
    data: Annotated[
        Path | None,
        typer.Option(
            help="Play real patterns: an .npz file of patterns (N, F), a variable (N,) and an "
            "axis (F,). The first and the last pattern are the known phases."
        ),
    ] = None,
    variable: Annotated[
        str | None, typer.Option(help="Name of the variable in --data, if there is a choice.")
    ] = None,
    axis: Annotated[
        str | None, typer.Option(help="Name of the axis in --data, if there is a choice.")
    ] = None,
    patterns: Annotated[
        int, typer.Option(min=2, max=100_000, help="Number of patterns of the simulated ramp.")
    ] = 60,
    components: Annotated[
        int | None,
        typer.Option(min=1, max=_MOST_COMPONENTS, help="Number of components; 4 by default."),
    ] = None,
    window: Annotated[
        bool, typer.Option(help="Show the figure live, where there is a display.")
    ] = True,
    exposure: Annotated[float, typer.Option(help="Seconds that one pattern takes.")] = 0.1,
    figure: Annotated[Path, typer.Option(help="Where the figure is saved.")] = Path("demo.png"),
    seed: Annotated[
        int,
        typer.Option(min=0, max=_LARGEST_SEED, help="Seed of the counting noise and of the fit."),
    ] = 0,
    device: _Device = "auto",
) -> None:
    """Heat a simulated sample, or play real patterns, and decompose them live."""
    with _importing():
        from .demonstrating import Demo, run_demo

    run_demo(
        Demo(
            catalog=catalog,
            data=data,
            variable=variable,
            axis=axis,
            patterns=patterns,
            components=components,
            window=window,
            exposure=exposure,
            figure=figure,
            seed=seed,
            device=device,
        )
    )


@app.command()
def replay(
    catalog: _Catalog,
    uid: Annotated[list[str], typer.Argument(help="The run; several may be given.")],
    pattern: Annotated[
        str, typer.Option(help="Data key of the pattern, or how the one key ends that is meant.")
    ],
    x: Annotated[
        str | None, typer.Option(help="Data key of the patterns' axis; the index by default.")
    ] = None,
    components: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=_MOST_COMPONENTS,
            help="Number of components; one more than phases, if not given.",
        ),
    ] = None,
    phase: Annotated[
        list[Path] | None,
        typer.Option(help="Pattern file of a known phase, which is held; may be repeated."),
    ] = None,
    independent: Annotated[
        list[str] | None,
        typer.Option(help="Data key that weights are drawn against; the scan's own by default."),
    ] = None,
    stream: Annotated[str, typer.Option(help="Stream that holds the patterns.")] = "primary",
    normalize: Annotated[
        str | None, typer.Option(help="Divide each pattern by its max or area.")
    ] = None,
    roi: Annotated[
        tuple[float, float] | None, typer.Option(help="First and last value of the axis to keep.")
    ] = None,
    negative: Annotated[
        str,
        typer.Option(help="What becomes of patterns with negative values: reject, clip or offset."),
    ] = "reject",
    poni: Annotated[
        Path | None,
        typer.Option(help="Geometry of a 2-D detector, whose frames pyFAI integrates."),
    ] = None,
    mask: Annotated[
        Path | None, typer.Option(help="Mask of the frames: not zero where a pixel is left out.")
    ] = None,
    unit: Annotated[
        str | None,
        typer.Option(help="Axis of integrated frames, by pyFAI's name; 2th_deg by default."),
    ] = None,
    points: Annotated[
        int | None,
        typer.Option(min=2, help="Number of bins that frames are integrated into; 1000."),
    ] = None,
    on_unknown: Annotated[
        str,
        typer.Option(
            help="Where something stands out that no component explains: warn, or add one."
        ),
    ] = "warn",
    session: Annotated[
        bool, typer.Option("--session", help="Fit the patterns of all runs as one dataset.")
    ] = False,
    seed: _Seed = 0,
    loss: Annotated[
        str, typer.Option(help="What is lowered: frobenius, kullback-leibler or itakura-saito.")
    ] = "frobenius",
    device: _Device = "auto",
    figure: Annotated[
        Path | None, typer.Option(help="Save the figure here (.png, .pdf, .svg).")
    ] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Store the analysis run in the same catalog.")
    ] = False,
    into: Annotated[
        str | None, typer.Option(help="Store the analysis run in another catalog.")
    ] = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="Go on with what comes until the run ends: catches up with a scan that runs.",
        ),
    ] = False,
    patience: Annotated[
        float | None,
        typer.Option(
            min=0,
            help="Seconds that a followed run may go without growth before it is taken to be over.",
        ),
    ] = None,
) -> None:
    """Decompose stored runs as if they were being measured."""
    with _importing():
        from .replaying import Replay, run_replay

    run_replay(
        Replay(
            catalog=catalog,
            uids=tuple(uid),
            pattern=pattern,
            x=x,
            components=components,
            phases=tuple(phase or ()),
            independent=tuple(independent or ()),
            stream=stream,
            normalize=normalize,
            roi=roi,
            negative=negative,
            poni=poni,
            mask=mask,
            unit=unit,
            points=points,
            on_unknown=on_unknown,
            session=session,
            seed=seed,
            loss=loss,
            device=device,
            figure=figure,
            into=catalog if save and into is None else into,
            follow=follow,
            patience=patience,
        )
    )

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
from . import options

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
        typer.Option(
            min=1, max=options.MOST_COMPONENTS, help="Number of components; 4 by default."
        ),
    ] = None,
    window: Annotated[
        bool, typer.Option(help="Show the figure live, where there is a display.")
    ] = True,
    exposure: Annotated[float, typer.Option(help="Seconds that one pattern takes.")] = 0.1,
    figure: Annotated[Path, typer.Option(help="Where the figure is saved.")] = Path("demo.png"),
    seed: Annotated[
        int,
        typer.Option(
            min=0, max=options.LARGEST_SEED, help="Seed of the counting noise and of the fit."
        ),
    ] = 0,
    device: Annotated[
        str, typer.Option(help="Where the fit runs: auto, cpu, cuda, cuda:1, …")
    ] = "auto",
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
    settings: options.SettingsFile = None,
    assignments: options.Set = None,
    pattern: options.Pattern = None,
    x: options.X = None,
    components: options.Components = None,
    phase: options.Phases = None,
    wavelength: options.Wavelength = None,
    axis: options.Axis = None,
    width: options.Width = None,
    independent: options.Independent = None,
    stream: options.Stream = None,
    roi: options.Roi = None,
    regrid: options.Regrid = None,
    rebin: options.Rebin = None,
    background: options.Background = None,
    normalize: options.Normalize = None,
    monitor: options.Monitor = None,
    errors: options.Errors = None,
    on_unknown: options.OnUnknown = None,
    negative: options.Negative = None,
    poni: options.Poni = None,
    mask: options.Mask = None,
    unit: options.Unit = None,
    points: options.Points = None,
    session: options.Session = False,
    seed: options.Seed = None,
    loss: options.Loss = None,
    device: options.Device = None,
    figure: Annotated[
        Path | None, typer.Option(help="Save the figure here (.png, .pdf, .svg).")
    ] = None,
    csv: options.Csv = None,
    hdf5: options.Hdf5 = None,
    overwrite: options.Overwrite = False,
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
        from .outputs import Outputs
        from .replaying import Replay, run_replay

    run_replay(
        Replay(
            catalog=catalog,
            uids=tuple(uid),
            model=options.model_options(locals()),
            outputs=Outputs(figure, csv, hdf5, overwrite),
            into=catalog if save and into is None else into,
            follow=follow,
            patience=patience,
        )
    )


@app.command()
def fit(
    places: Annotated[
        list[str],
        typer.Argument(
            metavar="FILES|FOLDER|CATALOG UID",
            help="Pattern files, folders of them, or globs; or a catalog and runs in it.",
        ),
    ],
    settings: options.SettingsFile = None,
    assignments: options.Set = None,
    from_name: Annotated[
        str | None,
        typer.Option(
            metavar="REGEX",
            help="Where the variable stands in the files' names, in one group: 'T(\\d+)K'; by "
            "default the one number that varies.",
        ),
    ] = None,
    table: Annotated[
        Path | None,
        typer.Option(help="Table with a column 'file', and columns of variables (CSV)."),
    ] = None,
    variable: Annotated[
        list[str] | None,
        typer.Option(help="Name of the variable: the column of the table; may be repeated."),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="Folder of the results; NAME-fit by default, after what is fitted."),
    ] = None,
    figure: Annotated[
        Path | None, typer.Option(help="Save the figure here (.png, .pdf, .svg) instead.")
    ] = None,
    csv: options.Csv = None,
    hdf5: options.Hdf5 = None,
    overwrite: options.Overwrite = False,
    sweep: Annotated[
        str | None,
        typer.Option(
            metavar="FIRST:LAST",
            help="Try these numbers of components first, draw how well each predicts what it has "
            "not seen, and fit with the number that is suggested, unless --components says one.",
        ),
    ] = None,
    from_data: Annotated[
        bool,
        typer.Option(
            "--from-data",
            help="Hold measured patterns as the components that are not phases: the ends, then "
            "the most distinct; as many as --components or --sweep leave room for.",
        ),
    ] = False,
    save: Annotated[
        str | None,
        typer.Option(metavar="CATALOG", help="Store the analysis run in this catalog as well."),
    ] = None,
    pattern: options.Pattern = None,
    x: options.X = None,
    components: options.Components = None,
    phase: options.Phases = None,
    wavelength: options.Wavelength = None,
    axis: options.Axis = None,
    width: options.Width = None,
    independent: options.Independent = None,
    stream: options.Stream = None,
    roi: options.Roi = None,
    regrid: options.Regrid = None,
    rebin: options.Rebin = None,
    background: options.Background = None,
    normalize: options.Normalize = None,
    monitor: options.Monitor = None,
    errors: options.Errors = None,
    on_unknown: options.OnUnknown = None,
    negative: options.Negative = None,
    poni: options.Poni = None,
    mask: options.Mask = None,
    unit: options.Unit = None,
    points: options.Points = None,
    session: options.Session = False,
    seed: options.Seed = None,
    loss: options.Loss = None,
    device: options.Device = None,
) -> None:
    """Decompose pattern files, or a stored run, and write figure, table and HDF5."""
    with _importing():
        from .fitting import Fit, run_fit

    run_fit(
        Fit(
            places=tuple(places),
            model=options.model_options(locals()),
            from_name=from_name,
            table=table,
            variables=tuple(variable or ()),
            output=output,
            figure=figure,
            csv=csv,
            hdf5=hdf5,
            overwrite=overwrite,
            save=save,
            sweep=sweep,
            from_data=from_data,
        )
    )

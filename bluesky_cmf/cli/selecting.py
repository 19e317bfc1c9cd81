"""``--sweep`` and ``--from-data``: what is chosen from the data before they are fitted."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..callback import LiveNMF
from ..errors import InputError
from ..figure.canvas import offscreen_figure
from ..settings import Settings
from .console import FileProgress, show_facts, show_sweep
from .options import MOST_COMPONENTS, ModelOptions

if TYPE_CHECKING:
    from ..collecting import Collected
    from ..nmf.selection import ComponentSweep

__all__ = ["Choice", "Member", "Selection", "beside"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Member:
    """A measured pattern that is held as a component, (F,) on the axis that is fitted."""

    name: str
    number: int
    origin: str
    values: npt.NDArray[Any] = field(repr=False)


@dataclass(frozen=True)
class Choice:
    """What was chosen; nothing where nothing was asked for."""

    n_components: int | None = None
    members: tuple[Member, ...] = ()
    facts: dict[str, str] = field(default_factory=dict)

    def settings(self, settings: Settings) -> Settings:
        """Give the settings with the number of components that was chosen."""
        if self.n_components is None:
            return settings
        return settings.with_values({"n_components": self.n_components})

    def live_nmf(self, settings: Settings, **arguments: Any) -> LiveNMF:
        """Make the callback, with the members held after the phases.

        They are patterns as they are fitted, so that they are given as arrays: as phases they
        would go through the steps before the fit a second time.
        """
        if not self.members:
            return settings.live_nmf(**arguments)
        known = len(settings.phases)
        # A callback has a component from the start; a free one goes as soon as there is another.
        live = settings.live_nmf(n_components=max(known, 1), **arguments)
        for member in self.members:
            live.add_component(member.name, member.values, True, origin=member.origin)
        if not known:
            live.remove_component("unknown 1")
        return live


@dataclass(frozen=True)
class Selection:
    """What the user wants chosen from the data.

    ``given`` is the number of components that the user has said, ``noted`` that of the settings
    file, which a sweep wins over.
    """

    counts: range | None
    from_data: bool
    given: int | None
    noted: int | None

    @classmethod
    def of(
        cls, sweep: str | None, from_data: bool, model: ModelOptions, settings: Settings
    ) -> "Selection":
        """Read the options.

        Raises
        ------
        InputError
            Where a range is none or holds fewer components than there are phases; where nothing
            says how many members there are to be.
        """
        counts = None if sweep is None else _counts(sweep, len(settings.phases))
        assigned = any(re.match(r"\s*n_components\s*=", each) for each in model.assignments)
        said = model.components is not None or assigned
        number = settings.n_components
        if from_data and counts is None and number is None:
            raise InputError(
                "--from-data: expected the number of components with it (--components 4), or the "
                "numbers to choose it from (--sweep 2:6)"
            )
        return cls(counts, from_data, number if said else None, number)

    @property
    def wanted(self) -> str | None:
        """The option that asks for something, None where none does."""
        return "sweep" if self.counts is not None else "from-data" if self.from_data else None

    def choose(
        self,
        settings: Settings,
        collect: Callable[[], "Collected"],
        figure: Path | None,
        folder: Path,
    ) -> Choice:
        """Choose, and draw and show what was found.

        Parameters
        ----------
        settings : Settings
            Loss, seed and device, and the phases, whose strains stay 0.
        collect : callable
            Gives the patterns; called where something is wanted.
        figure, folder : Path
            Where the figure of the fit goes, and the results that are not named.

        Raises
        ------
        CMFError
            Where the patterns cannot be had, or are too few.
        """
        if self.wanted is None:
            return Choice()
        if any(phase.strain is not None for phase in settings.phases):
            logger.warning(
                "--%s holds phases without their strains: lines that move may count as components",
                self.wanted,
            )
        data = collect()
        place = figure or folder / "figure.png"
        facts: dict[str, str] = {}
        sweep = None
        if self.counts is not None:
            sweep = _swept(data, self.counts, settings)
            facts["sweep"] = _drawn_sweep(sweep, beside(place, folder, "sweep"))
            show_sweep(sweep)
            instead = "" if self.given is None else f"; fitted with {self.given}, as was asked for"
            show_facts({"suggested": f"{sweep.suggested}: {sweep.reason}{instead}"})
        number = self.given or (self.noted if sweep is None else sweep.suggested)
        if not self.from_data or number is None:
            return Choice(number, (), facts)
        if sweep is not None and self.given is None and number == len(data.names):
            facts["members"] = "none: the phases alone explain the data"
            return Choice(number, (), facts)
        members = _members(data, number, settings, beside(place, folder, "members"))
        facts["members"] = ", ".join(_told(member) for member in members)
        facts["members' figure"] = str(beside(place, folder, "members"))
        return Choice(number, members, facts)


def beside(figure: Path, folder: Path, what: str) -> Path:
    """Name a figure beside that of the fit: ``figure-sweep.png``.

    Where that one is named after the run, which is not made yet, it goes into the folder.
    """
    known = offscreen_figure().canvas.get_supported_filetypes()
    if "{" in str(figure) or figure.is_dir():
        figure = folder / "figure.png"
    elif figure.suffix.lstrip(".").lower() not in known:
        figure = figure.with_name(f"{figure.name}.png")
    return figure.with_name(f"{figure.stem}-{what}{figure.suffix}")


def _counts(text: str, known: int) -> range:
    """Read numbers of components: ``2:6``, both included."""
    found = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", text, re.ASCII)
    first, last = map(int, found.groups()) if found else (0, 0)
    if not 1 <= first <= last <= MOST_COMPONENTS:
        raise InputError(
            "--sweep: expected the first and the last number of components, such as 2:6, got "
            f"{text!r}"
        )
    if first < known:
        raise InputError(
            f"--sweep: expected numbers from {known}, as there are {known} phases, got {text!r}"
        )
    return range(first, last + 1)


def _swept(data: "Collected", counts: range, settings: Settings) -> "ComponentSweep":
    from ..nmf.selection import sweep_components

    with FileProgress(None, "sweep") as progress:
        try:
            return sweep_components(
                data.X,
                counts,
                known=data.known,
                names=data.names,
                loss=settings.loss,
                seed=settings.seed,
                device=settings.device,
                progress=progress.update,
            )
        except InputError as error:
            told = str(error).replace(repr(counts), f"{counts[0]}:{counts[-1]}")
            raise InputError(f"--sweep: {told}") from error


def _drawn_sweep(sweep: "ComponentSweep", path: Path) -> str:
    from ..figure.selection import plot_sweep

    path.parent.mkdir(parents=True, exist_ok=True)
    plot_sweep(sweep).savefig(path)
    return str(path)


def _members(data: "Collected", count: int, settings: Settings, path: Path) -> tuple[Member, ...]:
    """Choose the members, and draw them."""
    from ..figure.selection import plot_constraints
    from ..nmf.selection import constraints_from_data

    with FileProgress(None, "choose") as progress:
        try:
            found = constraints_from_data(
                data.X,
                count,
                known=data.known,
                names=data.names,
                # Both ends have room, or the most prominent pattern that is new.
                ends=count - len(data.names) > 1,
                loss=settings.loss,
                seed=settings.seed,
                device=settings.device,
                progress=progress.update,
            )
        except InputError as error:
            raise InputError(f"--from-data: {error}") from error
    names, numbers = _named(data, found.indices), _numbers(data)
    path.parent.mkdir(parents=True, exist_ok=True)
    plot_constraints(
        data.X,
        replace(found, names=(*data.names, *names)),
        x=data.x,
        positions=numbers if data.position_label == "pattern" else data.position,
        x_label=data.x_label,
        position_label=data.position_label,
    ).savefig(path)
    shapes = found.components[found.n_known :]
    return tuple(
        Member(name, int(numbers[index]), _origin(data, index), shape)
        for name, index, shape in zip(names, found.indices, shapes, strict=True)
    )


def _numbers(data: "Collected") -> npt.NDArray[Any]:
    """Count the patterns as the run does, from 1; those of several runs one after another."""
    if len({run for run, _ in data.sources}) == 1:
        return np.array([seq_num for _, seq_num in data.sources])
    return np.arange(1, len(data.X) + 1)


def _origin(data: "Collected", index: int) -> str:
    number = _numbers(data)[index]
    run, seq_num = data.sources[index]
    several = len({each for each, _ in data.sources}) > 1
    where = f" (event {seq_num} of run {run[:8]})" if several else ""
    return f"pattern {number} of the data{where}"


def _named(data: "Collected", indices: Sequence[int]) -> list[str]:
    """Name patterns by the value of their variable, ``185 K``; by their number if need be."""
    numbers = _numbers(data)
    by_number = [f"pattern {numbers[index]}" for index in indices]
    if data.position_label == "pattern":
        return by_number
    label, _, unit = data.position_label.partition(" (")
    values = [f"{data.position[index]:.6g}" for index in indices]
    unit = unit.removesuffix(")")
    names = [f"{value} {unit}" if unit else f"{label} {value}" for value in values]
    often = Counter([*names, *data.names])
    return [
        name if often[name] == 1 else f"{name} ({number})"
        for name, number in zip(names, by_number, strict=True)
    ]


def _told(member: Member) -> str:
    number = f"pattern {member.number}"
    return member.name if number in member.name else f"{member.name} ({number})"

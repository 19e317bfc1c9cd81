"""One root error; each subclass also inherits the builtin a caller would catch."""

__all__ = [
    "AxisError",
    "CIFError",
    "CMFError",
    "CatalogError",
    "ComponentError",
    "DataKeyError",
    "InputError",
    "MissingExtraError",
    "PatternError",
    "PatternFileError",
    "RunNotFoundError",
    "SettingsError",
]


class CMFError(Exception):
    """Root of every error that this package raises on purpose."""

    def __str__(self) -> str:
        # KeyError would show the repr of its message: quoted, with escaped line ends.
        return Exception.__str__(self)


class InputError(CMFError, ValueError):
    """An argument has the wrong shape, sign, range or combination."""


class NoLinesError(InputError):
    """Patterns hold no lines of the phases that the width of the lines could be fitted to."""


class AxisError(InputError):
    """Two axes do not fit: a phase does not cover the data, or an axis is not increasing."""


class SettingsError(InputError):
    """A settings file is missing or cannot be read, or holds what cannot be."""


class PatternError(CMFError, ValueError):
    """A measured pattern cannot be used; the message is the reason kept in ``rejected``."""


class PatternFileError(CMFError, ValueError):
    """A pattern file is missing or cannot be read."""


class CIFError(CMFError, ValueError):
    """A CIF is missing, cannot be read, or does not say enough of a crystal structure."""


class CatalogError(CMFError, ValueError):
    """A catalog cannot be opened, or does not answer as a catalog does."""


class RunNotFoundError(CMFError, KeyError):
    """A catalog holds no run, or more than one, under this uid."""


class DataKeyError(CMFError, KeyError):
    """A data key is not in the documents."""


class ComponentError(CMFError, KeyError):
    """No component, or more than one, has this name."""


class MissingExtraError(CMFError, ImportError):
    """An optional dependency is not installed."""

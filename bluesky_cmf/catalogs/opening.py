"""`open_catalog`: from what a user names to a `Catalog`."""

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import httpx
from bluesky_tiled_plugins import CatalogOfBlueskyRuns
from tiled.client import Context, from_context, from_profile, from_uri
from tiled.client.container import Container
from tiled.profiles import load_profiles

from ..errors import CatalogError
from .catalog import BrokerCatalog, Catalog, TiledCatalog
from .embedded import release, serve

__all__ = ["open_catalog"]

logger = logging.getLogger(__name__)

#: Seconds that a server has for its first answer.
_FIRST_ANSWER = 10.0


def open_catalog(spec: Any, *, create: bool = True) -> Catalog:
    """Open a catalog of runs.

    Parameters
    ----------
    spec
        One of

        - a folder (``str`` or ``Path``), served by a Tiled server inside this process; a new or
          empty folder is made into a catalog;
        - the ``http://`` or ``https://`` address of a Tiled server, or of a container in it;
        - the name of a Tiled profile. It is taken for one only if it has no path separator, no
          folder of this name is there, and the profile exists; else the name is a folder.
          ``tiled:NAME`` always means the profile;
        - ``databroker:NAME``, the databroker catalog of this Tiled profile (its container
          ``raw``, where it has one), or ``databroker:temp`` for a new one in memory;
        - a Tiled client, or a databroker ``Broker`` or catalog, which stays open at `close`;
        - a `Catalog`, which is returned as it is.
    create
        Whether a folder that is not there, or empty, is made into a catalog.

    Returns
    -------
    Catalog
        Close it, or use it in a ``with`` statement. At the exit of the interpreter its writers
        still write what waits, and a folder is closed; the connection to another server is not.

    Raises
    ------
    CatalogError
        If the catalog cannot be opened; the message says what to do.
    """
    if isinstance(spec, Catalog):
        return spec
    if isinstance(spec, Path):
        return _open_folder(spec, create=create)
    if not isinstance(spec, str):
        return _from_object(spec)
    scheme, _, rest = spec.partition(":")
    if scheme in ("http", "https"):
        return _open_uri(spec)
    if scheme == "databroker":
        return _open_broker(rest)
    if scheme == "tiled":
        return _open_profile(rest)
    if not spec.strip() or rest.startswith("//"):
        raise CatalogError(
            f"catalog: expected a folder, the http(s) address of a Tiled server, a Tiled "
            f"profile or databroker:NAME, got {_short(spec)!r}."
        )
    if _names_a_profile(spec):
        return _open_profile(spec)
    return _open_folder(Path(spec), create=create)


def _open_folder(path: Path, *, create: bool) -> Catalog:
    try:
        folder = path.expanduser().resolve()
        uri = serve(folder, create=create)
    except CatalogError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        # The name is too long, holds a NUL, or begins with the home of nobody.
        reason = getattr(error, "strerror", None) or error
        raise CatalogError(
            f"The folder {_short(str(path))} cannot be opened as a catalog: {reason}. Name a "
            "folder that you may write."
        ) from error
    try:
        client = from_uri(uri)
    except BaseException:
        release(folder)
        raise

    def close() -> None:
        client.context.close()
        release(folder)

    return TiledCatalog(client, spec=str(folder), on_close=close)


def _open_uri(uri: str) -> Catalog:
    shown = _without_key(uri)
    _probe(uri, shown)
    with _refusals(f"the Tiled server {shown}"):
        context, path = Context.from_any_uri(uri)
        try:
            client = from_context(context, node_path_parts=path)
        except BaseException:
            context.close()
            raise
    return _from_client(client, spec=shown, on_close=context.close)


def _open_profile(name: str) -> Catalog:
    known = _profiles()
    if name not in known:
        raise _unknown_profile(name, known)
    address = known[name][1].get("uri")
    if address:
        _probe(address, f"{_without_key(address)} of the profile {name!r}")
    with _refusals(f"the Tiled profile {name!r}"):
        client = from_profile(name)
    return _from_client(client, spec=f"tiled:{name}", on_close=client.context.close)


def _open_broker(name: str) -> Catalog:
    from databroker.v1 import Broker

    known = _profiles()
    if name != "temp" and name not in known:
        raise _unknown_profile(name, known)
    with _refusals(f"the databroker catalog {name!r}"):
        broker = Broker.named(name)
    client = broker.v2
    return _from_client(client, spec=f"databroker:{name}", on_close=client.context.close)


def _from_object(given: Any) -> Catalog:
    # A Broker has its catalog as v2; a catalog of databroker has itself there.
    client = given if isinstance(given, Container) else getattr(given, "v2", None)
    if not isinstance(client, Container):
        raise CatalogError(
            "catalog: expected a folder, an address, the name of a profile, a Tiled client of a "
            f"container, or a databroker Broker, got a {type(given).__name__}."
        )
    return _from_client(client, spec=_without_key(str(client.uri)))


def _from_client(client: Any, *, spec: str, on_close: Callable[[], None] | None = None) -> Catalog:
    """Take the road that the runs behind a client are stored on."""
    if not isinstance(client, Container):
        raise CatalogError(
            f"{spec} is a {type(client).__name__} and not a container of runs. Give the address "
            "of the container."
        )
    if isinstance(client, CatalogOfBlueskyRuns):
        if not client.is_sql:
            return BrokerCatalog(client, spec=spec, on_close=on_close)
        client = client.v3
    return TiledCatalog(client, spec=spec, on_close=on_close)


def _names_a_profile(spec: str) -> bool:
    separators = {"/", "\\", os.sep}
    if any(separator in spec for separator in separators) or os.path.exists(spec):
        return False
    return spec in _profiles()


def _profiles() -> dict[str, Any]:
    """Read the Tiled profiles anew; a broken file is logged and passed over."""
    load_profiles.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        profiles = dict(load_profiles())
    for warning in caught:
        logger.warning("Tiled profiles: %s", warning.message)
    return profiles


def _unknown_profile(name: str, known: dict[str, Any]) -> CatalogError:
    names = ", ".join(sorted(known)) or "none"
    return CatalogError(
        f"There is no Tiled profile named {_short(name)!r}. Known profiles: {names}. Make one with "
        "'tiled profile create', or give the server's address."
    )


def _probe(uri: str, shown: str) -> None:
    """Ask for any answer at all: Tiled's client tries for most of a minute before it gives up."""
    try:
        httpx.get(uri, timeout=_FIRST_ANSWER)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise CatalogError(
            f"The server {shown} does not answer: {error or type(error).__name__}. Check the "
            "address and that the server runs."
        ) from error


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    # A server inside this process, as in databroker:temp, tells its version on the console.
    server_log = logging.getLogger("tiled.server.app")
    server_log.addFilter(_worth_telling)
    try:
        with warnings.catch_warnings():
            # Tiled's client of an application in this process imports Starlette's test client.
            warnings.filterwarnings("ignore", message="Using `httpx` with `starlette.testclient`")
            yield
    except CatalogError:
        raise
    except Exception as error:
        raise CatalogError(
            f"Cannot open {what}: {error}. Check the name, the address and, where the server "
            "wants one, the API key (TILED_API_KEY)."
        ) from error
    finally:
        server_log.removeFilter(_worth_telling)


def _worth_telling(record: logging.LogRecord) -> bool:
    return record.levelno > logging.INFO


def _without_key(uri: str) -> str:
    try:
        parts = urlsplit(uri)
    except ValueError as error:
        raise CatalogError(
            f"catalog: the address of the server cannot be read ({error}); expected one such as "
            "'https://tiled.example.org/api/v1'."
        ) from error
    query = [(key, value) for key, value in parse_qsl(parts.query) if key != "api_key"]
    return urlunsplit(parts._replace(query=urlencode(query)))


def _short(text: str) -> str:
    return text if len(text) <= 100 else f"{text[:99]}…"

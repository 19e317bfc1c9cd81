"""Where documents go and are read back: databroker, Tiled, an embedded Tiled server in a folder."""

from .catalog import BrokerCatalog, Catalog, TiledCatalog
from .opening import open_catalog
from .writer import CatalogWriter

__all__ = ["BrokerCatalog", "Catalog", "CatalogWriter", "TiledCatalog", "open_catalog"]

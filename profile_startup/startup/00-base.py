"""RunEngine and catalog."""

import os

import matplotlib.pyplot as plt
from bluesky import RunEngine

from bluesky_cmf import open_catalog

# Windows, where there is a display, stay alive at the prompt.
plt.ion()

RE = RunEngine({})

# A folder, the address or profile of a Tiled server, or databroker:NAME.
catalog = open_catalog(os.environ.get("BLUESKY_CMF_CATALOG", "demo-catalog"))
writer = catalog.writer()
RE.subscribe(writer)

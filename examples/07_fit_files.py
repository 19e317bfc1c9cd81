"""A folder of pattern files, fitted at once: what `bluesky-cmf fit` does, from Python.

At the command line: bluesky-cmf fit heating --settings settings.yaml
"""

import tempfile
from pathlib import Path

import numpy as np

from bluesky_cmf import LiveNMFPlot, Settings
from bluesky_cmf.documents import AnalysisArchive
from bluesky_cmf.exports import write_csv, write_nexus
from bluesky_cmf.patterns import write_pattern
from bluesky_cmf.series import Series, find_files, variable_from_names

folder = Path(tempfile.mkdtemp())
x = np.linspace(2.0, 12.0, 800)
cold, hot = (np.exp(-(((x - center) / 0.05) ** 2)) for center in (4.0, 6.5))
(folder / "heating").mkdir()
for n, temperature in enumerate(range(300, 500, 10)):
    share = 1 / (1 + np.exp((400 - temperature) / 15))
    pattern = 500 * ((1 - share) * cold + share * hot) + 10
    write_pattern(folder / "heating" / f"scan_{n:03}_T{temperature}K.xy", x, pattern)

# Known phases and steps stand in a settings file, with paths relative to it.
write_pattern(folder / "cold.xy", x, cold)
write_pattern(folder / "background.xy", x, np.ones_like(x))
(folder / "settings.yaml").write_text("""
n_components: 3
phases:
  - file: cold.xy
  - file: background.xy
preprocess:
  roi: [3, 11]
""")
settings = Settings.load(folder / "settings.yaml")

files = find_files([folder / "heating"])
series = Series(files, [variable_from_names(files)], x="two_theta")
live = settings.live_nmf(
    pattern=series.pattern, x=series.x, handlers=series.handlers, background=False
)
analysis, plot = AnalysisArchive(), LiveNMFPlot(save=folder / "figure.png")
live.subscribe(analysis)
live.subscribe(plot)
for name, doc in series.documents():
    live(name, doc)

write_csv(folder / "weights.csv", analysis, patterns=live.patterns)
write_nexus(folder / "analysis.h5", analysis, patterns=live.patterns)
print(f"{analysis.n_patterns} patterns against {', '.join(analysis.variables)}")
for name, weights in zip(analysis.names, analysis.weights.T, strict=True):
    print(f"{name:>10}: {weights.min():.0f} to {weights.max():.0f}")
print("written:", ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file())))
live.close()

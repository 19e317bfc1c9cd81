"""Known phases held fixed, one unknown phase found: what constraints are for."""

import numpy as np
import torch

from bluesky_cmf import NMF

x = np.linspace(0.0, 10.0, 500)
peaks = [np.exp(-(((x - center) / 0.2) ** 2)) for center in (2.0, 5.0, 8.0)]
rng = np.random.default_rng(0)
weights = rng.dirichlet(np.ones(3), size=40)
X = torch.tensor(weights @ np.stack(peaks), dtype=torch.float32)
known = [torch.tensor(peak, dtype=torch.float32)[None] for peak in peaks[:2]]

model = NMF(X.shape, 3, initial_components=known, fix_components=[True, True])
model.fit(X, beta=2, tol=1e-8, max_iter=2000)

found = model.H[2].detach().numpy()
print(f"the third component has its maximum at {x[found.argmax()]:.2f}; it was put at 8.00")
print("the known ones are untouched:", all(torch.equal(model.H[k], known[k][0]) for k in (0, 1)))

"""Known weights held fixed: the end members of a series are pure."""

import numpy as np
import torch

from bluesky_cmf import NMF

x = np.linspace(0.0, 10.0, 500)
start, end = (np.exp(-(((x - center) / 0.4) ** 2)) for center in (4.0, 6.0))
share = np.linspace(0.0, 1.0, 20)[:, None]
X = torch.tensor((1 - share) * start + share * end, dtype=torch.float32)

# One tensor (1, n_components) per example: the first is pure start, the last pure end.
weights = [None] * len(X)
weights[0], weights[-1] = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
fixed = [row is not None for row in weights]

model = NMF(X.shape, 2, initial_weights=weights, fix_weights=fixed)
model.fit(X, beta=2, tol=1e-8, max_iter=2000)

W = model.W.detach().numpy()
print("held:", W[0], W[-1])
print("in the middle:", W[10].round(2))

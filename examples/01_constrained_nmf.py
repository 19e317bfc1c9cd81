"""The documented example: two known components, both held fixed."""

import torch

import bluesky_cmf as cmf

X = torch.rand(30, 100)
x_0 = torch.zeros(1, 100)
x_1 = torch.ones(1, 100)

model = cmf.nmf.models.NMF(
    X.shape, initial_components=[x_0, x_1], fix_components=[True, True, False]
)
loss = model.fit(X)
learned_weights, learned_components = model.W.detach().numpy(), model.H.detach().numpy()

print(f"loss {loss[0]:.4g} -> {loss[-1]:.4g}")
print(f"weights {learned_weights.shape}, components {learned_components.shape}")

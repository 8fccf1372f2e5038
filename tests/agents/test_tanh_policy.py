"""The squashed Gaussian: its gradients and its moments. Its density stands in ``test_cql.py``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from raydiff.agents.tanh_policy import moments, squash


def test_actions_can_be_differentiated() -> None:
    mean = torch.tensor([0.3, -2.0], dtype=torch.float64, requires_grad=True)
    log_std = torch.tensor([-0.4, 0.5], dtype=torch.float64, requires_grad=True)
    noise = torch.tensor([0.7, -1.2], dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda m, s: squash(m, s, noise), (mean, log_std))


def test_moments_of_the_squashed_variable() -> None:
    mean, log_std = torch.tensor([0.0, 0.4, -1.5, 2.0]), torch.tensor([-3.0, -1.0, -0.5, 0.2])
    found, variance = moments(mean, log_std)
    grid = np.linspace(-9, 9, 20_001)
    weights = np.exp(-0.5 * grid**2) / np.exp(-0.5 * grid**2).sum()
    actions = np.tanh(mean.numpy()[:, None] + np.exp(log_std.numpy())[:, None] * grid)
    centre = actions @ weights
    np.testing.assert_allclose(found, centre, atol=2e-3)
    np.testing.assert_allclose(variance, ((actions - centre[:, None]) ** 2) @ weights, atol=2e-3)
    assert float(moments(torch.tensor([5.0]), torch.tensor([-20.0]))[1]) == pytest.approx(1e-6)

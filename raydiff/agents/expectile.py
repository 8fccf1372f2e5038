"""Expectile regression: a value within the data, between the mean of its outcomes and the best of them (section H.2)."""

from __future__ import annotations

import torch
from torch import Tensor


def expectile_loss(advantage: Tensor, expectile: float) -> Tensor:
    """``|tau - 1[u < 0]| u^2`` of each ``advantage [B]``, target less estimate (Kostrikov et al. 2021, equation 3). The
    estimate that minimises its mean is the ``tau``-expectile of the targets: their mean at .5, their maximum at 1."""
    return torch.where(advantage < 0, 1 - expectile, expectile) * advantage.square()

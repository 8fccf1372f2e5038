"""SAC's squashed Gaussian policy (Haarnoja et al. 2018, appendix C): ``tanh`` of a normal variable."""

from __future__ import annotations

import functools
import math

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from raydiff.agents.policy import Policy

LOG_STD_RANGE = (-20.0, 2.0)
NODES = 16
SMALLEST_VARIANCE = 1e-6


def mean_and_log_std(output: Tensor) -> tuple[Tensor, Tensor]:
    """Both ``[..., A]``, before the ``tanh``, from the output ``[..., 2A]`` of a network."""
    mean, log_std = output.chunk(2, -1)
    return mean, log_std.clamp(*LOG_STD_RANGE)


def squash(mean: Tensor, log_std: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
    """Actions ``[..., A]`` for standard normal ``noise [..., A]``, and their log density ``[...]`` (equation 21). Both
    can be differentiated by ``mean`` and ``log_std``, which are broadcast."""
    before = mean + log_std.exp() * noise
    # log(1 - tanh(u)^2) in a form that keeps its digits where tanh saturates
    jacobian = 2 * (math.log(2) - before - softplus(-2 * before))
    density = -0.5 * noise.square() - log_std - 0.5 * math.log(2 * math.pi) - jacobian
    return before.tanh(), density.sum(-1)


def moments(mean: Tensor, log_std: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance ``[..., A]`` of the squashed variable, by Gauss-Hermite quadrature with ``NODES`` nodes. The
    variance is at least ``SMALLEST_VARIANCE``."""
    nodes, weights = _quadrature(mean.device, mean.dtype)
    actions = (mean[..., None] + log_std.exp()[..., None] * nodes).tanh_()
    centre = actions @ weights
    return centre, ((actions - centre[..., None]).square_() @ weights).clamp_min_(SMALLEST_VARIANCE)


@functools.cache
def _quadrature(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Nodes, and weights that add up to 1, for the standard normal law."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(NODES)
    weights = weights / weights.sum()
    return torch.tensor(nodes, device=device, dtype=dtype), torch.tensor(weights, device=device, dtype=dtype)


class TanhGaussianPolicy(Policy):
    """A published policy of kind ``tanh_gaussian``. It acts by ``tanh`` of its mean, or by a draw.

    For guidance a Gaussian stands for it, with the mean and variance of its actions: its own density is unbounded at
    actions of ±1, where clipped data lie.
    """

    OUTPUTS = 2

    @torch.no_grad()
    def act(
        self, observation: np.ndarray | Tensor, deterministic: bool = True, generator: torch.Generator | None = None
    ) -> np.ndarray:
        """Actions ``[B, A]`` within ±1 for observations ``[B, S]`` in environment units."""
        if not isinstance(observation, Tensor):
            observation = torch.from_numpy(np.asarray(observation, dtype=np.float32))
        mean, log_std = mean_and_log_std(self.output(observation))
        if not deterministic:
            mean = mean + log_std.exp() * torch.empty_like(mean).normal_(generator=generator)
        return mean.tanh().cpu().numpy()

    @torch.no_grad()
    def distribution(self, observation: Tensor) -> tuple[Tensor, Tensor]:
        """Mean ``[..., A]`` and variance ``[..., A]`` of the action for observations ``[..., S]`` in environment
        units."""
        return moments(*mean_and_log_std(self.output(observation)))

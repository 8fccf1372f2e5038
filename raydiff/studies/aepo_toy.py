"""A toy of one action for which everything that AEPO estimates is known: Gaussian modes and a quadratic value.

Behaviour is a mixture of Gaussians ``N(m_k, v_k)`` with weights ``w_k``, the value ``Q(a) = -(a - c)^2 / 2``. Then the
policy ``mu(a) exp(beta Q(a))`` is a mixture too, with precisions ``1/v_k + beta``, and so is either of them with noise
(section 0.2). The intermediate energy is the logarithm of the ratio of their noisy densities, but for a constant, and
its gradient the difference of their scores.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from raydiff.diffusion.vp import VP

_WIDEST, _POINTS = 4.0, 8001  # of the grid on which the distribution function is inverted


@dataclass(frozen=True)
class Mixture:
    """Gaussian modes of one action: weights that sum to 1, means and variances."""

    weights: Sequence[float]
    means: Sequence[float]
    variances: Sequence[float]

    @property
    def mean(self) -> float:
        return sum(w * m for w, m in zip(self.weights, self.means, strict=True))

    @property
    def variance(self) -> float:
        square = sum(w * (m**2 + v) for w, m, v in zip(self.weights, self.means, self.variances, strict=True))
        return square - self.mean**2

    def draw(self, n: int, generator: torch.Generator) -> Tensor:
        """Actions ``[n, 1]``."""
        mode = torch.multinomial(torch.tensor(self.weights), n, replacement=True, generator=generator)
        noise = torch.randn(n, generator=generator)
        return (torch.tensor(self.means)[mode] + torch.tensor(self.variances)[mode].sqrt() * noise)[:, None]

    def log_density(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Of ``alpha a + sigma noise`` at ``x [B, 1]`` for levels ``[B]``: ``[B]``."""
        return self._modes(x, alpha, sigma)[0].logsumexp(1)

    def noise(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The exact noise network ``[B, 1]``."""
        logs, means, _ = self._modes(x, alpha, sigma)
        mean = (logs.softmax(1) * means).sum(1)
        return ((x[:, 0] - alpha * mean) / sigma)[:, None]

    def posterior_variance(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """Variance ``[B]`` of the action given ``x``."""
        logs, means, variance = self._modes(x, alpha, sigma)
        share = logs.softmax(1)
        mean = (share * means).sum(1, keepdim=True)
        return (share * (variance + (means - mean) ** 2)).sum(1)

    def quantiles(self, n: int) -> Tensor:
        """The actions ``[n]`` at the middles of ``n`` equal parts of the law, in float64."""
        grid = torch.linspace(-_WIDEST, _WIDEST, _POINTS, dtype=torch.float64)
        below = torch.zeros_like(grid)
        for w, m, v in zip(self.weights, self.means, self.variances, strict=True):
            below += w * torch.special.ndtr((grid - m) / math.sqrt(v))
        share = (torch.arange(n, dtype=torch.float64) + 0.5) / n
        right = torch.searchsorted(below, share).clamp(1, _POINTS - 1)
        part = (share - below[right - 1]) / (below[right] - below[right - 1])
        return torch.lerp(grid[right - 1], grid[right], part)

    def guided(self, beta: float, target: float) -> Mixture:
        """The law in proportion to this one times ``exp(beta Q)``, ``Q = -(a - target)^2 / 2``."""
        logs, means, variances = [], [], []
        for w, m, v in zip(self.weights, self.means, self.variances, strict=True):
            precision = 1 / v + beta
            logs.append(math.log(w) - (math.log1p(beta * v) + beta * (m - target) ** 2 / (1 + beta * v)) / 2)
            means.append((m / v + beta * target) / precision)
            variances.append(1 / precision)
        weights = torch.tensor(logs, dtype=torch.float64).softmax(0)
        return Mixture(weights.tolist(), means, variances)

    def _modes(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of every mode at ``x``: log of weight times density, posterior mean and posterior variance, ``[B, K]`` each."""
        weights, means, variances = (x.new_tensor(part) for part in (self.weights, self.means, self.variances))
        alpha, sigma = alpha[:, None], sigma[:, None]
        total, off = alpha**2 * variances + sigma**2, x - alpha * means
        logs = weights.log() - (off**2 / total + (2 * math.pi * total).log()) / 2
        return logs, means + alpha * variances / total * off, variances * sigma**2 / total


@dataclass(frozen=True)
class Toy:
    """``behaviour`` and the value ``-(a - target)^2 / 2``, whose weight is ``beta``.

    As the learner asks its critics within the limits of actions only (section F.7), the value is asked at the nearest
    action within ``limit``, beyond which next to nothing of any law lies; its gradient passes that limit unchanged.
    """

    behaviour: Mixture
    beta: float
    target: float = 1.0
    limit: float = 2.0

    @property
    def policy(self) -> Mixture:
        return self.behaviour.guided(self.beta, self.target)

    def value(self, action: Tensor) -> Tensor:
        """``Q [B]`` for actions ``[B, 1]``."""
        return -((action[:, 0].clamp(-self.limit, self.limit) - self.target) ** 2) / 2

    def slope(self, action: Tensor) -> Tensor:
        """``dQ/da [B, 1]``."""
        return self.target - action.clamp(-self.limit, self.limit)

    def energy(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The exact intermediate energy ``[B]`` but for a constant."""
        return self.policy.log_density(x, alpha, sigma) - self.behaviour.log_density(x, alpha, sigma)

    def guidance(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """What exact guidance takes off the noise prediction: ``sigma dE/dx [B, 1]``."""
        return self.behaviour.noise(x, alpha, sigma) - self.policy.noise(x, alpha, sigma)

    def variance(self, vp: VP, t: float) -> float:
        """The mean of the posterior's variance over the behaviour's noisy actions at time ``t``."""
        x = torch.linspace(-6, 6, 4801, dtype=torch.float64)[:, None]
        alpha, sigma = vp.levels(torch.full((len(x),), t, dtype=torch.float64))
        weight = self.behaviour.log_density(x, alpha, sigma).softmax(0)
        return float((weight * self.behaviour.posterior_variance(x, alpha, sigma)).sum())


TOYS = {
    "one-mode": Mixture([1.0], [0.3], [0.25]),
    "two-modes": Mixture([0.5, 0.5], [-0.6, 0.6], [0.04, 0.04]),
}
"""Both are the toys of section F's tests."""

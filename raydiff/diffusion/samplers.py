"""The stochastic second-order sampler of EDM, as a pure function with hooks (section A.3, corrected form).

Guidance and conditioning are hooks, so the same loop generates from pure noise, refreshes stored trajectories from
an intermediate noise level, and runs against exact denoisers in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor

Denoise = Callable[[Tensor, Tensor], Tensor]
"""``denoise(x [B, ...], sigma [1]) -> E[y | x] [B, ...]``."""

Guide = Callable[[Tensor, float, Tensor, int, bool], tuple[Tensor, Tensor]]
"""``guide(x, sigma, denoised, step, corrector) -> (x, denoised)``. A score term ``G`` returns ``denoised + sigma^2 G``;
a displacement of the sample that leaves the slope as it is returns both arguments shifted."""

Replace = Callable[[Tensor, float], Tensor]
"""``replace(x, sigma) -> x`` with the conditioned entries overwritten for noise level ``sigma`` (0 at the end)."""


@dataclass(frozen=True)
class Churn:
    """Fresh noise during sampling: ``S_churn`` (0: deterministic), ``S_tmin``, ``S_tmax`` and ``S_noise``."""

    amount: float = 0.0
    sigma_min: float = 0.0
    sigma_max: float = math.inf
    noise: float = 1.0

    def gamma(self, sigma: float, steps: int) -> float:
        """Relative increase of the noise level before a step at ``sigma``."""
        if not self.sigma_min <= sigma <= self.sigma_max:
            return 0.0
        return min(self.amount / steps, math.sqrt(2.0) - 1.0)


def nfe(steps: int) -> int:
    """Network calls per trajectory of ``steps`` Heun steps: the last step, to sigma 0, has no corrector."""
    return 2 * steps - 1


@torch.no_grad()
def sample_heun(
    denoise: Denoise,
    x: Tensor,
    sigmas: Tensor,
    *,
    churn: Churn | None = None,
    guide: Guide | None = None,
    generator: torch.Generator | None = None,
    replace: Replace | None = None,
) -> Tensor:
    """Denoise ``x [B, ...]``, already at noise level ``sigmas[0]``, along ``sigmas [N + 1]`` (decreasing, ending in 0).

    Works in the dtype of ``x``; noise is drawn from ``generator`` and only where churn is active. The conditioned
    entries of ``replace`` are overwritten before every network call and at the end (section A.5b).
    """
    churn = churn or Churn()
    levels: list[float] = sigmas.tolist()
    steps = len(levels) - 1
    for step, (sigma, target) in enumerate(pairwise(levels)):
        gamma = churn.gamma(sigma, steps)
        level = sigma * (1.0 + gamma)
        if gamma > 0.0:
            noise = torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)
            x = x.add(noise, alpha=churn.noise * math.sqrt(level**2 - sigma**2))
        if replace is not None:
            x = replace(x, level)
        x = _heun_step(denoise, x, level, target, step, guide, replace)
    return x


def _heun_step(
    denoise: Denoise, x: Tensor, level: float, target: float, step: int, guide: Guide | None, replace: Replace | None
) -> Tensor:
    """One step from noise ``level`` to ``target``: Euler, then the trapezoidal correction unless ``target`` is 0."""
    denoised = denoise(x, x.new_full((1,), level))
    if guide is not None:
        x, denoised = guide(x, level, denoised, step, False)
    # The Euler step x + (target - level) * (x - D) / level, written as the interpolation that it is.
    ahead = torch.lerp(denoised, x, target / level)
    if replace is not None:
        ahead = replace(ahead, target)
    if target == 0.0:
        return ahead
    denoised_ahead = denoise(ahead, x.new_full((1,), target))
    corrected = ahead
    if guide is not None:
        corrected, denoised_ahead = guide(ahead, target, denoised_ahead, step, True)
    half = (target - level) / 2
    # x + half * (slope + slope_ahead), with slope = (x - D) / level
    result = x.add(x - denoised, alpha=half / level).add_(corrected - denoised_ahead, alpha=half / target)
    return result if replace is None else replace(result, target)


def hold(mask: Tensor, values: Tensor, noise: Tensor | None = None) -> Replace:
    """A ``replace`` hook that keeps the entries where ``mask`` is true at ``values`` (both broadcast against ``x``).

    Without ``noise`` they are clean at every level, which is exact for a denoiser trained with clean conditions. For
    an unconditional denoiser pass ``noise`` (standard normal): the entries are then ``values + sigma * noise``.
    """

    def replace(x: Tensor, sigma: float) -> Tensor:
        wanted = values if noise is None or sigma == 0.0 else values + sigma * noise
        return torch.where(mask, wanted, x)

    return replace

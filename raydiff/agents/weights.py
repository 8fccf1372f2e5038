"""Weights of actions by their advantage: what self-weighted guidance samples in proportion to (section E.4).

A positive weight ``w(s, a)`` stands for the policy ``pi(a|s)`` proportional to ``w(s, a) mu(a|s)``, ``mu`` being the
data's. With a value that minimises ``E f(Q - V)`` that is ``w = |f'(u)| / |u|``, ``u`` the advantage (Hansen-Estruch
et al. 2023, equation 6).
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydiff.config_learner import SWGConfig


def expectile_weight(advantage: Tensor, expectile: float) -> Tensor:
    """``tau`` where the advantage ``[B]`` is positive, otherwise ``1 - tau``."""
    return torch.where(advantage > 0, expectile, 1 - expectile).to(advantage)


def smooth_expectile_weight(advantage: Tensor, expectile: float, sharpness: float) -> Tensor:
    """From ``1 - tau`` to ``tau`` along a logistic curve of slope ``sharpness`` (equation 21 of the paper)."""
    step = (sharpness * advantage).sigmoid()
    return torch.lerp(torch.full_like(step, 1 - expectile), torch.full_like(step, expectile), step)


def exponential_weight(advantage: Tensor, temperature: float) -> Tensor:
    """``exp(k u)``, as the policy of implicit Q-learning."""
    return (temperature * advantage).exp()


def linex_weight(advantage: Tensor, alpha: float) -> Tensor:
    """``alpha (exp(alpha u) - 1) / u``, and its limit ``alpha^2`` at ``u = 0`` (equation 22 of the paper)."""
    scaled = alpha * advantage
    flat = scaled == 0
    ratio = scaled.expm1() / scaled.masked_fill(flat, 1)
    return alpha**2 * ratio.masked_fill(flat, 1)


def action_weight(advantage: Tensor, options: SWGConfig) -> Tensor:
    """The configured weight ``[B]`` of each ``advantage [B]``; those without bounds are clipped to ``weight_min`` and
    ``weight_max``."""
    if options.weight == "expectile":
        return expectile_weight(advantage, options.expectile)
    if options.weight == "smooth_expectile":
        return smooth_expectile_weight(advantage, options.expectile, options.sharpness)
    if options.weight == "exponential":
        weight = exponential_weight(advantage, options.exponential_temperature)
    else:
        weight = linex_weight(advantage, options.linex_alpha)
    return weight.clamp(options.weight_min, options.weight_max)

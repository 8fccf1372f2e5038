"""Conversions between denoisers, scores, noise predictions and the two noise conventions (section 0.2).

EDM: ``x = y + sigma * noise``. Variance preserving (VP): ``x = alpha * y + sigma_t * noise`` with
``alpha^2 + sigma_t^2 = 1``.
"""

from __future__ import annotations

from torch import Tensor

Level = Tensor | float


def score_from_denoised(x: Tensor, denoised: Tensor, sigma: Level) -> Tensor:
    """``grad log p(x; sigma) = (D - x) / sigma^2`` (Tweedie)."""
    return (denoised - x) / sigma**2


def denoised_from_score(x: Tensor, score: Tensor, sigma: Level) -> Tensor:
    """``D = x + sigma^2 score``."""
    return x + sigma**2 * score


def noise_from_denoised(x: Tensor, denoised: Tensor, sigma: Level) -> Tensor:
    """``epsilon = (x - D) / sigma``, with ``x`` in EDM scale; the same number in both conventions."""
    return (x - denoised) / sigma


def vp_denoised_from_noise(x: Tensor, noise: Tensor, alpha: Level, sigma_t: Level) -> Tensor:
    """``E[y | x] = (x - sigma_t epsilon) / alpha``, with ``x`` in VP scale."""
    return (x - sigma_t * noise) / alpha


def vp_score_from_noise(noise: Tensor, sigma_t: Level) -> Tensor:
    """``grad log p_t(x) = -epsilon / sigma_t``, with respect to ``x`` in VP scale."""
    return -noise / sigma_t


def vp_to_edm(x: Tensor, alpha: Level, sigma_t: Level) -> tuple[Tensor, Level]:
    """``(x / alpha, sigma_t / alpha)``: the EDM point and level at which the denoiser has the same value."""
    return x / alpha, sigma_t / alpha


def edm_to_vp(x: Tensor, sigma: Level) -> tuple[Tensor, Level, Level]:
    """``(x_vp, alpha, sigma_t)`` of the EDM point ``x`` at ``sigma``."""
    alpha = (1 + sigma**2) ** -0.5
    return x * alpha, alpha, sigma * alpha


def guided_denoised(denoised: Tensor, guidance: Tensor, sigma: Level) -> Tensor:
    """``D' = D + sigma^2 G``: the denoiser whose score is ``score + G``."""
    return denoised + sigma**2 * guidance


def guided_noise(noise: Tensor, guidance: Tensor, sigma_t: Level) -> Tensor:
    """``epsilon' = epsilon - sigma_t G``, with ``G`` a gradient with respect to ``x`` in VP scale."""
    return noise - sigma_t * guidance

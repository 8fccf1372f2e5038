"""Strengths of guidance over the steps of a sampler, and over noise levels (sections B.2, B.3 and B.5)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

REFERENCE_STEPS = 256
"""Steps at which the published strengths were used: others are rescaled to the same total displacement (B.2)."""

TINY = 1e-8


def rescaling(steps: int, start: float = 0.0) -> float:
    """Factor ``256 / N`` on published strengths, for the run of ``N = steps / (1 - start)`` whose end is sampled."""
    return REFERENCE_STEPS * (1.0 - start) / steps


def paper_strengths(strength: float, cosine: float, steps: int, start: float = 0.0) -> list[float]:
    """Displacements of mode ``paper``, one per step: ``lambda (1 - n/N + beta sin(pi (n+1)/N))``, and 0 at the last
    step (section B.3), with ``lambda = strength * 256 / N``.

    With ``start`` the steps are the end of a longer run of ``N = steps / (1 - start)``, from ``n = start * N`` on.
    """
    scaled, total = strength * rescaling(steps, start), steps / (1.0 - start)
    ramp = []
    for step in range(steps - 1):
        progress = start + step / total
        ramp.append(scaled * (1.0 - progress + cosine * math.sin(math.pi * (progress + 1.0 / total))))
    return [*ramp, 0.0]


def reachable_displacement(strengths: list[float], sigmas: Tensor) -> float:
    """``sum_n lambda_n / sqrt(1 + sigma_n^2)``: how far mode ``paper`` can move the actions of a standardised Gaussian,
    in the Euclidean norm over a trajectory's whole action block (section B.2)."""
    levels = sigmas[:-1].tolist()
    return sum(value / math.sqrt(1.0 + sigma**2) for value, sigma in zip(strengths, levels, strict=True))


def unit_norm(gradient: Tensor) -> Tensor:
    """``gradient [B, L, A]`` with unit Frobenius norm over the ``[L, A]`` block of each trajectory; 0 where it
    vanishes."""
    return gradient / (torch.linalg.vector_norm(gradient, dim=(1, 2), keepdim=True) + TINY)


def posterior_variance(sigma: float) -> float:
    """``sigma^2 / (1 + sigma^2)``: variance of a standardised Gaussian action given its noisy value."""
    return sigma**2 / (1.0 + sigma**2)

"""Guidance of a trajectory denoiser towards the policy being learnt (sections B.3 to B.5).

Both modes use the gradient of ``log pi(a | s)`` with respect to the denoised actions, in closed form: nothing is
differentiated through the denoiser or through the policy, and only action columns are ever changed.

``paper`` (Policy-Guided Diffusion as published): the gradient, normalised to unit length over all actions of a
trajectory, displaces the noisy sample by a strength that depends on the step only. It ascends towards the policy's
mode; strength is not an exponent.

``score_exact``: for jointly Gaussian data with independent actions, the exact score of ``p(tau) pi(a | s)^strength``
at every noise level; bounded, and the strength means the same whatever the number of steps or actions.
"""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor

from raydiff.config import GuidanceConfig
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.diffusion.samplers import Denoise

REFERENCE_STEPS = 256
"""Steps at which the published strengths were used: others are rescaled to the same total displacement (B.2)."""

VARIANCE_RANGE = (1e-3, 1e3)
RESIDUAL_LIMIT = 4.0
TINY = 1e-8


class ActionDistribution(Protocol):
    """What guidance needs of a policy. ``distribution(observation [..., S])`` takes environment units and returns the
    mean ``[..., A]`` and variance ``[..., A]`` of the action; the variance is None for a deterministic policy."""

    deterministic: bool

    def distribution(self, observation: Tensor) -> tuple[Tensor, Tensor | None]: ...


class PolicyGuidance:
    """A guidance hook for ``sample_heun`` on normalised trajectories ``[B, L, C]``.

    ``steps`` is the number of sampler steps. ``start`` is the part of the noise schedule that is skipped: 0 when
    sampling from pure noise, ``f`` for a refresh that runs only the last ``1 - f`` of it; the strengths of mode
    ``paper`` are then those of that last part. With ``reevaluate`` (the denoiser) mode ``paper`` denoises the
    displaced sample again instead of keeping the slope, at one more network call per step (section A.3, note 3).
    """

    def __init__(
        self,
        policy: ActionDistribution,
        normalizer: TrajectoryNormalizer,
        config: GuidanceConfig,
        steps: int,
        *,
        start: float = 0.0,
        reevaluate: Denoise | None = None,
    ) -> None:
        first, last = normalizer.observation_size, normalizer.observation_size + normalizer.action_size
        self.policy, self.config = policy, config
        self.first, self.last = first, last
        self.observation_mean, self.observation_std = normalizer.mean[:first], normalizer.std[:first]
        self.action_mean, self.action_std = normalizer.mean[first:last], normalizer.std[first:last]
        self.squashed = normalizer.action_space == "atanh"
        self.strengths = paper_strengths(config.strength, config.cosine, steps, start)
        self.reevaluate = reevaluate

    def __call__(self, x: Tensor, sigma: float, denoised: Tensor, step: int, corrector: bool) -> tuple[Tensor, Tensor]:
        if self.config.mode == "score_exact":
            return x, self._score_exact(sigma, denoised)
        if corrector or self.strengths[step] == 0.0:
            return x, denoised
        shift = self.direction(denoised).mul_(self.strengths[step])
        x = self._add_to_actions(x, shift)
        if self.reevaluate is not None:
            return x, self.reevaluate(x, x.new_full((1,), sigma))
        return x, self._add_to_actions(denoised, shift)

    def gradient(self, denoised: Tensor) -> Tensor:
        """``d log pi / d u [B, L, A]`` at the denoised, normalised actions ``u``, the observations held fixed (B.4)."""
        residual, variance, slope = self._residual(denoised)
        return slope * residual / variance

    def direction(self, denoised: Tensor) -> Tensor:
        """The gradient with unit Frobenius norm over the ``[L, A]`` block of each trajectory; 0 where it vanishes."""
        gradient = self.gradient(denoised)
        return gradient / (torch.linalg.vector_norm(gradient, dim=(1, 2), keepdim=True) + TINY)

    def _score_exact(self, sigma: float, denoised: Tensor) -> Tensor:
        """``D + sigma^2 G`` with ``sigma^2 G = lambda S r / (v + lambda S)``, where ``S = sigma^2 / (1 + sigma^2)`` is
        the posterior variance of a standardised action, ``r`` and ``v`` the policy's residual and variance."""
        residual, variance, slope = self._residual(denoised)
        posterior = self.config.strength * sigma**2 / (1.0 + sigma**2)
        if self.squashed:  # tanh linearised at the denoised action; both limits guard its flat ends
            residual = (residual / slope.clamp_min(TINY)).clamp_(-RESIDUAL_LIMIT, RESIDUAL_LIMIT)
        else:
            residual = residual / slope
        variance = (variance / slope.square().clamp_min(TINY)).clamp_(*VARIANCE_RANGE)
        return self._add_to_actions(denoised, residual.mul_(posterior / variance.add_(posterior)))

    def _residual(self, denoised: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """In environment units: policy mean minus action ``[B, L, A]``, variance and ``da/du`` (broadcastable)."""
        observation = torch.addcmul(self.observation_mean, denoised[..., : self.first], self.observation_std)
        mean, variance = self.policy.distribution(observation)
        action = torch.addcmul(self.action_mean, denoised[..., self.first : self.last], self.action_std)
        slope = self.action_std
        if self.squashed:
            action = action.tanh()
            slope = slope * (1 - action.square())
        if variance is None:
            variance = self.action_std.new_full((1,), self.config.delta**2)
        return mean - action, variance, slope

    def _add_to_actions(self, rows: Tensor, shift: Tensor) -> Tensor:
        rows = rows.clone()
        rows[..., self.first : self.last] += shift
        return rows


def paper_strengths(strength: float, cosine: float, steps: int, start: float = 0.0) -> list[float]:
    """Displacements of mode ``paper``, one per step: ``lambda (1 - n/N + beta sin(pi (n+1)/N))``, and 0 at the last
    step (section B.3), with ``lambda = strength * 256 / N``.

    With ``start`` the steps are the end of a longer run of ``N = steps / (1 - start)``, from ``n = start * N`` on.
    """
    total = steps / (1.0 - start)
    scaled = strength * REFERENCE_STEPS / total
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

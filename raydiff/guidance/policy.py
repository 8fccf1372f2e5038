"""Guidance of a trajectory denoiser towards the policy being learnt (sections B.3 to B.5).

All modes use the gradient of ``log pi(a | s)`` with respect to the denoised actions, in closed form: nothing is
differentiated through the denoiser or through the policy, and only action columns are ever changed.

``paper`` (Policy-Guided Diffusion as published): the gradient, normalised to unit length over all actions of a
trajectory, displaces the noisy sample by a strength that depends on the step only. It ascends towards the policy's
mode; strength is not an exponent.

``paper_code`` (as in its repository): the same displacement, before the noise of a step is added, by the gradient at
one more denoised sample.

``score``: the gradient as a term of the score (the published equation 12), at low noise only.

``score_exact``: for jointly Gaussian data with independent actions, the exact score of ``p(tau) pi(a | s)^strength``
at every noise level; bounded, and the strength means the same whatever the number of steps or actions.

A diffusion policy has no density in closed form. With ``guidance.diffusion_policy=surrogate`` a Gaussian of standard
deviation ``delta`` round its deterministic path stands for it; with ``own_score`` its network gives the score of its
own law with noise added, of standard deviation ``delta`` in the first three modes. ``score_exact`` needs no ``delta``:
the exact term is the gradient of ``log E[pi^strength]`` over the posterior ``N(u, S)`` of a clean action, and at
strength 1 that is the log density of the policy's actions with noise of variance ``S``, whatever their law. At any
strength, of ``strength`` times that with variance ``strength S``, which is exact for Gaussian policies too.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from raydiff.config import GuidanceConfig
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.diffusion.samplers import Denoise
from raydiff.guidance.api import ActionDistribution, OwnScore
from raydiff.guidance.columns import ActionColumns
from raydiff.guidance.schedule import TINY, paper_strengths, posterior_variance, unit_norm

VARIANCE_RANGE = (1e-3, 1e3)
RESIDUAL_LIMIT = 4.0
MOST_RATIO = 8.0  # between the widths of noise that the actions of one row are given


class PolicyGuidance:
    """The ``guide`` hook of a solver, and in mode ``paper_code`` its ``shift``, on normalised rows ``[B, L, C]``.

    ``steps`` is the number of sampler steps. ``start`` is the part of the noise schedule that is skipped: 0 when
    sampling from pure noise, ``f`` for a refresh that runs only the last ``1 - f`` of it; the published strengths are
    then those of that last part. ``denoise`` is the denoiser, which only ``paper_code`` needs; it raises
    ``ValueError`` without.
    """

    def __init__(
        self,
        policy: ActionDistribution,
        normalizer: TrajectoryNormalizer,
        config: GuidanceConfig,
        steps: int,
        *,
        start: float = 0.0,
        denoise: Denoise | None = None,
    ) -> None:
        if config.mode == "paper_code" and denoise is None:
            raise ValueError("guidance.mode=paper_code needs the denoiser: it evaluates one more sample in every step")
        self.policy, self.config, self.denoise = policy, config, denoise
        self.own = policy if config.diffusion_policy == "own_score" and isinstance(policy, OwnScore) else None
        self.columns = ActionColumns(normalizer)
        self.strengths = paper_strengths(config.strength, config.cosine, steps, start)

    def __call__(self, x: Tensor, sigma: float, denoised: Tensor, step: int, corrector: bool) -> tuple[Tensor, Tensor]:
        """The guided ``(x, denoised)``; ``paper_code`` changes neither."""
        match self.config.mode:
            case "score_exact":
                return x, self._score_exact(sigma, denoised)
            case "score":
                return x, self._score(sigma, denoised)
            case "paper" if not corrector and self.strengths[step] > 0.0:
                shift = self.direction(denoised).mul_(self.strengths[step])
                return self.columns.add(x, shift), self.columns.add(denoised, shift)
        return x, denoised

    def shift(self, x: Tensor, sigma: float, step: int) -> Tensor:
        """Mode ``paper_code``: the sample before the churn of a step, displaced by the gradient at its own denoised
        sample."""
        if self.strengths[step] == 0.0:
            return x
        assert self.denoise is not None
        denoised = self.denoise(x, x.new_full((1,), sigma))
        return self.columns.add(x, self.direction(denoised).mul_(self.strengths[step]))

    def gradient(self, denoised: Tensor) -> Tensor:
        """``d log pi / d u [B, L, A]`` at the denoised, normalised actions ``u``, the observations held fixed (B.4)."""
        residual, variance, slope = self._residual(denoised)
        return slope * residual / variance

    def direction(self, denoised: Tensor) -> Tensor:
        """The gradient with unit Frobenius norm over the ``[L, A]`` block of each trajectory; 0 where it vanishes."""
        return unit_norm(self.gradient(denoised))

    def _score(self, sigma: float, denoised: Tensor) -> Tensor:
        """``D + sigma^2 G`` with ``G = lambda J grad log pi``, where ``J = 1 / (1 + sigma^2)`` is the derivative of a
        standardised Gaussian's denoised action by the noisy one, or 1 without ``chain_rule``.

        Off where ``sigma^2`` exceeds the policy's variance in normalised units: there the term would be stiff, by
        ``sigma^2 / v``, and below it moves an action by no more than ``lambda J`` times its distance from the mean.
        """
        residual, variance, slope = self._residual(denoised)
        reach = self.config.strength * (posterior_variance(sigma) if self.config.chain_rule else sigma**2)
        pull = (slope * residual / variance).mul_(reach)
        return self.columns.add(denoised, torch.where(sigma**2 * slope.square() <= variance, pull, 0.0))

    def _score_exact(self, sigma: float, denoised: Tensor) -> Tensor:
        """``D + sigma^2 G`` with ``sigma^2 G = lambda S r / (v + lambda S)``, where ``S = sigma^2 / (1 + sigma^2)`` is
        the posterior variance of a standardised action, ``r`` and ``v`` the policy's residual and variance."""
        if self.own is not None:
            return self._own_score_exact(self.own, sigma, denoised)
        residual, variance, slope = self._residual(denoised)
        posterior = self.config.strength * posterior_variance(sigma)
        if self.columns.squashed:  # tanh linearised at the denoised action; both limits guard its flat ends
            residual = (residual / slope.clamp_min(TINY)).clamp_(-RESIDUAL_LIMIT, RESIDUAL_LIMIT)
        else:
            residual = residual / slope
        variance = (variance / slope.square().clamp_min(TINY)).clamp_(*VARIANCE_RANGE)
        return self.columns.add(denoised, residual.mul_(posterior / variance.add_(posterior)))

    def _own_score_exact(self, policy: OwnScore, sigma: float, denoised: Tensor) -> Tensor:
        """The same with ``sigma^2 G = lambda S`` times the score of the policy's law with noise of variance
        ``lambda S``: the policy's denoiser, applied to the denoised action."""
        observation = self.columns.observation(denoised)
        action, slope = self.columns.environment(self.columns.normalised(denoised))
        spread = self.config.strength * posterior_variance(sigma)
        pull = _score_at_widths(policy, observation, action, slope * math.sqrt(spread)).mul_(spread * slope)
        if self.columns.squashed:
            pull.clamp_(-RESIDUAL_LIMIT, RESIDUAL_LIMIT)
        return self.columns.add(denoised, pull)

    def _residual(self, denoised: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """In environment units: policy mean minus action ``[B, L, A]``, variance and ``da/du`` (broadcastable)."""
        observation, delta = self.columns.observation(denoised), self.config.delta
        action, slope = self.columns.environment(self.columns.normalised(denoised))
        wide = slope.new_full((1,), delta**2)
        if self.own is not None:  # what a Gaussian of that variance would have for this score
            return self.own.blurred_score(observation, action, delta).mul_(wide), wide, slope
        mean, variance = self.policy.distribution(observation)
        return mean - action, wide if variance is None else variance, slope


def _score_at_widths(policy: OwnScore, observation: Tensor, action: Tensor, width: Tensor) -> Tensor:
    """Score ``[..., A]`` of the policy's law with noise of standard deviation ``width [..., A]``.

    Policies have noise that is the same for all actions of a row, so they are asked at its smallest and its largest
    width. Between the two the inverse of a Gaussian's score is linear in ``width^2``, and so it is read off.
    """
    width = width.expand_as(action)
    high = width.amax(-1, keepdim=True)
    low = torch.maximum(width.amin(-1, keepdim=True), high / MOST_RATIO)
    if torch.equal(low, high):
        return policy.blurred_score(observation, action, high)
    states, actions = torch.stack([observation, observation]), torch.stack([action, action])
    near, far = policy.blurred_score(states, actions, torch.stack([low, high]))
    share = ((width.square() - low.square()) / (high.square() - low.square()).clamp_min(TINY)).clamp_(0, 1)
    product = near * far
    straight = torch.lerp(near, far, share)  # where the two point in opposite directions
    return torch.where(product > 0, product / torch.lerp(far, near, share), straight)

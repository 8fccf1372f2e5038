"""AEPO's intermediate energy in closed form: how good a clean action is expected to be (sections F.2 and F.3).

The score of ``mu(a) exp(beta Q(s, a))`` at a noise level needs ``E = log E[exp(beta Q(s, a_0)) | a_t]``. With ``Q``
expanded to first order round a point near the posterior mean ``m``, and a Gaussian posterior of variance ``V``, that is
``beta Q(m) + beta^2 V |g|^2 / 2`` with ``g = dQ/dm`` (equation 25). It is exact for a linear ``Q``. For a quadratic one
of curvature ``-kappa`` it has the factor ``1 - beta V kappa`` where ``1 / (1 + beta V kappa)`` is right, and so guides
away from the optimum where ``beta V kappa > 1``; the damped form has the right one.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from raydiff.agents.networks import MLP

TINY = 1e-8

NARROWEST = 1e-3
"""Smallest distance over which the curvature of ``Q`` is measured."""

Function = Callable[[Tensor], Tensor]


class CriticMean:
    """The mean of two stacked critics in given normalised states ``[B, S]``. They know actions within +-1 only: others
    are asked at the nearest of those, and the gradient passes the limits unchanged (section F.7)."""

    def __init__(self, critic: MLP, observation: Tensor) -> None:
        self.critic, self.observation = critic, observation
        self._last: tuple[Tensor, Tensor] | None = None

    @torch.no_grad()
    def value(self, action: Tensor) -> Tensor:
        """``Q(s, a) [B]`` for ``action [B, A]``. That of the action whose slope was asked for last is known already."""
        if self._last is not None and self._last[0] is action:
            return self._last[1]
        return self.critic(self._inputs(action)).squeeze(-1).mean(0)

    def slope(self, action: Tensor) -> Tensor:
        """``dQ/da [B, A]``."""
        with torch.enable_grad():
            inputs = self._inputs(action).requires_grad_()
            value = (self.critic.head(0, inputs) + self.critic.head(1, inputs)) / 2
            self._last = action, value.detach().squeeze(-1)
            return torch.autograd.grad(value.sum(), inputs)[0][:, -action.shape[1] :]

    def _inputs(self, action: Tensor) -> Tensor:
        return torch.cat([self.observation, action.clamp(-1.0, 1.0)], -1).detach()


def closed_form_energy(
    value: Function,
    slope: Function,
    mean: Tensor,
    variance: Tensor,
    beta: float,
    *,
    damped: bool = False,
    offset: float = 0.0,
) -> Tensor:
    """The energy ``E [B]`` for posterior means ``[B, A]`` and variances ``[B]``; ``value`` and ``slope`` are ``Q [B]``
    and ``dQ/da [B, A]`` at actions ``[B, A]``.

    ``offset`` is the distance along the gradient from the mean to the point of expansion (equation 46, published as
    .001); the energy changes with its square. ``damped`` divides the variance term by ``1 + beta V kappa``.
    """
    gradient = slope(mean)
    norm = torch.linalg.vector_norm(gradient, dim=-1)
    if offset == 0.0:
        level = beta * value(mean)
    else:
        step = offset * gradient / (norm[:, None] + TINY)
        level = beta * (value(mean + step) - (gradient * step).sum(-1))
    spread = 0.5 * beta**2 * variance * norm.square()
    if damped:
        direction = gradient / (norm[:, None] + TINY)
        kappa = -(direction * _bend(slope, mean, direction, variance[:, None])).sum(-1)
        spread = spread / (1.0 + beta * variance * kappa.clamp_min(0.0))
    return level + spread


def closed_form_gradient(
    slope: Function, mean: Tensor, variance: Tensor | float, beta: float, *, damped: bool = False
) -> Tensor:
    """``dE/dm [..., A]`` for means ``[..., A]`` and variances that broadcast against them, ``kappa`` held constant.

    Its second term contains the Hessian of ``Q`` along the gradient. That is measured over the width of the posterior to
    both sides: a network of ReLUs has no curvature at a point, only over a distance.

    Guidance of trajectories (``guidance.energy``) and of single actions (``action_guidance``) both come from here.
    """
    gradient = slope(mean)
    norm = torch.linalg.vector_norm(gradient, dim=-1, keepdim=True)
    direction = gradient / (norm + TINY)
    if not isinstance(variance, Tensor):
        variance = mean.new_full((), variance)
    bend = _bend(slope, mean, direction, variance)
    spread = beta**2 * variance * norm * bend
    if damped:
        kappa = -(direction * bend).sum(-1, keepdim=True)
        spread = spread / (1.0 + beta * variance * kappa.clamp_min(0.0))
    return beta * gradient + spread


def _bend(slope: Function, mean: Tensor, direction: Tensor, variance: Tensor) -> Tensor:
    """The Hessian of ``Q`` times ``direction [..., A]``: the gradient's change over the posterior's width."""
    width = variance.sqrt().clamp_min(NARROWEST)
    return (slope(mean + width * direction) - slope(mean - width * direction)) / (2.0 * width)

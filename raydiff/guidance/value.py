"""Guidance up the critic: the gradient of ``Q(s, a)`` at the denoised actions of every row, states held fixed."""

from __future__ import annotations

from torch import Tensor

from raydiff.config import GuidanceConfig
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.guidance.api import Critic
from raydiff.guidance.columns import ActionColumns
from raydiff.guidance.schedule import paper_strengths, posterior_variance, unit_norm


class ActionValueGradient:
    """``dQ/du [B, L, A]`` by the normalised actions ``u [B, L, A]``, at observations ``[B, L, S]`` in environment units.

    The critic, which knows actions within ±1 only, is asked at the nearest of those; its gradient passes the limits
    unchanged (section F.1).
    """

    def __init__(self, critic: Critic, columns: ActionColumns) -> None:
        self.critic, self.columns = critic, columns

    def __call__(self, observation: Tensor, u: Tensor) -> Tensor:
        action, slope = self.columns.environment(u)
        return slope * self.critic.value_gradient(observation, action.clamp(-1.0, 1.0))


class ValueGuidance:
    """A ``guide`` hook on normalised rows ``[B, L, C]``; ``steps`` and ``start`` as in ``PolicyGuidance``.

    With ``normalize`` the gradient of a trajectory, at unit length, displaces the noisy sample on the published
    schedule, as in mode ``paper`` of policy guidance. Without, ``strength * dQ/du`` is a term of the score, through the
    derivative ``1 / (1 + sigma^2)`` of a standardised Gaussian's denoised action by the noisy one: guidance by the
    energy ``strength * Q(s, E[a | x])``, exact for Gaussian actions and a linear ``Q``.
    """

    def __init__(
        self,
        critic: Critic,
        normalizer: TrajectoryNormalizer,
        config: GuidanceConfig,
        steps: int,
        *,
        start: float = 0.0,
    ) -> None:
        self.config, self.columns = config, ActionColumns(normalizer)
        self.value_gradient = ActionValueGradient(critic, self.columns)
        self.strengths = paper_strengths(config.strength, config.cosine, steps, start)

    def __call__(self, x: Tensor, sigma: float, denoised: Tensor, step: int, corrector: bool) -> tuple[Tensor, Tensor]:
        if not self.config.normalize:
            scale = self.config.strength * posterior_variance(sigma)
            return x, self.columns.add(denoised, self.gradient(denoised).mul_(scale))
        if corrector or self.strengths[step] == 0.0:
            return x, denoised
        shift = unit_norm(self.gradient(denoised)).mul_(self.strengths[step])
        return self.columns.add(x, shift), self.columns.add(denoised, shift)

    def gradient(self, denoised: Tensor) -> Tensor:
        """``dQ/du [B, L, A]`` at the denoised, normalised actions."""
        return self.value_gradient(self.columns.observation(denoised), self.columns.normalised(denoised))

"""Where the actions of a trajectory are, and what they mean in environment units."""

from __future__ import annotations

import torch
from torch import Tensor

from raydiff.data.normalizer import TrajectoryNormalizer


class ActionColumns:
    """The observation and action columns of normalised rows ``[B, L, C]``, on the device of the statistics."""

    def __init__(self, normalizer: TrajectoryNormalizer) -> None:
        self.first = normalizer.observation_size
        self.last = self.first + normalizer.action_size
        self.observation_mean, self.observation_std = normalizer.observation_mean, normalizer.observation_std
        self.mean, self.std = normalizer.action_mean, normalizer.action_std
        self.squashed = normalizer.action_space == "atanh"

    def observation(self, rows: Tensor) -> Tensor:
        """Observations ``[B, L, S]`` in environment units."""
        return torch.addcmul(self.observation_mean, rows[..., : self.first], self.observation_std)

    def normalised(self, rows: Tensor) -> Tensor:
        """The action columns ``u [B, L, A]`` as they are: a view."""
        return rows[..., self.first : self.last]

    def environment(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """The action ``a(u) [B, L, A]`` in environment units, not limited to ±1 in the raw space, and ``da/du`` (which
        broadcasts against it)."""
        action = torch.addcmul(self.mean, u, self.std)
        if not self.squashed:
            return action, self.std
        action = action.tanh()
        return action, self.std * (1 - action.square())

    def add(self, rows: Tensor, shift: Tensor) -> Tensor:
        """A copy of ``rows`` with ``shift [B, L, A]`` added to the actions."""
        rows = rows.clone()
        rows[..., self.first : self.last] += shift
        return rows

"""What learners share that train everything from the first update to the last."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raydiff.agents.api import Stage
from raydiff.agents.networks import Adam
from raydiff.agents.rates import actor_rate, cosine
from raydiff.agents.state import Resumable
from raydiff.agents.streams import Streams
from raydiff.config_learner import LearnerConfig


class OneStage(Resumable):
    """A learner with one stage, ``train``. Observations are normalised as ``(s - observation_mean) / observation_std``,
    both ``[S]``. What draws first weights, and after them seeds the noise, is seeded by ``seed``."""

    NAME = ""

    def __init__(
        self, config: LearnerConfig, observation_mean: Tensor, observation_std: Tensor, seed: int | Sequence[int]
    ) -> None:
        self.config = config
        self.updates, self.publish_critic = 0, False
        self._mean = observation_mean.to(config.device, torch.float32)
        self._std = observation_std.to(config.device, torch.float32)
        self._metrics: dict[str, Tensor] = {}
        self._origins = [torch.Generator().manual_seed(one) for one in ([seed] if isinstance(seed, int) else seed)]

    def stages(self) -> list[Stage]:
        """As ``api.Agent.stages``."""
        return [Stage("train", self.config.updates)]

    def begin_stage(self, name: str, table: Any) -> None:
        """As ``api.Agent.begin_stage``: there is nothing to prepare."""
        if name != "train":
            raise ValueError(f"{self.NAME} has one stage, train; {name} was begun")

    def _noise_stream(self) -> torch.Generator:
        """The one random stream of a learner with one seed; to be taken when the first weights are drawn."""
        return Streams(self._origins, self.config.device).generators[0]

    def _normalize(self, observation: Tensor) -> Tensor:
        return (observation - self._mean) / self._std

    def _anneal(self, actors: Sequence[Adam], others: Sequence[Adam]) -> None:
        """All learning rates fall to zero along a cosine where that is asked."""
        if self.config.learning_rate_schedule == "cosine":
            share = self.updates / self.config.updates
            for optimizer in actors:
                optimizer.learning_rate = cosine(actor_rate(self.config), share)
            for optimizer in others:
                optimizer.learning_rate = cosine(self.config.learning_rate, share)

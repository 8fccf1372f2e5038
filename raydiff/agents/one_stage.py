"""What learners share that train everything from the first update to the last."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from raydiff.agents.api import Stage
from raydiff.agents.networks import MLP, Adam
from raydiff.agents.policy import PolicySpec
from raydiff.agents.rates import actor_rate, cosine
from raydiff.agents.state import Resumable
from raydiff.config_learner import LearnerConfig
from raydiff.types import Batch, PolicyBlob


class OneStage(Resumable):
    """A learner with one stage, ``train``. Observations are normalised as ``(s - observation_mean) / observation_std``,
    both ``[S]``. A sequence of seeds trains as many learners beside each other.

    An update has two parts: what the host does (draws, learning rates, counters), and ``program``, which is arithmetic
    on tensors alone, so that it can be compiled or kept as a CUDA graph.
    """

    NAME = ""

    def __init__(
        self,
        config: LearnerConfig,
        spec: PolicySpec,
        observation_mean: Tensor,
        observation_std: Tensor,
        seed: int | Sequence[int],
    ) -> None:
        self.config, self.spec = config, spec
        self.updates, self.publish_critic = 0, False
        self._mean = observation_mean.to(config.device, torch.float32)
        self._std = observation_std.to(config.device, torch.float32)
        self._metrics: dict[str, Tensor] = {}
        self.seeds = None if isinstance(seed, int) else len(seed)
        self.program: Callable[..., dict[str, Tensor]] = self._step
        self._origins = [torch.Generator().manual_seed(one) for one in ([seed] if isinstance(seed, int) else seed)]

    def _network(self, sizes: Sequence[int], heads: int | None = None) -> MLP:
        """A network as the configuration has it, its weights drawn from the seed, or from each seed."""
        origin = self._origins[0] if self.seeds is None else self._origins
        return MLP(sizes, heads, origin, self.config.device, getattr(torch, self.config.precision))

    def stages(self) -> list[Stage]:
        """As ``api.Agent.stages``."""
        return [Stage("train", self.config.updates)]

    def begin_stage(self, name: str, table: Any) -> None:
        """As ``api.Agent.begin_stage``: there is nothing to prepare."""
        if name != "train":
            raise ValueError(f"{self.NAME} has one stage, train; {name} was begun")

    @abstractmethod
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """As ``api.Agent.update``; of several seeds on ``[N, B, ...]``, with metrics ``[N]``."""

    @abstractmethod
    def _step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What an update does on tensors alone: ``program`` is this, or what a compiler or a CUDA graph makes of it."""

    @abstractmethod
    def policy_blob(self, version: int, member: int | None = None) -> PolicyBlob:
        """As ``api.Agent.policy_blob``; of several seeds that of ``member``."""

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

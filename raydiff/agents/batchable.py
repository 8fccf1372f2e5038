"""Learners whose parameters can have a row for each of several seeds, and whose arithmetic stands apart."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from raydiff.agents.networks import MLP
from raydiff.agents.one_stage import OneStage
from raydiff.config_learner import LearnerConfig
from raydiff.types import Batch, PolicyBlob


class Batchable(OneStage):
    """A learner for one seed, or where ``seed`` is a sequence for as many beside each other: batches are
    ``[N, B, ...]`` then, and metrics ``[N]``.

    An update has two parts: what the host does (draws, learning rates, counters), and ``program``, which is arithmetic
    on tensors alone, so that it can be compiled or kept as a CUDA graph.
    """

    def __init__(
        self, config: LearnerConfig, observation_mean: Tensor, observation_std: Tensor, seed: int | Sequence[int]
    ) -> None:
        super().__init__(config, observation_mean, observation_std, seed)
        self.seeds = None if isinstance(seed, int) else len(seed)
        self.program: Callable[..., dict[str, Tensor]] = self._step

    def _network(self, sizes: Sequence[int], heads: int | None = None) -> MLP:
        """A network as the configuration has it, its weights drawn from the seed, or from each seed."""
        origin = self._origins[0] if self.seeds is None else self._origins
        return MLP(sizes, heads, origin, self.config.device, getattr(torch, self.config.precision))

    @abstractmethod
    def update(self, batch: Batch) -> dict[str, Tensor]:
        """As ``api.Agent.update``."""

    @abstractmethod
    def _step(self, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
        """What an update does on tensors alone: ``program`` is this, or what a compiler or a CUDA graph makes of it."""

    @abstractmethod
    def policy_blob(self, version: int, member: int | None = None) -> PolicyBlob:
        """As ``api.Agent.policy_blob``; of several seeds that of ``member``."""

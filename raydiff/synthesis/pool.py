"""Generators without a learner: shards in, trajectories out, in any order."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from raydiff.compute import configure_compute
from raydiff.config import Config
from raydiff.replay.block import BlockReport
from raydiff.roles.emulated import make_generator
from raydiff.roles.models import Models
from raydiff.types import PolicyBlob

LEARNER_ID = "generate"


@dataclass(frozen=True)
class Made:
    """A finished shard, with its rows ``[n, L, C]``; or, with neither, one that was lost with its generator."""

    shard: int
    rows: np.ndarray | None = None
    report: BlockReport | None = None


class Pool(Protocol):
    """``room`` more shards may be submitted; ``collect`` returns what has finished, after a short wait."""

    @property
    def room(self) -> int: ...

    def submit(self, shard: int) -> None: ...

    def collect(self) -> list[Made]: ...


class LocalPool:
    """One generator in this process; ``collect`` does the work."""

    def __init__(self, config: Config, models: Models, policy: PolicyBlob, guided: bool) -> None:
        configure_compute(config.cluster.worker_threads or 1, config.cluster.matmul)
        self.batch, self.policy, self.guided = config.generator.batch, policy, guided
        self.role = make_generator(config, models, "generator/0", LEARNER_ID)
        self.queue: deque[int] = deque()

    @property
    def room(self) -> int:
        return 1 - len(self.queue)

    def submit(self, shard: int) -> None:
        self.queue.append(shard)

    def collect(self) -> list[Made]:
        if not self.queue:
            return []
        shard = self.queue.popleft()
        return [Made(shard, *self.role.generate(self.policy, self.batch, shard, shard, self.guided))]

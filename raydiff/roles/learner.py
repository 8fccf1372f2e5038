"""The learner: its own tables, an agent, and a policy published after every chunk of updates."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from raydiff.agents.registry import build_agent
from raydiff.config import Config
from raydiff.guidance.build import needs_critic
from raydiff.replay.mixture import Lag, Mixture
from raydiff.replay.table import Table
from raydiff.runtime.plan import flow_limits
from raydiff.seeds import key_seed
from raydiff.types import PolicyBlob, Trajectories, Transitions


@dataclass(frozen=True)
class TrainReport:
    """One chunk of updates. ``waited``: seconds since the chunk before ended; clock values are for reports only."""

    update: int
    updates: int
    losses: dict[str, float]
    lag: Lag | None
    start: float
    end: float
    waited: float


class Learner:
    """Trains on ``real`` transitions and on the blocks it ingests. ``ingest`` may run in a thread beside ``train``."""

    def __init__(self, config: Config, real: Transitions, learner_id: str) -> None:
        self.config, self.learner_id = config, learner_id
        sizes = real.observation.shape[1], real.action.shape[1]
        mean, std = real.observation.mean(0), real.observation.std(0)
        self.agent = build_agent(
            config.learner, *sizes, mean, std, key_seed(config.seed, "agent"), needs_critic(config.guidance)
        )
        device = config.learner.device
        limits = flow_limits(config)
        synthetic = Table(limits.slots, limits.block_transitions, *sizes, device) if limits.slots else None
        self.mixture = Mixture(
            Table.from_transitions(real, device), synthetic, config.learner.batch_size, config.replay.real_fraction
        )
        self.generator = torch.Generator(device=device).manual_seed(key_seed(config.seed, "batches"))
        self.stages = self.agent.stages()
        self.update = 0
        self.entered = -1
        self.ended: float | None = None

    def ingest(self, rows: np.ndarray, slot: int, policy_version: int) -> None:
        """Copy a block ``[n, L, C]`` into its slot; no view of it is kept."""
        if self.mixture.synthetic is None:
            raise ValueError("this learner has no synthetic table: generator.count is 0")
        real = self.mixture.real
        block = Trajectories(rows, real.observation_size, real.action_size)
        self.mixture.synthetic.write(slot, block.transitions(), policy_version)

    def train(self, updates: int, front: tuple[int, int] | None = None, real_only: bool = False) -> TrainReport:
        """Run ``updates`` gradient updates on real data and on the slots ``front`` of the table (all of them without
        it), or with ``real_only`` on real data alone. Raises ``FloatingPointError`` on a non-finite loss."""
        start = time.time()
        batches, lag = self.mixture.chunk(updates, self.update, self.generator, front, real_only)
        sums: dict[str, torch.Tensor] = {}
        counts: dict[str, int] = {}
        for batch in batches:
            self._enter_stage()
            for name, value in self.agent.update(batch).items():
                sums[name] = sums[name] + value if name in sums else value
                counts[name] = counts.get(name, 0) + 1
            self.update += 1
        losses = {name: float(value) / counts[name] for name, value in sums.items()}
        bad = [name for name, value in losses.items() if not np.isfinite(value)]
        if bad:
            raise FloatingPointError(f"{', '.join(bad)} became non-finite before update {self.update}")
        waited = start - self.ended if self.ended is not None else 0.0
        self.ended = time.time()
        return TrainReport(self.update, updates, losses, lag, start, self.ended, waited)

    def _enter_stage(self) -> None:
        """Begin the stage that the current update falls into, once."""
        done = 0
        for number, stage in enumerate(self.stages):
            done += stage.updates
            if self.update < done or number == len(self.stages) - 1:
                if number != self.entered:
                    self.entered = number
                    self.agent.begin_stage(stage.name, self.mixture.real)
                return

    def policy(self) -> PolicyBlob:
        """The current policy; its version is the number of updates done."""
        return self.agent.policy_blob(self.update)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The agent's whole state (networks, targets, optimisers, random streams)."""
        return self.agent.state_dict()

"""The learner: its own tables, an agent, and a policy published after every chunk of updates."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import torch

from raydiff.config import Config
from raydiff.errors import UserError
from raydiff.replay.mixture import Lag, Mixture
from raydiff.replay.table import Table
from raydiff.roles.bad_states import Recipe, Rewind
from raydiff.roles.stages import stage_at
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
        """``real`` must know its next actions where ``config.learner.needs_next_action``. Raises ``UserError`` where
        that learner is to learn from generated single transitions."""
        self.config, self.learner_id = config, learner_id
        sizes = real.observation.shape[1], real.action.shape[1]
        self.recipe = Recipe(config, real.observation.mean(0), real.observation.std(0), sizes[1])
        self.agent = self.recipe.build()
        device, follow = config.learner.device, config.learner.needs_next_action
        limits = flow_limits(config)
        if follow and limits.slots and config.rows < 3:
            raise UserError(
                f"learner.algorithm={config.learner.algorithm} needs the action that follows each transition, but "
                f"generator.method={config.generator.method} makes single transitions here, which have none. Generate "
                "trajectories of more rows, set learner.rebrac.critic_penalty=0, or set generator.count=0."
            )
        synthetic = Table(limits.slots, limits.block_transitions, *sizes, device, follow) if limits.slots else None
        table = Table.from_transitions(real, device, follow)
        self.mixture = Mixture(table, synthetic, config.learner.batch_size, config.replay.real_fraction)
        self.generator = torch.Generator(device=device).manual_seed(key_seed(config.seed, "batches"))
        self.stages = self.agent.stages()
        self.update = 0
        self.entered = -1
        self.rewind = Rewind()
        self.ended: float | None = None

    def ingest(self, rows: np.ndarray, slot: int, policy_version: int) -> None:
        """Copy a block ``[n, L, C]`` into its slot; no view of it is kept."""
        if self.mixture.synthetic is None:
            raise ValueError("this learner has no synthetic table: generator.count is 0")
        real = self.mixture.real
        block = Trajectories(rows, real.observation_size, real.action_size)
        self.mixture.synthetic.write(slot, block.transitions(real.next_action), policy_version)

    def train(self, updates: int, front: tuple[int, int] | None = None, real_only: bool = False) -> TrainReport:
        """Run ``updates`` gradient updates on real data and on the slots ``front`` of the table (all of them without
        it), or with ``real_only`` on real data alone. Raises ``BadUpdate`` on a non-finite loss, or where that does
        not come again as the updates are repeated, ``FloatingPointError``."""
        start = time.time()
        drawn, lag = self.mixture.chunk(updates, self.update, self.generator, front, real_only)
        batches = list(drawn)
        self.rewind.keep(self.agent, self.update, self.entered, batches)
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
            raise self._failure(bad)
        waited = start - self.ended if self.ended is not None else 0.0
        self.ended = time.time()
        return TrainReport(self.update, updates, losses, lag, start, self.ended, waited)

    def _enter_stage(self) -> None:
        """Begin the stage that the current update falls into, once."""
        number = stage_at(self.stages, self.update)
        if number != self.entered:
            self.entered = number
            self.agent.begin_stage(self.stages[number].name, self.mixture.real)

    def _failure(self, bad: list[str]) -> FloatingPointError:
        """What to raise when losses have become non-finite: the update in which it began."""
        found = self.rewind.find(self.recipe, self.stages, self.mixture.real, self.learner_id)
        return found or FloatingPointError(
            f"{self.learner_id}: {', '.join(bad)} became non-finite before update {self.update:,}, but did not when the "
            f"last updates were repeated: on {self.config.learner.device} sums come in no fixed order. Nothing was saved."
        )

    def policy(self) -> PolicyBlob:
        """The current policy; its version is the number of updates done."""
        return self.agent.policy_blob(self.update)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The agent's whole state (networks, targets, optimisers, random streams)."""
        return self.agent.state_dict()

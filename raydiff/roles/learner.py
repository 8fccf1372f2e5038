"""The learner: its own tables, an agent, and a policy published after every chunk of updates. With ``learner.seeds``
it has an agent, a synthetic table, batches and a policy for each seed, and one table of real data."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from raydiff.config import Config
from raydiff.data.rewards import learner_rewards
from raydiff.replay.block import parts_of
from raydiff.replay.mixture import Lag, Mixture, joint_chunk
from raydiff.replay.table import Table
from raydiff.roles.bad_states import Recipe, Rewind
from raydiff.roles.stages import stage_at
from raydiff.runtime.plan import flow_limits
from raydiff.seeds import key_seed
from raydiff.types import PolicyBlob, Trajectories, Transitions


@dataclass(frozen=True)
class TrainReport:
    """One chunk of updates of one seed. ``waited``: seconds since the chunk before ended; clock values are for reports only."""

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
        """``real`` must know its next actions where ``config.learner.needs_next_action``."""
        self.config, self.learner_id = config, learner_id
        sizes = real.observation.shape[1], real.action.shape[1]
        self.recipe = Recipe(config, real.observation.mean(0), real.observation.std(0), sizes[1])
        self.agent = self.recipe.build()
        device, follow = config.learner.device, config.learner.needs_next_action
        limits = flow_limits(config)
        self.real = Table.from_transitions(learner_rewards(real, config.data), device, follow)
        batch = config.learner.batch_size, config.replay.real_fraction
        self.mixtures, self.generators = list[Mixture](), list[torch.Generator]()
        for seed in config.seeds:
            made = Table(limits.slots, limits.block_transitions, *sizes, device, follow) if limits.slots else None
            self.mixtures.append(Mixture(self.real, made, *batch))
            self.generators.append(torch.Generator(device=device).manual_seed(key_seed(seed, "batches")))
        self.stages = self.agent.stages()
        self.update = 0
        self.entered = -1
        self.rewind = Rewind()
        self.ended: float | None = None

    def ingest(self, rows: np.ndarray, slot: int, policy_version: int, sizes: Sequence[int] = ()) -> None:
        """Copy a block ``[n, L, C]`` into its slot; no view of it is kept. ``sizes``: trajectories of each seed, where
        there are several."""
        for part, mixture in zip(parts_of(rows, sizes or (len(rows),)), self.mixtures, strict=True):
            if mixture.synthetic is None:
                raise ValueError("this learner has no synthetic table: generator.count is 0")
            block = Trajectories(part, self.real.observation_size, self.real.action_size)
            steps = learner_rewards(block.transitions(self.real.next_action), self.config.data)
            mixture.synthetic.write(slot, steps, policy_version)

    def train(
        self, updates: int, front: tuple[int, int] | None = None, real_only: bool = False
    ) -> tuple[TrainReport, ...]:
        """Run ``updates`` gradient updates on real data and on the slots ``front`` of the table (all of them without
        it), or with ``real_only`` on real data alone; returns a report for each seed. Raises ``BadUpdate`` on a
        non-finite loss, or where that does not come again as the updates are repeated, ``FloatingPointError``."""
        start = time.time()
        drawn, lags = joint_chunk(self.mixtures, updates, self.update, self.generators, front, real_only)
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
        found = {name: [total / counts[name] for total in value.reshape(-1).tolist()] for name, value in sums.items()}
        losses = [{name: values[seed] for name, values in found.items()} for seed in range(len(lags))]
        if not np.isfinite(list(found.values())).all():
            raise self._failure(losses)
        waited = start - self.ended if self.ended is not None else 0.0
        self.ended = end = time.time()
        return tuple(
            TrainReport(self.update, updates, own, lag, start, end, waited)
            for own, lag in zip(losses, lags, strict=True)
        )

    def _enter_stage(self) -> None:
        """Begin the stage that the current update falls into, once."""
        number = stage_at(self.stages, self.update)
        if number != self.entered:
            self.entered = number
            self.agent.begin_stage(self.stages[number].name, self.real)

    def _failure(self, losses: list[dict[str, float]]) -> FloatingPointError:
        """What to raise when losses have become non-finite: the update in which it began, of the first such seed for
        which it is found again."""
        bad = [[name for name, value in own.items() if not np.isfinite(value)] for own in losses]
        for member in [member for member, names in enumerate(bad) if names]:
            found = self.rewind.find(self.recipe, self.stages, self.real, self.learner_id, member)
            if found is not None:
                return found
        names = ", ".join(dict.fromkeys(itertools.chain.from_iterable(bad)))
        return FloatingPointError(
            f"{self.learner_id}: {names} became non-finite before update {self.update:,}, but did not when the "
            f"last updates were repeated: on {self.config.learner.device} sums come in no fixed order. Nothing was saved."
        )

    def policies(self) -> list[PolicyBlob]:
        """The current policy of each seed; their version is the number of updates done."""
        return self.agent.policy_blobs(self.update)

    def states(self) -> list[dict[str, torch.Tensor]]:
        """The whole state of each seed's agent (networks, targets, optimisers, random streams), as it would have it if
        it were alone."""
        return [self.agent.member_state(member) for member in range(len(self.mixtures))]

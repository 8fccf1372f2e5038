"""The generator: new trajectories for a policy, and old ones brought up to date. A refiner is a generator that is
only asked for the second."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from raydiff.agents.policy import Policy
from raydiff.config import Config
from raydiff.dynamics.reward import RewardModel
from raydiff.generators.api import GeneratedTrajectories, action_agreement, keyed_generator
from raydiff.generators.build import build_generator, build_refiner
from raydiff.generators.filter import filter_trajectories
from raydiff.generators.relabel import relabel_rewards
from raydiff.generators.validate import validate
from raydiff.replay.block import BlockReport, parts_of
from raydiff.roles.models import Models
from raydiff.seeds import key_seed
from raydiff.types import PolicyBlob, Provenance, Trajectories


class Generator:
    """Answers ``generate`` and ``refine`` with rows ``[n, L, C]`` and a report; keeps no state between calls."""

    def __init__(self, config: Config, models: Models, name: str, learner_id: str) -> None:
        self.config, self.models, self.name, self.learner_id = config, models, name, learner_id
        self.device = (config.refiner if name.startswith("refiner") else config.generator).device
        self.sampler = build_generator(config, models, self.device)
        self.refiner = build_refiner(config, models, self.device)
        reward = models.reward
        self.reward = RewardModel.from_state(reward).to(self.device) if reward is not None else None
        self._policies: dict[int, tuple[int, Policy]] = {}

    def generate(
        self,
        policy: PolicyBlob,
        trajectories: int,
        shard: int,
        block: int,
        guided: bool,
        strength: float | None = None,
        member: int = 0,
    ) -> tuple[np.ndarray, BlockReport]:
        """A new block for the shard. The key (run seed, learner, shard) fixes its bytes for a given policy and
        ``strength`` of the guidance (None: the configured one). ``member``: which of the seeds trained at once."""
        start = time.time()
        seed = self._key(member, shard)
        target = self._load(policy, member) if guided else None
        made = self.sampler.generate(target, trajectories, (seed,), strength)
        return self._finish(made, policy, shard, seed, block, None, (start, time.time()), trajectories, member)

    def refine(
        self,
        rows: np.ndarray,
        policy: PolicyBlob,
        shard: int,
        block: int,
        parent: int,
        strength: float | None = None,
        member: int = 0,
    ) -> tuple[np.ndarray, BlockReport]:
        """The stored block ``rows`` brought up to ``policy``. Raises ``ValueError`` where the method cannot."""
        if self.refiner is None:
            raise ValueError(f"generator.method={self.config.generator.method} has no way to refine trajectories")
        start = time.time()
        seed = self._key(member, shard)
        size = self.models.observation_size
        stored = Trajectories(rows, size, rows.shape[2] - size - 2)
        made = self.refiner.refine(stored, self._load(policy, member), (seed,), strength)
        return self._finish(made, policy, shard, seed, block, parent, (start, time.time()), len(rows), member)

    def generate_all(
        self,
        policies: Sequence[PolicyBlob],
        trajectories: int,
        shard: int,
        block: int,
        guided: bool,
        strength: float | None = None,
    ) -> tuple[np.ndarray, tuple[BlockReport, ...]]:
        """``generate`` for the policy of each seed: a block with a part for each, and the report of each part. All
        have the same ``strength``."""
        made = [
            self.generate(policy, trajectories, shard, block, guided, strength, member)
            for member, policy in enumerate(policies)
        ]
        return _joined(made)

    def refine_all(
        self,
        rows: np.ndarray,
        sizes: Sequence[int],
        policies: Sequence[PolicyBlob],
        shard: int,
        block: int,
        parent: int,
        strength: float | None = None,
    ) -> tuple[np.ndarray, tuple[BlockReport, ...]]:
        """``refine`` for each part of a block, whose numbers of trajectories are ``sizes``."""
        made = [
            self.refine(part, policy, shard, block, parent, strength, member)
            for member, (part, policy) in enumerate(zip(parts_of(rows, sizes), policies, strict=True))
        ]
        return _joined(made)

    def _key(self, member: int, shard: int) -> int:
        return key_seed(self.config.seed + member, self.learner_id, "shard", shard)

    def _load(self, blob: PolicyBlob, member: int) -> Policy:
        """The policy of one of the seeds, rebuilt once for each version."""
        if member not in self._policies or self._policies[member][0] != blob.version:
            self._policies[member] = blob.version, Policy.from_blob(blob, self.device)
        return self._policies[member][1]

    def _finish(
        self,
        made: GeneratedTrajectories,
        policy: PolicyBlob,
        shard: int,
        seed: int,
        block: int,
        parent: int | None,
        sampling: tuple[float, float],
        asked: int,
        member: int,
    ) -> tuple[np.ndarray, BlockReport]:
        fit = made.agreement
        if fit is None:  # unguided: how far the policy is from what it will learn from
            fit = action_agreement(
                made.trajectories, self._load(policy, member), self.device, self.config.guidance.delta
            )
        kept, dropped = validate(made.trajectories, self.models.normalizer, self.config.generator.sigma_limit)
        if self.reward is not None and self.config.generator.method != "dydiff" and len(kept):
            kept = relabel_rewards(kept, self.reward.predict)
        kept = self._filtered(kept, seed) if parent is None else kept
        if filtered := asked - len(kept) - sum(dropped.values()):
            dropped = {**dropped, "filtered": filtered}
        valid = kept.valid()
        provenance = Provenance(
            block=block,
            learner_id=self.learner_id,
            generator=self.name,
            shard=shard,
            seed=seed,
            policy_version=policy.version,
            denoiser=self.models.name,
            guidance=made.guidance,
            strength=made.strength,
            nfe=made.nfe,
            parent_block=parent,
            time={"start": sampling[0], "end": sampling[1]},
        )
        report = BlockReport(
            provenance=provenance,
            trajectories=len(kept),
            transitions=int(valid.sum()),
            agreement=fit,
            reward_mean=float(kept.reward[:, :-1][valid].mean()) if valid.any() else 0.0,
            dropped=dropped,
        )
        return np.ascontiguousarray(kept.rows), report

    def _filtered(self, data: Trajectories, seed: int) -> Trajectories:
        """The trajectories of highest return, where a filter is set; DyDiff filters for itself, before truncation."""
        section = self.config.generator
        if section.filter == "none" or section.method == "dydiff" or not len(data):
            return data
        returns = torch.from_numpy((data.reward[:, :-1] * data.valid()).sum(axis=1))
        return filter_trajectories(data, returns, section, keyed_generator((seed, 1), "cpu"))


def _joined(made: Sequence[tuple[np.ndarray, BlockReport]]) -> tuple[np.ndarray, tuple[BlockReport, ...]]:
    """Rows of all seeds in one block, and the reports."""
    rows = [part for part, _ in made]
    return rows[0] if len(rows) == 1 else np.concatenate(rows), tuple(report for _, report in made)

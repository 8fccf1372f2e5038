"""The generator: new trajectories for a policy, and old ones brought up to date. A refiner is a generator that is
only asked for the second."""

from __future__ import annotations

import time

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
from raydiff.replay.block import BlockReport
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
        self._policy: Policy | None = None
        self._version = -1

    def generate(
        self,
        policy: PolicyBlob,
        trajectories: int,
        shard: int,
        block: int,
        guided: bool,
        strength: float | None = None,
    ) -> tuple[np.ndarray, BlockReport]:
        """A new block for the shard. The key (run seed, learner, shard) fixes its bytes for a given policy and
        ``strength`` of the guidance (None: the configured one)."""
        start = time.time()
        seed = key_seed(self.config.seed, self.learner_id, "shard", shard)
        target = self._load(policy) if guided else None
        made = self.sampler.generate(target, trajectories, (seed,), strength)
        return self._finish(made, policy, shard, seed, block, None, (start, time.time()), trajectories)

    def refine(
        self,
        rows: np.ndarray,
        policy: PolicyBlob,
        shard: int,
        block: int,
        parent: int,
        strength: float | None = None,
    ) -> tuple[np.ndarray, BlockReport]:
        """The stored block ``rows`` brought up to ``policy``. Raises ``ValueError`` where the method cannot."""
        if self.refiner is None:
            raise ValueError(f"generator.method={self.config.generator.method} has no way to refine trajectories")
        start = time.time()
        seed = key_seed(self.config.seed, self.learner_id, "shard", shard)
        size = self.models.observation_size
        stored = Trajectories(rows, size, rows.shape[2] - size - 2)
        made = self.refiner.refine(stored, self._load(policy), (seed,), strength)
        return self._finish(made, policy, shard, seed, block, parent, (start, time.time()), len(rows))

    def _load(self, blob: PolicyBlob) -> Policy:
        if self._policy is None or blob.version != self._version:
            self._policy, self._version = Policy.from_blob(blob, self.device), blob.version
        return self._policy

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
    ) -> tuple[np.ndarray, BlockReport]:
        fit = made.agreement
        if fit is None:  # unguided: how far the policy is from what it will learn from
            fit = action_agreement(made.trajectories, self._load(policy), self.device, self.config.guidance.delta)
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

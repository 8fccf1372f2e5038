"""The generator: new trajectories for a policy, and old ones brought up to date. A refiner is a generator that is
only asked for the second."""

from __future__ import annotations

import time

import numpy as np
import torch

from raydiff.agents.policy import Policy
from raydiff.config import Config
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.dynamics.reward import RewardModel
from raydiff.generators.api import GeneratedTrajectories, action_deviation
from raydiff.generators.pgd import TrajectoryGenerator
from raydiff.generators.refine import refresh
from raydiff.generators.relabel import relabel_rewards
from raydiff.generators.validate import validate
from raydiff.replay.block import BlockReport
from raydiff.seeds import key_seed
from raydiff.types import PolicyBlob, Provenance, Trajectories


class Generator:
    """Answers ``generate`` and ``refine`` with rows ``[n, L, C]`` and a report; keeps no state between calls."""

    def __init__(
        self,
        config: Config,
        bundle: DenoiserBundle,
        reward: dict[str, torch.Tensor] | None,
        name: str,
        learner_id: str,
    ) -> None:
        """``reward``: state of the reward model, or ``None`` to keep the denoiser's rewards."""
        role = config.refiner if name.startswith("refiner") else config.generator
        self.config, self.name, self.learner_id = config, name, learner_id
        self.bundle = bundle.to(role.device)
        self.sampler = TrajectoryGenerator(self.bundle, config.sampler, config.guidance, role.device)
        self.reward = RewardModel.from_state(reward).to(role.device) if reward is not None else None
        self.device = role.device
        self._policy: Policy | None = None
        self._version = -1

    def generate(
        self, policy: PolicyBlob, trajectories: int, shard: int, block: int, guided: bool
    ) -> tuple[np.ndarray, BlockReport]:
        """A new block for the shard. The key (run seed, learner, shard) fixes its bytes for a given policy."""
        start = time.time()
        seed = key_seed(self.config.seed, self.learner_id, "shard", shard)
        target = self._load(policy) if guided else None
        made = self.sampler.generate(target, trajectories, (seed,))
        return self._finish(made, policy, shard, seed, block, None, (start, time.time()))

    def refine(
        self, rows: np.ndarray, policy: PolicyBlob, shard: int, block: int, parent: int
    ) -> tuple[np.ndarray, BlockReport]:
        """The stored block ``rows`` re-noised and denoised under the guidance of ``policy``."""
        start = time.time()
        seed = key_seed(self.config.seed, self.learner_id, "shard", shard)
        stored = Trajectories(rows, self.bundle.observation_size, self.bundle.action_size)
        made = refresh(
            self.bundle,
            stored,
            self._load(policy),
            self.config.refiner,
            self.config.sampler,
            self.config.guidance,
            (seed,),
        )
        return self._finish(made, policy, shard, seed, block, parent, (start, time.time()))

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
    ) -> tuple[np.ndarray, BlockReport]:
        deviation = made.deviation
        if deviation is None:  # unguided: how far the policy is from what it will learn from
            deviation = action_deviation(made.trajectories, self._load(policy), self.device)
        kept, dropped = validate(made.trajectories, self.bundle.normalizer, self.config.generator.sigma_limit)
        if self.reward is not None and len(kept):
            kept = relabel_rewards(kept, self.reward.predict)
        valid = kept.valid()
        provenance = Provenance(
            block=block,
            learner_id=self.learner_id,
            generator=self.name,
            shard=shard,
            seed=seed,
            policy_version=policy.version,
            denoiser=self.bundle.hash,
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
            deviation=deviation,
            reward_mean=float(kept.reward[:, :-1][valid].mean()) if valid.any() else 0.0,
            dropped=dropped,
        )
        return np.ascontiguousarray(kept.rows), report

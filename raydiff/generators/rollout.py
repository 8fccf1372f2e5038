"""Rollouts of a dynamics model with the policy's actions: the world-model baselines PETS and MOPO (section I.1)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from raydiff.config import Config
from raydiff.dynamics.ensemble import GaussianEnsemble
from raydiff.dynamics.reward import RewardModel
from raydiff.dynamics.termination import termination_of
from raydiff.generators.api import GeneratedTrajectories, action_agreement, keyed_generator
from raydiff.guidance.api import ActionDistribution, DrawnActions
from raydiff.types import Trajectories


class RolloutGenerator:
    """Rolls the ensemble out for ``rollout.horizon`` steps. Keeps no state between calls, so equal calls give equal
    bytes.

    ``starts [K, S]`` are real states to start from: all of them for truncated rollouts, the initial ones for whole
    episodes. ``environment`` is the id whose terminations end trajectories (``UserError`` where none are known).
    Rewards are those of ``reward``, or without one the ensemble's own, less ``rollout.penalty`` times the ensemble's
    uncertainty. Nothing is guided: the actions are the policy's own, and ``strength`` has no effect.
    """

    def __init__(
        self,
        ensemble: GaussianEnsemble,
        reward: RewardModel | None,
        starts: np.ndarray,
        environment: str,
        config: Config,
        device: torch.device | str = "cpu",
    ) -> None:
        self.ensemble = ensemble.to(device)
        self.reward = reward.to(device) if reward is not None else None
        self.starts = torch.as_tensor(starts, dtype=torch.float32, device=device)
        self.termination = termination_of(environment)
        self.config, self.device = config, torch.device(device)

    @torch.inference_mode()
    def generate(
        self, policy: ActionDistribution | None, n: int, key: tuple[int, ...], strength: float | None = None
    ) -> GeneratedTrajectories:
        """``n`` trajectories of ``policy`` from states drawn uniformly: rows ``[n, horizon+1, S+A+2]``.

        Actions are drawn from a Gaussian or a diffusion policy, and are the mean of a deterministic one; without a
        policy they are uniform within +-1. A trajectory that has terminated repeats its last state. One that leaves all
        bounds keeps the state that is not finite, by which ``validate`` drops it.
        """
        generator, horizon = keyed_generator(key, self.device), self.config.rollout.horizon
        state = self.starts[torch.randint(len(self.starts), (n,), generator=generator, device=self.device)]
        size, actions = self.ensemble.observation_size, self.ensemble.action_size
        rows = state.new_zeros(n, horizon + 1, size + actions + 2)
        rows[:, 0, :size] = state
        alive = torch.arange(n, device=self.device)
        for t in range(horizon):
            if not len(alive):
                break
            action = self._act(policy, state, generator)
            successor, reward = self._step(state, action, generator)
            ended = self.termination(state, action, successor) | ~successor.isfinite().all(dim=1)
            rows[alive, t, size:] = torch.cat([action, reward[:, None], ended[:, None].to(reward.dtype)], dim=1)
            rows[alive, t + 1, :size] = successor
            rows[alive[ended], t + 2 :, :size] = successor[ended][:, None]
            rows[alive[ended], t + 1 : horizon, -1] = 1.0
            alive, state = alive[~ended], successor[~ended]
        agreement = None
        if policy is not None:  # of what validate will keep
            finite = Trajectories(rows[rows.isfinite().all(dim=(1, 2))].cpu().numpy(), size, actions)
            agreement = action_agreement(finite, policy, self.device, self.config.guidance.delta)
        return GeneratedTrajectories(Trajectories(rows.cpu().numpy(), size, actions), horizon, "none", 0.0, agreement)

    def _act(self, policy: ActionDistribution | None, state: Tensor, generator: torch.Generator) -> Tensor:
        if policy is None:
            shape = (len(state), self.ensemble.action_size)
            return torch.rand(shape, generator=generator, device=self.device).mul_(2).sub_(1)
        if isinstance(policy, DrawnActions):
            noise = torch.randn((len(state), policy.noise_size), generator=generator, device=self.device)
            return policy.draw(state, noise)
        mean, variance = policy.distribution(state)
        if variance is not None:
            noise = torch.randn(mean.shape, generator=generator, device=self.device)
            mean = torch.addcmul(mean, variance.sqrt(), noise)
        return mean.clamp(-1.0, 1.0)

    def _step(self, state: Tensor, action: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Successors ``[N, S]`` and penalised rewards ``[N]``."""
        options = self.config.rollout
        successor, reward, doubt = self.ensemble.step(
            state, action, generator, options.sample, uncertainty=options.penalty > 0
        )
        if self.reward is not None:
            reward = self.reward.predict(state, action, successor)
        if doubt is not None:
            reward = reward - options.penalty * doubt
        return successor, reward

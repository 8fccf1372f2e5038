"""TD3+BC (Fujimoto and Gu 2021): twin critics, a deterministic actor, and behaviour cloning. Section H.1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raydiff.agents.batchable import Batchable
from raydiff.agents.networks import Adam, soft_update
from raydiff.agents.policy import PolicySpec, pack_policy
from raydiff.agents.rates import actor_rate
from raydiff.agents.streams import Streams
from raydiff.config_learner import LearnerConfig
from raydiff.types import Batch, PolicyBlob

# ---------------------------------------------------------------------------------------------------- config


class TD3BC(Batchable):
    """Learner, for one seed or several."""

    NAME = "TD3+BC"

    def __init__(
        self,
        config: LearnerConfig,
        observation_size: int,
        action_size: int,
        observation_mean: Tensor,
        observation_std: Tensor,
        seed: int | Sequence[int],
    ) -> None:
        super().__init__(config, observation_mean, observation_std, seed)
        self.spec = PolicySpec(
            kind="deterministic", observation_size=observation_size, action_size=action_size, hidden=config.hidden
        )
        self.options = config.td3_bc
        self._build_networks()
        self._noise = Streams(self._origins, config.device)

    # ------------------------------------------------------------------------------------------------ networks

    def _build_networks(self) -> None:
        config, inputs, actions = self.config, self.spec.observation_size, self.spec.action_size
        self.actor = self._network((inputs, *config.hidden, actions))
        self.critic = self._network((inputs + actions, *config.hidden, 1), heads=2)
        self.actor_target, self.critic_target = self.actor.copy(), self.critic.copy()
        self.actor_optimizer = Adam([self.actor.flat], actor_rate(config), config.adam_epsilon)
        self.critic_optimizer = Adam([self.critic.flat], config.learning_rate, config.adam_epsilon)

    # ------------------------------------------------------------------------------------------------ losses

    @torch.no_grad()
    def target_value(self, reward: Tensor, next_observation: Tensor, terminal: Tensor, noise: Tensor) -> Tensor:
        """Bootstrapped value ``[B]`` with target policy smoothing by ``noise [B, A]`` and the smaller of two target
        critics."""
        action = self.actor_target(next_observation).tanh_()
        action += noise.clamp(-self.options.noise_clip, self.options.noise_clip)
        value = self.critic_target(torch.cat([next_observation, action.clamp_(-1, 1)], -1)).squeeze(-1).amin(0)
        return reward + self.config.discount * (1 - terminal) * value

    def critic_loss(self, value: Tensor, target: Tensor) -> Tensor:
        """Squared error of both critics ``[2, B]``: mean over the batch, summed over the two."""
        return (value - target).square().sum((0, -1)) / target.shape[-1]

    def actor_loss(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The value of the policy's actions in units of its size, against the distance to the data's actions; and
        that distance alone."""
        own = self.actor(observation).tanh()
        value = self.critic.head(0, torch.cat([observation, own], -1)).squeeze(-1)
        scale = self.options.alpha / value.detach().abs().mean(-1)
        cloning = (own - action).square().mean((-2, -1))
        return cloning - scale * value.mean(-1), cloning

    # ------------------------------------------------------------------------------------------------ update

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """A critic step, and at every ``policy_delay``-th update an actor step and the targets; or, in policy-guided
        diffusion's order (B.6), an actor step, ``critic_steps`` critic steps on the same batch, and the targets."""
        pgd = self.options.order == "pgd"
        noises = self._draw(batch.action, self.options.critic_steps if pgd else 1)
        self._anneal([self.actor_optimizer], [self.critic_optimizer])
        self.updates += 1
        actor = pgd or self.updates % self.options.policy_delay == 0
        self._metrics |= self.program(*batch[:5], *noises, actor=actor)
        return dict(self._metrics)

    def _draw(self, action: Tensor, count: int) -> list[Tensor]:
        """Noise for the targets of ``count`` critic steps."""
        return [self._noise.normal_(torch.empty_like(action), self.options.policy_noise) for _ in range(count)]

    def _step(
        self, observation: Tensor, action: Tensor, reward: Tensor, next_observation: Tensor, terminal: Tensor,
        *noises: Tensor, actor: bool,
    ) -> dict[str, Tensor]:  # fmt: skip
        """All of an update that is arithmetic on tensors; ``actor``: with an actor step."""
        observation, next_observation = self._normalize(observation), self._normalize(next_observation)
        metrics: dict[str, Tensor] = {}
        first = actor and self.options.order == "pgd"
        if first:
            metrics |= self._actor_step(observation, action)
        for noise in noises:
            target = self.target_value(reward, next_observation, terminal, noise)
            metrics |= self._critic_step(torch.cat([observation, action], -1), target)
        if actor and not first:
            metrics |= self._actor_step(observation, action)
        if actor:
            soft_update(self.actor_target, self.actor, self.config.tau)
            soft_update(self.critic_target, self.critic, self.config.tau)
        return metrics

    def _critic_step(self, state_action: Tensor, target: Tensor) -> dict[str, Tensor]:
        value = self.critic(state_action).squeeze(-1)
        loss = self.critic_loss(value, target)
        self.critic_optimizer.minimize(loss.sum())
        return {"critic_loss": loss.detach(), "value": value.detach().mean((0, -1))}

    def _actor_step(self, observation: Tensor, action: Tensor) -> dict[str, Tensor]:
        loss, cloning = self.actor_loss(observation, action)
        self.actor_optimizer.minimize(loss.sum())
        return {"actor_loss": loss.detach(), "cloning_loss": cloning.detach()}

    # ------------------------------------------------------------------------------------------------ policy

    def policy_blob(self, version: int, member: int | None = None) -> PolicyBlob:
        actor, log_std = self.actor.alone(member).flat, self.actor.flat.new_empty(0)
        critic = self.critic_target.alone(member) if self.publish_critic else None
        return pack_policy(version, self.spec, self._mean, self._std, actor, log_std, critic)

    # ------------------------------------------------------------------------------------------------ state

    def _parts(self) -> dict[str, Any]:
        return {
            "observation_mean": self._mean,
            "observation_std": self._std,
            "actor": self.actor,
            "actor_target": self.actor_target,
            "actor_optimizer": self.actor_optimizer,
            "critic": self.critic,
            "critic_target": self.critic_target,
            "critic_optimizer": self.critic_optimizer,
            "noise": self._noise,
        }

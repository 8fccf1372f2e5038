"""ReBRAC (Tarasov et al. 2023): TD3+BC with a penalty of its own in the critic's target, layer-normalised critics and
deeper networks. Section H.5."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raydiff.agents.initial_weights import start_small
from raydiff.agents.layer_norm_mlp import LayerNormMLP
from raydiff.agents.networks import MLP, Adam, soft_update
from raydiff.agents.one_stage import OneStage
from raydiff.agents.policy import PolicySpec, pack_policy
from raydiff.agents.rates import actor_rate
from raydiff.config_learner import LearnerConfig
from raydiff.types import Batch, PolicyBlob

# ---------------------------------------------------------------------------------------------------- config


class ReBRAC(OneStage):
    """Learner. Observations are normalised as ``(s - observation_mean) / observation_std``, both ``[S]``."""

    NAME = "ReBRAC"

    def __init__(
        self,
        config: LearnerConfig,
        observation_size: int,
        action_size: int,
        observation_mean: Tensor,
        observation_std: Tensor,
        seed: int,
    ) -> None:
        super().__init__(config, observation_mean, observation_std, seed)
        self.options = config.rebrac
        self.spec = PolicySpec(
            kind="deterministic",
            observation_size=observation_size,
            action_size=action_size,
            hidden=config.hidden,
            critic_layer_norm=True,
        )
        self._build_networks(self._origins[0])
        self._noise = self._noise_stream()

    # ------------------------------------------------------------------------------------------------ networks

    def _build_networks(self, generator: torch.Generator) -> None:
        config, inputs, actions = self.config, self.spec.observation_size, self.spec.action_size
        sizes = (inputs + actions, *config.hidden, 1)
        self.actor = MLP((inputs, *config.hidden, actions), generator=generator, device=config.device)
        self.critic = LayerNormMLP(sizes, heads=2, generator=generator, device=config.device)
        start_small(self.actor, generator, last=1e-3)
        start_small(self.critic, generator, last=3e-3)
        self.actor_target, self.critic_target = self.actor.copy(), self.critic.copy()
        self.actor_optimizer = Adam([self.actor.flat], actor_rate(config), config.adam_epsilon)
        self.critic_optimizer = Adam([self.critic.flat], config.learning_rate, config.adam_epsilon)

    # ------------------------------------------------------------------------------------------------ losses

    @torch.no_grad()
    def target_value(
        self, reward: Tensor, next_observation: Tensor, terminal: Tensor, next_action: Tensor | None
    ) -> Tensor:
        """Bootstrapped value ``[B]`` with target policy smoothing and the smaller of two target critics, less the
        squared distance of that action from the data's ``next_action [B, A]``."""
        action = self.actor_target(next_observation).tanh_()
        noise = torch.empty_like(action).normal_(0, self.options.policy_noise, generator=self._noise)
        action += noise.clamp_(-self.options.noise_clip, self.options.noise_clip)
        value = self.critic_target(torch.cat([next_observation, action.clamp_(-1, 1)], -1)).squeeze(-1).amin(0)
        if self.options.critic_penalty:
            if next_action is None:
                raise ValueError("ReBRAC's critic_penalty needs the data's next actions, which this batch lacks")
            value = value - self.options.critic_penalty * (action - next_action).square().sum(-1)
        return reward + self.config.discount * (1 - terminal) * value

    def critic_loss(self, value: Tensor, target: Tensor) -> Tensor:
        """Squared error of both critics ``[2, B]``: mean over the batch, summed over the two."""
        return (value - target).square().sum() / len(target)

    def actor_loss(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The smaller value of the policy's actions in units of its size, against their squared distance from the
        data's, summed over the entries of an action; and that distance alone."""
        own = self.actor(observation).tanh()
        inputs = torch.cat([observation, own], -1)
        value = torch.minimum(self.critic.head(0, inputs), self.critic.head(1, inputs))
        scale = 1 / value.detach().abs().mean()
        cloning = (own - action).square().sum(-1).mean()
        return self.options.actor_penalty * cloning - scale * value.mean(), cloning

    # ------------------------------------------------------------------------------------------------ update

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """A critic step, and at every ``policy_delay``-th update an actor step and the targets."""
        observation, next_observation = self._normalize(batch.observation), self._normalize(batch.next_observation)
        self._anneal([self.actor_optimizer], [self.critic_optimizer])
        self.updates += 1
        target = self.target_value(batch.reward, next_observation, batch.terminal, batch.next_action)
        value = self.critic(torch.cat([observation, batch.action], -1)).squeeze(-1)
        loss = self.critic_loss(value, target)
        self.critic_optimizer.minimize(loss)
        self._metrics |= {"critic_loss": loss.detach(), "value": value.detach().mean()}
        if self.updates % self.options.policy_delay == 0:
            loss, cloning = self.actor_loss(observation, batch.action)
            self.actor_optimizer.minimize(loss)
            self._metrics |= {"actor_loss": loss.detach(), "cloning_loss": cloning.detach()}
            soft_update(self.actor_target, self.actor, self.config.tau)
            soft_update(self.critic_target, self.critic, self.config.tau)
        return dict(self._metrics)

    # ------------------------------------------------------------------------------------------------ policy

    def policy_blob(self, version: int) -> PolicyBlob:
        log_std = self.actor.flat.new_empty(0)
        critic = self.critic_target if self.publish_critic else None
        return pack_policy(version, self.spec, self._mean, self._std, self.actor.flat, log_std, critic)

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

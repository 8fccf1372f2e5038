"""Implicit Q-learning (Kostrikov et al. 2021): expectile values and advantage-weighted regression. Section H.2."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from raydiff.agents.batchable import Batchable
from raydiff.agents.expectile import expectile_loss
from raydiff.agents.networks import Adam, soft_update
from raydiff.agents.policy import PolicySpec, pack_policy
from raydiff.agents.rates import actor_rate, cosine
from raydiff.agents.streams import Streams
from raydiff.config_learner import LearnerConfig
from raydiff.types import Batch, PolicyBlob

# ---------------------------------------------------------------------------------------------------- config


class IQL(Batchable):
    """Learner, for one seed or several."""

    NAME = "IQL"

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
            kind="gaussian", observation_size=observation_size, action_size=action_size, hidden=config.hidden
        )
        self.options = config.iql
        self._build_networks()
        self._dropout = Streams(self._origins, config.device)

    # ------------------------------------------------------------------------------------------------ networks

    def _build_networks(self) -> None:
        config, inputs, actions = self.config, self.spec.observation_size, self.spec.action_size
        self.actor = self._network((inputs, *config.hidden, actions))
        several = () if self.seeds is None else (self.seeds, 1)
        self.log_std = torch.zeros(*several, actions, device=config.device, requires_grad=True)
        self.critic = self._network((inputs + actions, *config.hidden, 1), heads=2)
        self.critic_target = self.critic.copy()
        self.value = self._network((inputs, *config.hidden, 1))
        self.actor_optimizer = Adam([self.actor.flat, self.log_std], actor_rate(config), config.adam_epsilon)
        self.critic_optimizer = Adam([self.critic.flat], config.learning_rate, config.adam_epsilon)
        self.value_optimizer = Adam([self.value.flat], config.learning_rate, config.adam_epsilon)

    # ------------------------------------------------------------------------------------------------ losses

    def value_loss(self, advantage: Tensor) -> Tensor:
        """Expectile regression on ``advantage [B]``, target value less estimate: mean of ``|tau - 1[u < 0]| u^2``."""
        return expectile_loss(advantage, self.options.expectile).mean(-1)

    def actor_loss(self, observation: Tensor, action: Tensor, advantage: Tensor, kept: Sequence[Tensor] = ()) -> Tensor:
        """Log likelihood of the data's actions, weighted by the exponential of their advantage ``[B]``. ``kept`` are
        factors ``[B, width]`` on the hidden layers (dropout)."""
        weight = (self.options.beta * advantage).exp().clamp_max(self.options.advantage_clip)
        log_std = self._clamped_log_std()
        deviation = (action - self._actor_output(observation, kept).tanh()) * (-log_std).exp()
        log_likelihood = -(0.5 * deviation.square() + log_std + 0.5 * math.log(2 * math.pi)).sum(-1)
        return -(weight * log_likelihood).mean(-1)

    def _actor_output(self, observation: Tensor, kept: Sequence[Tensor]) -> Tensor:
        """The mean before the tanh ``[B, A]``, hidden layers times ``kept``."""
        if not kept:
            return self.actor(observation)
        *hidden, (weight, bias) = self.actor.views(self.actor.flat)
        signal = observation
        for (weights, biases), factor in zip(hidden, kept, strict=True):
            signal = (signal @ weights.mT + biases).relu() * factor
        return signal @ weight.mT + bias

    def critic_loss(self, value: Tensor, target: Tensor) -> Tensor:
        """Squared error of both critics ``[2, B]``: mean over the batch, summed over the two."""
        return (value - target).square().sum((0, -1)) / target.shape[-1]

    # ------------------------------------------------------------------------------------------------ update

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """A step of the value, then of the actor and the critics with the new value, and one of the targets."""
        kept = self._draw_kept(batch.observation) if self.options.dropout else []
        self._anneal_as_published()
        self.updates += 1
        return self.program(*batch[:5], *kept)

    def _step(
        self, observation: Tensor, action: Tensor, reward: Tensor, next_observation: Tensor, terminal: Tensor,
        *kept: Tensor,
    ) -> dict[str, Tensor]:  # fmt: skip
        """All of an update that is arithmetic on tensors."""
        observation, next_observation = self._normalize(observation), self._normalize(next_observation)
        state_action = torch.cat([observation, action], -1)
        with torch.no_grad():
            estimate = self.critic_target(state_action).squeeze(-1).amin(0)
        value_loss = self.update_value(observation, estimate)

        with torch.no_grad():  # the actor and the critics use the new values
            values = self.value(torch.cat([observation, next_observation], -2)).squeeze(-1)
            value, next_value = values.chunk(2, -1)
        advantage = estimate - value
        actor_loss = self.actor_loss(observation, action, advantage, kept)
        self.actor_optimizer.minimize(actor_loss.sum())

        target = reward + self.config.discount * (1 - terminal) * next_value
        critic_loss = self.critic_loss(self.critic(state_action).squeeze(-1), target)
        self.critic_optimizer.minimize(critic_loss.sum())
        soft_update(self.critic_target, self.critic, self.config.tau)
        return {
            "critic_loss": critic_loss.detach(),
            "value": value.mean(-1),
            "value_loss": value_loss.detach(),
            "actor_loss": actor_loss.detach(),
            "advantage": advantage.mean(-1),
        }

    def _draw_kept(self, observation: Tensor) -> list[Tensor]:
        """Which hidden units of the actor stay, scaled up for those that do not."""
        drop = self.options.dropout
        rows = [torch.empty(*observation.shape[:-1], width, device=observation.device) for width in self.config.hidden]
        return [(self._dropout.uniform_(row) >= drop) / (1 - drop) for row in rows]

    def update_value(self, observation: Tensor, estimate: Tensor) -> Tensor:
        """One step of the value network towards the expectile of ``estimate [B]`` at normalised observations."""
        loss = self.value_loss(estimate - self.value(observation).squeeze(-1))
        self.value_optimizer.minimize(loss.sum())
        return loss

    def _anneal_as_published(self) -> None:
        """The actor's learning rate falls to zero over the run, along a cosine; the others' too where that is asked."""
        if self.config.learning_rate_schedule == "published":
            self.actor_optimizer.learning_rate = cosine(actor_rate(self.config), self.updates / self.config.updates)
        self._anneal([self.actor_optimizer], [self.critic_optimizer, self.value_optimizer])

    # ------------------------------------------------------------------------------------------------ policy

    def policy_blob(self, version: int, member: int | None = None) -> PolicyBlob:
        actor, log_std = self.actor.alone(member).flat, self._clamped_log_std()
        critic = self.critic_target.alone(member) if self.publish_critic else None
        log_std = log_std if member is None else log_std[member, 0]
        return pack_policy(version, self.spec, self._mean, self._std, actor, log_std, critic)

    def _clamped_log_std(self) -> Tensor:
        return self.log_std.clamp(self.options.log_std_min, self.options.log_std_max)

    # ------------------------------------------------------------------------------------------------ state

    def _parts(self) -> dict[str, Any]:
        return {
            "observation_mean": self._mean,
            "observation_std": self._std,
            "actor": self.actor,
            "log_std": self.log_std,
            "actor_optimizer": self.actor_optimizer,
            "critic": self.critic,
            "critic_target": self.critic_target,
            "critic_optimizer": self.critic_optimizer,
            "value": self.value,
            "value_optimizer": self.value_optimizer,
            **({"dropout": self._dropout} if self.options.dropout else {}),
        }

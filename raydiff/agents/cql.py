"""CQL (Kumar et al. 2020): SAC whose critics are held low on actions that the data do not have. Section H.4."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from raydiff.agents.initial_weights import start_orthogonal
from raydiff.agents.networks import MLP, Adam, soft_update
from raydiff.agents.one_stage import OneStage
from raydiff.agents.policy import PolicySpec, pack_policy
from raydiff.agents.rates import actor_rate
from raydiff.agents.tanh_policy import mean_and_log_std, squash
from raydiff.config_learner import LearnerConfig
from raydiff.types import Batch, PolicyBlob

# ---------------------------------------------------------------------------------------------------- config

LARGEST_MULTIPLIER = 1e6


class CQL(OneStage):
    """Learner. Observations are normalised as ``(s - observation_mean) / observation_std``, both ``[S]``."""

    NAME = "CQL"

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
        self.options = config.cql
        self.spec = PolicySpec(
            kind="tanh_gaussian", observation_size=observation_size, action_size=action_size, hidden=config.hidden
        )
        self._build_networks(self._origins[0])
        self._noise = self._noise_stream()

    # ------------------------------------------------------------------------------------------------ networks

    def _build_networks(self, generator: torch.Generator) -> None:
        """The actor starts almost independent of the state, with mean 0 and log standard deviation -1; the critics
        start orthogonal, near 0."""
        config, inputs, actions = self.config, self.spec.observation_size, self.spec.action_size
        self.actor = MLP((inputs, *config.hidden, 2 * actions), generator=generator, device=config.device)
        with torch.no_grad():
            weight, bias = self.actor.layers[-1]
            bound = 1e-2 * math.sqrt(6 / sum(weight.shape))
            weight.copy_(torch.empty(weight.shape).uniform_(-bound, bound, generator=generator))
            bias[:, :actions], bias[:, actions:] = 0.0, -1.0
        self.critic = MLP((inputs + actions, *config.hidden, 1), heads=2, generator=generator, device=config.device)
        start_orthogonal(self.critic, generator)
        self.critic_target = self.critic.copy()
        self.log_entropy_weight = torch.zeros((), device=config.device, requires_grad=True)
        self.log_multiplier = torch.ones((), device=config.device, requires_grad=True)
        epsilon = config.adam_epsilon
        self.actor_optimizer = Adam([self.actor.flat], actor_rate(config), epsilon)
        self.entropy_optimizer = Adam([self.log_entropy_weight], actor_rate(config), epsilon)
        self.critic_optimizer = Adam([self.critic.flat], config.learning_rate, epsilon)
        self.multiplier_optimizer = Adam([self.log_multiplier], config.learning_rate, epsilon)

    # ------------------------------------------------------------------------------------------------ losses

    def actor_loss(self, observation: Tensor, action: Tensor, log_density: Tensor) -> Tensor:
        """The smaller value of the policy's own actions, less their log density ``[B]`` at the weight of entropy."""
        inputs = torch.cat([observation, action], -1)
        value = torch.minimum(self.critic.head(0, inputs), self.critic.head(1, inputs)).squeeze(-1)
        return (self.log_entropy_weight.detach().exp() * log_density - value).mean()

    def entropy_loss(self, log_density: Tensor) -> Tensor:
        """Its step raises the weight of entropy where the entropy is below its target, ``-A``, and lowers it above."""
        return -self.log_entropy_weight * (log_density.detach().mean() - self.spec.action_size)

    @torch.no_grad()
    def target_value(self, reward: Tensor, next_observation: Tensor, terminal: Tensor, output: Tensor) -> Tensor:
        """Bootstrapped value ``[B]`` by the smaller target critic, without entropy: of one action of the policy, whose
        network's ``output`` at the next observations is ``[B, 2A]``, or the best of several."""
        draws = self.options.samples if self.options.max_target_backup else 1
        mean, log_std = mean_and_log_std(output)
        action, _ = squash(mean, log_std, self._normal(draws, mean))
        inputs = torch.cat([next_observation.expand(draws, -1, -1), action], -1).flatten(0, 1)
        value = self.critic_target(inputs).squeeze(-1).amin(0).view(draws, -1).amax(0)
        return reward + self.config.discount * (1 - terminal) * value

    @torch.no_grad()
    def proposals(self, output: Tensor, next_output: Tensor) -> tuple[Tensor, Tensor]:
        """Actions ``[3K, B, A]`` and their log densities ``[3K, B]``: K uniform ones, K of the policy at the observations
        and K at the next ones, whose network's outputs are ``[B, 2A]``."""
        count, size = self.options.samples, self.spec.action_size
        uniform = output.new_empty(count, len(output), size).uniform_(-1, 1, generator=self._noise)
        actions, densities = [uniform], [output.new_full((count, len(output)), -size * math.log(2))]
        for each in (output, next_output):
            mean, log_std = mean_and_log_std(each)
            action, density = squash(mean, log_std, self._normal(count, mean))
            actions.append(action)
            densities.append(density)
        return torch.cat(actions), torch.cat(densities)

    def differences(self, values: Tensor, log_density: Tensor, data_value: Tensor) -> Tensor:
        """How far the soft maximum over all actions lies above the data's ``[2]``: mean over the batch of
        ``T logsumexp((Q - log q) / T) - Q(s, a)`` over the proposals, for ``values [2, 3K, B]``, ``log_density [3K, B]``
        and ``data_value [2, B]``. With ``T = 1`` its first term estimates ``log(3K) + log of the integral of e^Q``."""
        temperature = self.options.temperature
        soft_maximum = temperature * ((values - log_density) / temperature).logsumexp(1)
        difference = soft_maximum - data_value
        if self.options.difference_min is not None:
            difference = difference.clamp_min(self.options.difference_min)
        return difference.mean(-1)

    def penalty(self, differences: Tensor) -> Tensor:
        """The penalty of both critics: ``alpha`` times their ``differences [2]``, or in the Lagrange variant ``alpha``
        times the multiplier times what exceeds ``gap``."""
        if not self.options.lagrange:
            return self.options.alpha * differences.sum()
        multiplier = self.log_multiplier.exp().clamp_max(LARGEST_MULTIPLIER)
        return multiplier * self.options.alpha * (differences - self.options.gap).sum()

    # ------------------------------------------------------------------------------------------------ update

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of everything. All losses are those of the networks as they were before it, as published."""
        observation, next_observation = self._normalize(batch.observation), self._normalize(batch.next_observation)
        self._anneal([self.actor_optimizer, self.entropy_optimizer], [self.critic_optimizer, self.multiplier_optimizer])
        output = self.actor(observation)
        with torch.no_grad():
            next_output = self.actor(next_observation)
        target = self.target_value(batch.reward, next_observation, batch.terminal, next_output)
        proposals, log_density = self.proposals(output, next_output)
        metrics = self._actor_step(observation, output)
        metrics |= self._critic_step(torch.cat([batch.action[None], proposals]), log_density, observation, target)
        soft_update(self.critic_target, self.critic, self.config.tau)
        self.updates += 1
        return metrics

    def _actor_step(self, observation: Tensor, output: Tensor) -> dict[str, Tensor]:
        mean, log_std = mean_and_log_std(output)
        action, log_density = squash(mean, log_std, self._normal(1, mean)[0])
        loss = self.actor_loss(observation, action, log_density)
        weight = self.log_entropy_weight.detach().exp()
        self.entropy_optimizer.minimize(self.entropy_loss(log_density))
        self.actor_optimizer.minimize(loss)
        return {"actor_loss": loss.detach(), "entropy": -log_density.detach().mean(), "entropy_weight": weight}

    def _critic_step(
        self, actions: Tensor, log_density: Tensor, observation: Tensor, target: Tensor
    ) -> dict[str, Tensor]:
        """``actions [1+3K, B, A]``: the data's, then the proposals. One call values all of them."""
        count = len(actions)
        inputs = torch.cat([observation.expand(count, -1, -1), actions], -1).flatten(0, 1)
        values = self.critic(inputs).view(2, count, -1)
        value = values[:, 0]
        differences = self.differences(values[:, 1:], log_density, value)
        penalty = self.penalty(differences)
        loss = (value - target).square().sum() / len(target)
        self.critic_optimizer.minimize(loss + penalty)
        if self.options.lagrange:
            self.multiplier_optimizer.minimize(-0.5 * self.penalty(differences.detach()))
        return {
            "critic_loss": loss.detach(),
            "value": value.detach().mean(),
            "penalty": penalty.detach(),
            "difference": differences.detach().mean(),
        }

    def _normal(self, count: int, like: Tensor) -> Tensor:
        """Standard normal noise ``[count, B, A]``."""
        return like.new_empty(count, *like.shape).normal_(generator=self._noise)

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
            "actor_optimizer": self.actor_optimizer,
            "critic": self.critic,
            "critic_target": self.critic_target,
            "critic_optimizer": self.critic_optimizer,
            "log_entropy_weight": self.log_entropy_weight,
            "entropy_optimizer": self.entropy_optimizer,
            "log_multiplier": self.log_multiplier,
            "multiplier_optimizer": self.multiplier_optimizer,
            "noise": self._noise,
        }

"""Diffusion-QL (Wang et al. 2023): a diffusion policy that clones the data and climbs the value. Section H.3.

The actor's loss is the noise loss of the data's actions, and the value of its own. Those are sampled by the whole chain,
which gradients pass, or, in the efficient variant (Kang et al. 2023), estimated in one step from a noisy action.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raydiff.agents.diffusion_policy import DiffusionPolicySpec, clip_denoised, pack_diffusion_policy
from raydiff.agents.mish import MishMLP
from raydiff.agents.networks import Adam, soft_update
from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork
from raydiff.agents.one_stage import OneStage
from raydiff.agents.rates import actor_rate
from raydiff.config_learner import LearnerConfig
from raydiff.diffusion.vp import VP, add_noise, sample
from raydiff.types import Batch, PolicyBlob

# ---------------------------------------------------------------------------------------------------- config


class DiffusionQL(OneStage):
    """Learner. Observations are normalised as ``(s - observation_mean) / observation_std``, both ``[S]``."""

    NAME = "Diffusion-QL"

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
        self.options = config.diffusion_ql
        self.vp = VP("discrete", self.options.levels)
        full = self.options.variant == "full"
        self.spec = DiffusionPolicySpec(
            observation_size=observation_size,
            action_size=action_size,
            network=NetworkSpec(inputs=action_size, condition=observation_size, hidden=config.hidden),
            schedule=self.vp.kind,
            levels=self.vp.steps,
            solver="ddpm" if full else "dpmpp_2m",
            steps=self.vp.steps if full else self.options.solver_steps,
            temperature=self.options.temperature,
            candidates=self.options.candidates,
            choice=self.options.choose,
            critic_activation="mish",
        )
        self._clip = clip_denoised(action_size)
        self._build_networks(self._origins[0])
        self._noise = self._noise_stream()

    # ------------------------------------------------------------------------------------------------ networks

    def _build_networks(self, generator: torch.Generator) -> None:
        config = self.config
        sizes = (self.spec.observation_size + self.spec.action_size, *config.hidden, 1)
        self.actor = NoiseNetwork(self.spec.network, generator, config.device)
        self.actor_target = self.actor.copy()
        self.critic = MishMLP(sizes, heads=2, generator=generator, device=config.device)
        self.critic_target = self.critic.copy()
        self.actor_optimizer = Adam([self.actor.flat], actor_rate(config), config.adam_epsilon)
        self.critic_optimizer = Adam([self.critic.flat], config.learning_rate, config.adam_epsilon)

    # ------------------------------------------------------------------------------------------------ losses

    @torch.no_grad()
    def target_value(self, reward: Tensor, next_observation: Tensor, terminal: Tensor) -> Tensor:
        """Bootstrapped value ``[B]`` of the target policy's action by the smaller of two target critics; with
        ``max_q_backup`` each critic takes the best of several actions first."""
        count = self.options.backup_actions if self.options.max_q_backup else 1
        rows = next_observation.repeat_interleave(count, 0)
        action = self.actions(self.actor_target, rows)
        values = self.critic_target(torch.cat([rows, action], -1)).view(2, -1, count)
        return reward + self.config.discount * (1 - terminal) * values.amax(-1).amin(0)

    def critic_loss(self, value: Tensor, target: Tensor) -> Tensor:
        """Squared error of both critics ``[2, B]``: mean over the batch, summed over the two."""
        return (value - target).square().sum() / len(target)

    def actor_loss(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """The noise loss of the data's actions less ``eta`` times the value of the policy's own, and the noise loss
        alone."""
        noised = add_noise(action, self.vp, self._noise)
        predicted = self.actor(noised.x, noised.t, observation)
        cloning = (predicted - noised.noise).square().mean()
        if self.options.eta == 0:
            return cloning, cloning
        if self.options.variant == "full":
            own = self.actions(self.actor, observation, differentiable=True)
        else:
            own = self._clip((noised.x - noised.sigma * predicted) / noised.alpha)
        return cloning + self.options.eta * self.value_loss(observation, own), cloning

    def value_loss(self, observation: Tensor, action: Tensor) -> Tensor:
        """Minus the mean value of ``action [B, A]`` by one critic, in units of its mean size by the other; which is
        which is drawn."""
        inputs = torch.cat([observation, action], -1)
        first = torch.randint(2, (1,), generator=self._noise, device=inputs.device)
        value = self.critic.drawn(first, inputs)
        with torch.no_grad():  # which spares the gradient of the one that gives the unit
            size = self.critic.drawn(1 - first, inputs).abs().mean()
        return -value.mean() / size

    def actions(self, actor: NoiseNetwork, observation: Tensor, differentiable: bool = False) -> Tensor:
        """Sampled actions ``[B, A]`` for normalised observations ``[B, S]``."""
        noise = torch.randn(len(observation), self.spec.action_size, generator=self._noise, device=observation.device)
        return sample(
            lambda x, t: actor(x, t, observation),
            noise,
            self.vp,
            self.spec.solver,
            self.spec.steps,
            clip=self._clip,
            generator=self._noise,
            differentiable=differentiable,
        )

    # ------------------------------------------------------------------------------------------------ update

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """A critic step, an actor step with the new critics, and the targets."""
        observation, next_observation = self._normalize(batch.observation), self._normalize(batch.next_observation)
        self._anneal([self.actor_optimizer], [self.critic_optimizer])

        target = self.target_value(batch.reward, next_observation, batch.terminal)
        value = self.critic(torch.cat([observation, batch.action], -1)).squeeze(-1)
        critic_loss = self.critic_loss(value, target)
        self.critic_optimizer.minimize(critic_loss, self.options.gradient_clip)
        actor_loss, cloning = self.actor_loss(observation, batch.action)
        self.actor_optimizer.minimize(actor_loss, self.options.gradient_clip)
        self._move_targets()
        self.updates += 1
        return {
            "critic_loss": critic_loss.detach(),
            "value": value.detach().mean(),
            "actor_loss": actor_loss.detach(),
            "cloning_loss": cloning.detach(),
        }

    @torch.no_grad()
    def _move_targets(self) -> None:
        if self.updates >= self.options.ema_start and self.updates % self.options.ema_every == 0:
            self.actor_target.flat.lerp_(self.actor.flat, self.options.ema)
        soft_update(self.critic_target, self.critic, self.config.tau)

    # ------------------------------------------------------------------------------------------------ policy

    def policy_blob(self, version: int) -> PolicyBlob:
        """The online actor acts, as published; the average of it serves the targets alone."""
        critic = self.critic_target if self.publish_critic or self.options.candidates > 1 else None
        return pack_diffusion_policy(version, self.spec, self._mean, self._std, self.actor, critic=critic)

    # ------------------------------------------------------------------------------------------------ state

    def _parts(self) -> dict[str, Any]:
        return {
            "observation_mean": self._mean,
            "observation_std": self._std,
            "actor": self.actor.flat,
            "actor_target": self.actor_target.flat,
            "actor_optimizer": self.actor_optimizer,
            "critic": self.critic,
            "critic_target": self.critic_target,
            "critic_optimizer": self.critic_optimizer,
            "noise": self._noise,
        }

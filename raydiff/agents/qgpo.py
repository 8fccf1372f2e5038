"""QGPO (Lu, Chen et al. 2023): energy guidance learnt by contrast, over actions that a behaviour model draws. Section G."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raydiff.agents.api import Stage
from raydiff.agents.diffusion_policy import DiffusionPolicySpec, clip_denoised, pack_diffusion_policy
from raydiff.agents.energy_network import TIME_SCALE, TIME_SIZE, EnergyNetwork
from raydiff.agents.networks import MLP, Adam, soft_update
from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork
from raydiff.agents.rates import cosine
from raydiff.agents.state import Resumable
from raydiff.agents.support_actions import SupportActions
from raydiff.config_learner import LearnerConfig
from raydiff.diffusion.vp import VP, add_noise, noise_loss, sample
from raydiff.types import Batch, PolicyBlob

# ---------------------------------------------------------------------------------------------------- losses


def in_support_value(value: Tensor, beta: float) -> Tensor:
    """Mean ``[B]`` of the values of support actions ``[B, K]``, weighted by their softmax at inverse temperature
    ``beta``: between the behaviour's value (0) and the best supported action's (infinity)."""
    return ((beta * value).softmax(1) * value).sum(1)


def contrastive_loss(energy: Tensor, value: Tensor, beta: float) -> Tensor:
    """Contrastive energy prediction: cross-entropy of the softmax of ``energy [B, K]`` at diffused actions against the
    softmax of ``beta`` times the ``value [B, K]`` of the clean ones, over the support actions of one state. With any
    K > 1 its minimum over functions is the exact intermediate energy, up to a constant for each state and time."""
    return -((beta * value).softmax(1) * energy.log_softmax(1)).sum(1).mean()


def label_entropy(value: Tensor, beta: float) -> Tensor:
    """What ``contrastive_loss`` cannot fall below: the mean entropy of its labels."""
    log_share = (beta * value).log_softmax(1)
    return -(log_share.exp() * log_share).sum(1).mean()


# ---------------------------------------------------------------------------------------------------- config


class QGPO(Resumable):
    """Learner. Observations are normalised as ``(s - observation_mean) / observation_std``, both ``[S]``.

    Two stages. ``behaviour``: a diffusion model of the data's actions. ``critic``: twin critics by softmax Q-learning
    within its support, for a share of the stage, and the network of intermediate energies beside them.
    """

    def __init__(
        self,
        config: LearnerConfig,
        observation_size: int,
        action_size: int,
        observation_mean: Tensor,
        observation_std: Tensor,
        seed: int,
    ) -> None:
        self.config, self.options = config, config.qgpo
        self.vp = VP("continuous")
        self.spec = DiffusionPolicySpec(
            observation_size=observation_size,
            action_size=action_size,
            network=NetworkSpec(
                kind="residual",
                inputs=action_size,
                condition=observation_size,
                hidden=(self.options.width,) * self.options.blocks,
                activation="swish",
                time_size=TIME_SIZE,
                time_scale=TIME_SCALE,
            ),
            schedule=self.vp.kind,
            solver="dpmpp_2m",
            steps=self.options.steps,
            clip_denoised=self.options.clip_denoised,
            guidance="energy",
            guidance_scale=self.options.guidance_scale,
            energy_hidden=self.options.energy_hidden,
            temperature=self.options.temperature,
            candidates=self.options.candidates,
            choice=self.options.choose,
        )
        self.updates, self.publish_critic = 0, False
        self._mean = observation_mean.to(config.device, torch.float32)
        self._std = observation_std.to(config.device, torch.float32)
        self._metrics: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(seed)
        self._build_networks(generator)
        self._noise = torch.Generator(config.device)
        self._noise.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        self._support_seed = torch.randint(2**62, (), generator=generator)
        self._table: Any = None
        self._stored: SupportActions | None = None

    def stages(self) -> list[Stage]:
        behaviour = round(self.config.updates * self.options.behaviour_share)
        return [Stage("behaviour", behaviour), Stage("critic", self.config.updates - behaviour)]

    def begin_stage(self, name: str, table: Any) -> None:
        """From ``critic`` on, support actions of the observations of ``table`` are drawn once, when a batch first holds
        them. Without a table they are drawn for each batch, as they are for rows that it does not hold."""
        if name not in ("behaviour", "critic"):
            raise ValueError(f"QGPO has two stages, behaviour and critic; {name} was begun")
        self._table = table if name == "critic" else None
        self._store_support()

    # ------------------------------------------------------------------------------------------------ networks

    def _build_networks(self, generator: torch.Generator) -> None:
        config, options = self.config, self.options
        inputs, actions = self.spec.observation_size, self.spec.action_size
        self.behaviour = NoiseNetwork(self.spec.network, generator, config.device)
        self.critic = MLP((inputs + actions, *config.hidden, 1), heads=2, generator=generator, device=config.device)
        self.critic_target = self.critic.copy()
        self.energy = EnergyNetwork(inputs, actions, options.energy_hidden, generator, config.device)
        self.behaviour_optimizer = Adam([self.behaviour.flat], options.behaviour_learning_rate, config.adam_epsilon)
        self.critic_optimizer = Adam([self.critic.flat], config.learning_rate, config.adam_epsilon)
        self.energy_optimizer = Adam([self.energy.flat], config.learning_rate, config.adam_epsilon)

    # ------------------------------------------------------------------------------------------------ losses

    @torch.no_grad()
    def support_values(self, observation: Tensor, action: Tensor) -> Tensor:
        """The smaller of two target critics ``[B, K]`` for actions ``[B, K, A]`` in each normalised observation
        ``[B, S]``."""
        rows = torch.cat([observation[:, None].expand(-1, action.shape[1], -1), action], -1)
        return self.critic_target(rows.flatten(0, 1)).amin(0).view(action.shape[:2])

    def target_value(self, reward: Tensor, next_observation: Tensor, terminal: Tensor, next_action: Tensor) -> Tensor:
        """Bootstrapped value ``[B]`` over the support actions ``next_action [B, K, A]``."""
        value = in_support_value(self.support_values(next_observation, next_action), self.options.critic_beta)
        return reward + self.config.discount * (1 - terminal) * value

    def critic_loss(self, value: Tensor, target: Tensor) -> Tensor:
        """Squared error of both critics ``[2, B]``: mean over the batch and the two."""
        return (value - target).square().mean()

    def energy_loss(self, observation: Tensor, action: Tensor, value: Tensor) -> Tensor:
        """``contrastive_loss`` of support actions ``[B, K, A]`` with their ``value [B, K]``; all actions of a state are
        diffused to one random time, each with noise of its own."""
        noised = add_noise(action, self.vp, self._noise)
        energy = self.energy(noised.x, noised.t[:, None], observation[:, None])
        return contrastive_loss(energy, value, self.options.beta)

    # ------------------------------------------------------------------------------------------------ update

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """A step of the behaviour model; or, in the second stage, one of the critics while they learn, and one of the
        energies with the target critics that follow."""
        behaviour, rest = (stage.updates for stage in self.stages())
        observation = (batch.observation - self._mean) / self._std
        if self.updates < behaviour:
            self._anneal(self.updates / behaviour, self.behaviour_optimizer)
            self._behaviour_step(observation, batch.action)
        else:
            done, learning = self.updates - behaviour, round(rest * self.options.critic_share)
            if done < learning:
                self._anneal(done / learning, self.critic_optimizer)
                both = self.support(torch.cat([batch.observation, batch.next_observation]))
                action, next_action = both.chunk(2)
                self._critic_step(observation, batch, next_action)
            else:
                action = self.support(batch.observation)
            self._anneal(done / rest, self.energy_optimizer)
            self._energy_step(observation, action)
        self.updates += 1
        return dict(self._metrics)

    def _behaviour_step(self, observation: Tensor, action: Tensor) -> None:
        error = noise_loss(lambda x, t: self.behaviour(x, t, observation), action, self.vp, self._noise)
        loss = error.sum(-1).mean()
        self.behaviour_optimizer.minimize(loss)
        self._metrics["behaviour_loss"] = loss.detach()

    def _critic_step(self, observation: Tensor, batch: Batch, next_action: Tensor) -> None:
        next_observation = (batch.next_observation - self._mean) / self._std
        target = self.target_value(batch.reward, next_observation, batch.terminal, next_action)
        value = self.critic(torch.cat([observation, batch.action], -1)).squeeze(-1)
        loss = self.critic_loss(value, target)
        self.critic_optimizer.minimize(loss)
        soft_update(self.critic_target, self.critic, self.config.tau)
        self._metrics |= {"critic_loss": loss.detach(), "value": value.detach().mean()}

    def _energy_step(self, observation: Tensor, action: Tensor) -> None:
        value = self.support_values(observation, action)
        loss = self.energy_loss(observation, action, value)
        self.energy_optimizer.minimize(loss)
        self._metrics |= {"energy_loss": loss.detach(), "label_entropy": label_entropy(value, self.options.beta)}

    def _anneal(self, share: float, optimizer: Adam) -> None:
        """Where a cosine is asked for, each rate falls to zero over the updates of its own network."""
        if self.config.learning_rate_schedule == "cosine":
            behaviour = optimizer is self.behaviour_optimizer
            rate = self.options.behaviour_learning_rate if behaviour else self.config.learning_rate
            optimizer.learning_rate = cosine(rate, share)

    # ------------------------------------------------------------------------------------------------ support

    def support(self, observation: Tensor) -> Tensor:
        """Support actions ``[B, K, A]`` of observations ``[B, S]`` in environment units: those of the table, and new ones
        where it holds none."""
        if self._stored is None:
            return self.sample_behaviour(observation, self._noise)
        action, found = self._stored(observation)
        if not bool(found.all()):
            missing = ~found
            action[missing] = self.sample_behaviour(observation[missing], self._noise)
        return action

    def _store_support(self) -> None:
        """The same actions whenever the seed and the behaviour model are the same."""
        if self._table is None:
            self._stored = None
            return
        rows = self._table.split(self._table.records)
        self._stored = SupportActions(
            torch.cat([rows.observation, rows.next_observation]),
            (self.options.support_actions, self.spec.action_size),
            int(self._support_seed),
            self.behaviour_actions,
        )

    def sample_behaviour(self, observation: Tensor, generator: torch.Generator) -> Tensor:
        """``K`` actions of the behaviour model ``[B, K, A]``, within ±1, for observations ``[B, S]`` in environment
        units."""
        shape = len(observation), self.options.support_actions, self.spec.action_size
        return self.behaviour_actions(observation, torch.randn(shape, generator=generator, device=observation.device))

    @torch.no_grad()
    def behaviour_actions(self, observation: Tensor, noise: Tensor) -> Tensor:
        """The same, made of the initial ``noise [B, K, A]``."""
        rows = ((observation - self._mean) / self._std)[:, None]
        drawn = sample(
            lambda x, t: self.behaviour(x, t[:, None], rows),
            noise,
            self.vp,
            self.spec.solver,
            self.options.support_steps,
            clip=clip_denoised(self.spec.action_size) if self.options.clip_denoised else None,
        )
        return drawn.clamp_(-1, 1)

    # ------------------------------------------------------------------------------------------------ policy

    def policy_blob(self, version: int) -> PolicyBlob:
        """The behaviour model guided by the energies; before they have learnt anything, these guide nowhere."""
        critic = self.critic_target if self.publish_critic or self.options.candidates > 1 else None
        return pack_diffusion_policy(version, self.spec, self._mean, self._std, self.behaviour, self.energy, critic)

    # ------------------------------------------------------------------------------------------------ state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """As ``api.Agent.load_state_dict``. Support actions are not saved: they follow from the rest and the table."""
        super().load_state_dict(state)
        self._store_support()

    def _parts(self) -> dict[str, Any]:
        return {
            "observation_mean": self._mean,
            "observation_std": self._std,
            "behaviour": self.behaviour.flat,
            "behaviour_optimizer": self.behaviour_optimizer,
            "critic": self.critic,
            "critic_target": self.critic_target,
            "critic_optimizer": self.critic_optimizer,
            "energy": self.energy.flat,
            "energy_optimizer": self.energy_optimizer,
            "noise": self._noise,
            "support_seed": self._support_seed,
        }

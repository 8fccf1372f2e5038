"""AEPO: a behaviour diffusion model guided by an intermediate energy that has a closed form. Section F."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from raydiff.agents.aepo_critics import ConservativeCritics, InSupportCritics
from raydiff.agents.api import Stage
from raydiff.agents.closed_form import CriticMean, closed_form_energy
from raydiff.agents.closed_form_policy import ClosedFormPolicySpec
from raydiff.agents.diffusion_policy import DiffusionPolicySpec, pack_diffusion_policy
from raydiff.agents.energy_network import TIME_SCALE, TIME_SIZE, EnergyNetwork
from raydiff.agents.networks import Adam
from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork
from raydiff.agents.posterior import PosteriorTable
from raydiff.agents.rates import cosine
from raydiff.agents.state import Resumable
from raydiff.agents.value_critics import ValueCritics
from raydiff.config_learner import LearnerConfig
from raydiff.diffusion.vp import VP, add_noise, noise_loss, sample
from raydiff.types import Batch, PolicyBlob

# ---------------------------------------------------------------------------------------------------- config


class AEPO(Resumable):
    """Learner. Observations are normalised as ``(s - observation_mean) / observation_std``, both ``[S]``.

    Stages: ``behaviour``, a diffusion model of the data's actions; ``critic``; ``posterior``, which only counts: each
    update adds its batch to the table of variances; and ``energy``, the network that is fitted to the closed form. With
    ``energy=direct`` there is no such network, and the behaviour model has its updates.
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
        self.config, self.options = config, config.aepo
        self.sizes = observation_size, action_size
        self.updates, self.publish_critic = 0, False
        self._mean = observation_mean.to(config.device, torch.float32)
        self._std = observation_std.to(config.device, torch.float32)
        self._metrics: dict[str, Tensor] = {}
        generator = torch.Generator().manual_seed(seed)
        self._noise = torch.Generator(config.device)
        self._build_networks(generator)
        self._noise.manual_seed(int(torch.randint(2**62, (), generator=generator)))
        self._support_seed = torch.randint(2**62, (), generator=generator)
        self._real: Any = None

    def stages(self) -> list[Stage]:
        total, options = self.config.updates, self.options
        counted = min(math.ceil(options.posterior_samples / self.config.batch_size), max(1, total // 100))
        critic = int(total * options.critic_share)
        behaviour = int(total * options.behaviour_share)
        energy = total - behaviour - critic - counted
        if options.energy == "direct":
            behaviour, energy = behaviour + energy, 0
        numbers = {"behaviour": behaviour, "critic": critic, "posterior": counted, "energy": energy}
        return [Stage(name, number) for name, number in numbers.items() if number]

    def begin_stage(self, name: str, table: Any) -> None:
        """With in-support critics, the support actions of the observations of ``table`` are drawn once in ``critic``, when
        a batch first holds them; without a table they are drawn for each batch."""
        names = [stage.name for stage in self.stages()]
        if name not in names:
            raise ValueError(f"AEPO has the stages {', '.join(names)}; {name} was begun")
        self._real = table if name == "critic" else None
        self._store_support()

    # ------------------------------------------------------------------------------------------------ networks

    def _build_networks(self, generator: torch.Generator) -> None:
        config, options, (inputs, actions) = self.config, self.options, self.sizes
        self.vp = VP("continuous")
        spec = NetworkSpec(
            kind="residual",
            inputs=actions,
            condition=inputs,
            hidden=(options.width,) * options.blocks,
            activation="swish",
            time_size=TIME_SIZE,
            time_scale=TIME_SCALE,
        )
        self.behaviour = NoiseNetwork(spec, generator, config.device)
        self.critics = self._build_critics(generator)
        self.table = PosteriorTable(self.vp, actions, config.device)
        self.energy = EnergyNetwork(inputs, actions, options.energy_hidden, generator, config.device)
        self.behaviour_optimizer = Adam([self.behaviour.flat], options.behaviour_learning_rate, config.adam_epsilon)
        self.energy_optimizer = Adam([self.energy.flat], config.learning_rate, config.adam_epsilon)

    def _build_critics(self, generator: torch.Generator) -> ValueCritics:
        match self.options.critic:
            case "cql":
                return ConservativeCritics(self.config, *self.sizes, generator, self._noise)
            case "isql":
                return InSupportCritics(self.config, *self.sizes, generator, self._noise, self.behaviour_actions)
            case "iql":
                return ValueCritics(self.config, *self.sizes, generator, expectile=self.options.expectile)

    # ------------------------------------------------------------------------------------------------ losses

    def behaviour_loss(self, observation: Tensor, action: Tensor) -> Tensor:
        """Squared error of the predicted noise at random times: summed over the action, mean over the batch."""
        return noise_loss(lambda x, t: self.behaviour(x, t, observation), action, self.vp, self._noise).sum(-1).mean()

    @torch.no_grad()
    def energy_target(self, x: Tensor, t: Tensor, observation: Tensor) -> Tensor:
        """The closed form ``[B]`` for noisy actions ``x [B, A]`` at times ``t [B]``, less ``beta V(s)``, which does not
        depend on them."""
        options = self.options
        alpha, sigma = (level[:, None] for level in self.vp.levels(t))
        posterior = self.table.posterior(options.posterior)
        mean = posterior.mean((x - sigma * self.behaviour(x, t, observation)) / alpha, t)
        critic = CriticMean(self.critics.critic_target, observation)
        energy = closed_form_energy(
            critic.value,
            critic.slope,
            mean,
            posterior.variance(t),
            options.beta,
            damped=options.damped,
            offset=options.offset,
        )
        return energy - options.beta * self.critics.value(observation)

    def energy_loss(self, observation: Tensor, action: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of the energy network at random times (equation 26), mean over the batch; and its targets."""
        noised = add_noise(action, self.vp, self._noise)
        target = self.energy_target(noised.x, noised.t, observation)
        return (self.energy(noised.x, noised.t, observation) - target).square().mean(), target

    # ------------------------------------------------------------------------------------------------ update

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of what the current stage trains; the number of updates done says which that is."""
        observation = (batch.observation - self._mean) / self._std
        stage, share = self._position()
        self._anneal(stage, share)
        if stage == "behaviour":
            loss = self.behaviour_loss(observation, batch.action)
            self.behaviour_optimizer.minimize(loss)
            self._metrics["behaviour_loss"] = loss.detach()
        elif stage == "critic":
            next_observation = (batch.next_observation - self._mean) / self._std
            self._metrics |= self.critics.update(
                observation, batch.action, batch.reward, next_observation, batch.terminal
            )
        elif stage == "posterior":
            self.table.add(lambda x, t: self.behaviour(x, t, observation), batch.action, self._noise)
            self._metrics["posterior_variance"] = self.table.posterior(self.options.posterior).variances.mean()
        else:
            self._energy_step(observation, batch.action)
        self.updates += 1
        return dict(self._metrics)

    def _energy_step(self, observation: Tensor, action: Tensor) -> None:
        """``energy_deviation`` is the standard deviation of ``beta`` times the advantage of the data's actions: what
        guidance can tell apart. Where it is large against 1, the policy is nearly greedy."""
        loss, target = self.energy_loss(observation, action)
        self.energy_optimizer.minimize(loss)
        deviation = self.options.beta * self.critics.advantage(observation, action).std()
        self._metrics |= {"energy_loss": loss.detach(), "energy": target.mean(), "energy_deviation": deviation}

    def _position(self) -> tuple[str, float]:
        """The stage of the current update and the share of it that is done; past the end, the last stage."""
        done, stages = self.updates, self.stages()
        for stage in stages:
            if done < stage.updates:
                return stage.name, done / stage.updates
            done -= stage.updates
        return stages[-1].name, 1.0

    def _anneal(self, stage: str, share: float) -> None:
        """Where a cosine is asked for, each rate falls to zero over its own stage; published ones are constant."""
        if self.config.learning_rate_schedule != "cosine":
            return
        if stage == "behaviour":
            self.behaviour_optimizer.learning_rate = cosine(self.options.behaviour_learning_rate, share)
        elif stage == "critic":
            self.critics.anneal(share)
        elif stage == "energy":
            self.energy_optimizer.learning_rate = cosine(self.config.learning_rate, share)

    # ------------------------------------------------------------------------------------------------ support

    @torch.no_grad()
    def behaviour_actions(self, observation: Tensor, noise: Tensor) -> Tensor:
        """Actions of the behaviour model ``[B, K, A]``, within ±1, in normalised states ``[B, S]``, from the initial
        ``noise [B, K, A]``."""
        rows = observation[:, None]
        drawn = sample(lambda x, t: self.behaviour(x, t[:, None], rows), noise, self.vp, "dpmpp_2m", self.options.steps)
        return drawn.clamp_(-1, 1)

    def _store_support(self) -> None:
        """The same actions whenever seed, table and behaviour model are the same."""
        if self._real is None or not isinstance(self.critics, InSupportCritics):
            return
        rows = self._real.split(self._real.records)
        observation = torch.cat([rows.observation, rows.next_observation])
        self.critics.store((observation - self._mean) / self._std, int(self._support_seed))

    # ------------------------------------------------------------------------------------------------ policy

    def policy_spec(self) -> DiffusionPolicySpec:
        """How the published policy samples."""
        options, (inputs, actions) = self.options, self.sizes
        common: dict[str, Any] = {
            "observation_size": inputs,
            "action_size": actions,
            "network": self.behaviour.spec,
            "schedule": self.vp.kind,
            "solver": "dpmpp_2m",
            "steps": options.steps,
            "clip_denoised": options.clip_denoised,
            "guidance_scale": options.guidance_scale,
            "rescale": options.rescale,
            "temperature": options.temperature,
        }
        if options.energy == "network":
            return DiffusionPolicySpec(**common, guidance="energy", energy_hidden=options.energy_hidden)
        table = {name: part.tolist() for name, part in self.table.posterior(options.posterior)._asdict().items()}
        return ClosedFormPolicySpec(**common, beta=options.beta, damped=options.damped, posterior=table)

    def policy_blob(self, version: int) -> PolicyBlob:
        network = self.options.energy == "network"
        energy = self.energy if network else None
        critic = self.critics.critic_target if self.publish_critic or not network else None
        spec = self.policy_spec()
        return pack_diffusion_policy(version, spec, self._mean, self._std, self.behaviour, energy, critic)

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
            **self.critics.parts(),
            "posterior_sums": self.table.sums,
            "posterior_count": self.table.count,
            "energy": self.energy.flat,
            "energy_optimizer": self.energy_optimizer,
            "noise": self._noise,
            "support_seed": self._support_seed,
        }

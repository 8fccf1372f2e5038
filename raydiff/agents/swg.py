"""Self-weighted guidance (Tagle et al. 2025): one diffusion over actions and their weights, which guides itself.

Critics learnt within the data give each action a weight. A noise network learns the pairs; what it says of the clean
weight of a noisy pair is, through its gradient, the guidance towards actions in proportion to their weight. Section E.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from raydiff.agents.api import Stage
from raydiff.agents.diffusion_policy import DiffusionPolicySpec, pack_diffusion_policy
from raydiff.agents.networks import Adam
from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork
from raydiff.agents.rates import actor_rate, cosine
from raydiff.agents.state import Resumable
from raydiff.agents.value_critics import ValueCritics
from raydiff.agents.weights import action_weight
from raydiff.config_learner import LearnerConfig
from raydiff.diffusion.vp import VP, noise_loss
from raydiff.types import Batch, PolicyBlob

# ---------------------------------------------------------------------------------------------------- config

TIME_SIZE = 128
WEIGHT_BLOCK = 2
DEVIATION = 0.5
TABLE_ROWS = 65_536


class SWG(Resumable):
    """Learner. Observations are normalised as ``(s - observation_mean) / observation_std``, both ``[S]``.

    Stages: ``critic`` and ``behaviour``, or with ``order=joint`` one, ``train``, of both in every update. Weights of a
    batch always come from the target critics of the moment, which in ``behaviour`` no longer change: synthetic rows
    that stream in are weighted as they are used.
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
        self.config, self.options = config, config.swg
        self.vp = VP(self.options.schedule, self.options.steps)
        self.sizes = observation_size, action_size
        self.updates, self.publish_critic = 0, False
        self._mean = observation_mean.to(config.device, torch.float32)
        self._std = observation_std.to(config.device, torch.float32)
        self._metrics: dict[str, Tensor] = {}
        self._scale = torch.ones((), device=config.device)
        self._range = action_weight(torch.zeros(2, device=config.device), self.options)
        generator = torch.Generator().manual_seed(seed)
        self._build_networks(generator)
        self._noise = torch.Generator(config.device)
        self._noise.manual_seed(int(torch.randint(2**62, (), generator=generator)))

    def stages(self) -> list[Stage]:
        total = self.config.updates
        if self.options.order == "joint":
            return [Stage("train", total)]
        critic = self._critic_updates()
        return [stage for stage in (Stage("critic", critic), Stage("behaviour", total - critic)) if stage.updates]

    def begin_stage(self, name: str, table: Any) -> None:
        """At its start ``behaviour`` weighs every row of ``table`` for the scale and the range of the weights; without a
        table they keep their own scale, and the range is that of the batches."""
        names = [stage.name for stage in self.stages()]
        if name not in names:
            raise ValueError(f"SWG has the stages {', '.join(names)}; {name} was begun")
        if name == "behaviour" and table is not None and self.updates <= self._critic_updates():
            self._measure_weights(table)

    def _critic_updates(self) -> int:
        return int(self.config.updates * self.options.critic_share)

    # ------------------------------------------------------------------------------------------------ networks

    def _build_networks(self, generator: torch.Generator) -> None:
        config, options, (inputs, actions) = self.config, self.options, self.sizes
        spec = NetworkSpec(
            kind="residual",
            inputs=actions + 1,
            condition=inputs,
            hidden=(options.width,) * options.blocks,
            activation="swish",
            time_features="fourier",
            time_size=TIME_SIZE,
            time_scale=options.steps if options.schedule == "continuous" else 1.0,
            dropout=options.dropout,
            head=WEIGHT_BLOCK if options.weight_head else None,
        )
        self.network = NoiseNetwork(spec, generator, config.device)
        self.average = self.network.copy()
        self.critics = ValueCritics(
            config,
            inputs,
            actions,
            generator,
            expectile=options.expectile,
            loss="linex" if options.weight == "linex" else "expectile",
            linex_alpha=options.linex_alpha,
            layer_norm=options.value_layer_norm,
        )
        self.optimizer = Adam([self.network.flat], actor_rate(config), config.adam_epsilon)

    # ------------------------------------------------------------------------------------------------ losses

    def weight(self, observation: Tensor, action: Tensor) -> Tensor:
        """The weight ``[B]`` of actions ``[B, A]`` in normalised states ``[B, S]``, in the unit that is diffused."""
        return action_weight(self.critics.advantage(observation, action), self.options) * self._scale

    def noise_losses(self, observation: Tensor, action: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Squared error of the predicted noise at random times, mean over the batch: of the actions, summed over their
        entries, and of the weights (equation 17)."""
        pair = torch.cat([action, weight[:, None]], -1)
        error = noise_loss(lambda x, t: self.network(x, t, observation, self._noise), pair, self.vp, self._noise)
        mean = error.mean(0)
        return mean[:-1].sum(), mean[-1]

    # ------------------------------------------------------------------------------------------------ update

    def update(self, batch: Batch) -> dict[str, Tensor]:
        """One step of what the current stage trains; the number of updates done says which that is."""
        observation = (batch.observation - self._mean) / self._std
        joint, done, critic = self.options.order == "joint", self.updates, self._critic_updates()
        if joint or done < critic:
            self.critics.anneal(done / (self.config.updates if joint else critic))
            next_observation = (batch.next_observation - self._mean) / self._std
            self._metrics |= self.critics.update(
                observation, batch.action, batch.reward, next_observation, batch.terminal
            )
        if joint or done >= critic:
            step, steps = (done, self.config.updates) if joint else (done - critic, self.config.updates - critic)
            if self.config.learning_rate_schedule != "constant":
                self.optimizer.learning_rate = cosine(actor_rate(self.config), step / steps)
            self._behaviour_step(observation, batch.action)
            self._move_average(step)
        self.updates += 1
        return dict(self._metrics)

    def _behaviour_step(self, observation: Tensor, action: Tensor) -> None:
        weight = self.weight(observation, action)
        self._widen_range(weight)
        action_loss, weight_loss = self.noise_losses(observation, action, weight)
        self.optimizer.minimize(action_loss + weight_loss)
        self._metrics |= {
            "action_loss": action_loss.detach(),
            "weight_loss": weight_loss.detach(),
            "weight": weight.mean(),
            "weight_deviation": weight.std(correction=0),
        }

    @torch.no_grad()
    def _move_average(self, step: int) -> None:
        """The first averages are short, so that the random start does not stay in them for thousands of updates."""
        self.average.flat.lerp_(self.network.flat, max(self.options.ema, 9 / (10 + step)))

    # ------------------------------------------------------------------------------------------------ weights

    def _measure_weights(self, table: Any) -> None:
        """Scale and range of the weights over all rows of a table."""
        self._scale.fill_(1)
        pieces = [table.split(records) for records in table.records.split(TABLE_ROWS)]
        weight = torch.cat([self.weight((rows.observation - self._mean) / self._std, rows.action) for rows in pieces])
        if self.options.weight_scale == "mean":
            self._scale.copy_(1 / weight.mean())
        elif self.options.weight_scale == "deviation":
            deviation = weight.std(correction=0)
            self._scale.copy_(torch.where(deviation > 1e-3, DEVIATION / deviation, 1.0))
        self._range.copy_(torch.stack([weight.amin(), weight.amax()]) * self._scale)

    def _widen_range(self, weight: Tensor) -> None:
        low, high = self._range.unbind()
        self._range.copy_(torch.stack([torch.minimum(low, weight.amin()), torch.maximum(high, weight.amax())]))

    # ------------------------------------------------------------------------------------------------ policy

    def policy_spec(self) -> DiffusionPolicySpec:
        """How the published policy samples. Weights below half of the data's smallest guide nowhere (section E.3)."""
        options, (low, high) = self.options, self._range.tolist()
        return DiffusionPolicySpec(
            observation_size=self.sizes[0],
            action_size=self.sizes[1],
            network=self.network.spec,
            schedule=self.vp.kind,
            levels=self.vp.steps,
            solver=options.solver,
            steps=options.steps,
            clip_denoised=options.clip_denoised,
            weight_range=(low, high),
            guidance="weight",
            guidance_scale=options.guidance_scale,
            weight_floor=low / 2,
            temperature=options.temperature,
            candidates=options.candidates,
            choice=options.choose,
        )

    def policy_blob(self, version: int) -> PolicyBlob:
        by_value = self.options.candidates > 1 and self.options.choose == "value"
        critic = self.critics.critic_target if self.publish_critic or by_value else None
        return pack_diffusion_policy(version, self.policy_spec(), self._mean, self._std, self.average, critic=critic)

    # ------------------------------------------------------------------------------------------------ state

    def _parts(self) -> dict[str, Any]:
        return {
            "observation_mean": self._mean,
            "observation_std": self._std,
            "network": self.network.flat,
            "average": self.average.flat,
            "optimizer": self.optimizer,
            **self.critics.parts(),
            "weight_scale": self._scale,
            "weight_range": self._range,
            "noise": self._noise,
        }

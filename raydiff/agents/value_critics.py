"""Critics learnt within the data: a value by asymmetric regression, and twin action values on top (section H.2).

Methods that train critics first and a diffusion model after them share these: no action outside the data is asked for
its value. Observations come normalised.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import layer_norm

from raydiff.agents.expectile import expectile_loss
from raydiff.agents.networks import MLP, Adam, soft_update
from raydiff.agents.rates import cosine
from raydiff.agents.state import Part
from raydiff.config_learner import LearnerConfig

ValueLoss = Literal["expectile", "linex"]

LINEX_CLIP = math.log(6)
"""Largest exponent in the gradient of the linex regression (section E.4)."""


def linex_loss(advantage: Tensor, alpha: float) -> Tensor:
    """A loss ``[B]`` whose gradient by ``advantage [B]`` is that of ``exp(alpha u) / alpha - u``, its exponent clipped
    (section E.4). Its minimum over an estimate is the soft maximum ``log(mean(exp(alpha Q))) / alpha``. Its own number
    is no measure of fit, for it is the gradient times the advantage."""
    return ((alpha * advantage.detach()).clamp_max(LINEX_CLIP).exp() - 1) * advantage


class ValueCritics:
    """``V(s)`` regressed on the smaller of two target critics, ``Q(s, a)`` on ``r + gamma (1 - d) V(s')``."""

    def __init__(
        self,
        config: LearnerConfig,
        observation_size: int,
        action_size: int,
        generator: torch.Generator,
        *,
        expectile: float = 0.7,
        loss: ValueLoss = "expectile",
        linex_alpha: float = 1.0,
        layer_norm: bool = False,
    ) -> None:
        """``config`` gives widths, rates, discount and device; weights are drawn from ``generator``, on the host.
        ``layer_norm`` normalises each observation over its entries before ``V`` (section E.5); a scale and a shift
        after it would add nothing, as the first layer has its own."""
        self.config, self.expectile, self.loss, self.linex_alpha = config, expectile, loss, linex_alpha
        self.layer_norm, self.observation_size = layer_norm, observation_size
        inputs = observation_size + action_size
        self.critic = MLP((inputs, *config.hidden, 1), heads=2, generator=generator, device=config.device)
        self.critic_target = self.critic.copy()
        self.value_network = MLP((observation_size, *config.hidden, 1), generator=generator, device=config.device)
        self.critic_optimizer = Adam([self.critic.flat], config.learning_rate, config.adam_epsilon)
        self.value_optimizer = Adam([self.value_network.flat], config.learning_rate, config.adam_epsilon)

    # ------------------------------------------------------------------------------------------------ values

    def value(self, observation: Tensor) -> Tensor:
        """``V(s) [B]`` of normalised observations ``[B, S]``."""
        if self.layer_norm:
            observation = layer_norm(observation, (self.observation_size,))
        return self.value_network(observation).squeeze(-1)

    @torch.no_grad()
    def target_values(self, observation: Tensor, action: Tensor) -> Tensor:
        """``Q(s, a) [2, B]`` of both target critics for ``action [B, A]``."""
        return self.critic_target(torch.cat([observation, action], -1)).squeeze(-1)

    @torch.no_grad()
    def advantage(self, observation: Tensor, action: Tensor) -> Tensor:
        """The smaller of the two target critics less the value, ``[B]``."""
        return self.target_values(observation, action).amin(0) - self.value(observation)

    # ------------------------------------------------------------------------------------------------ update

    def update(
        self, observation: Tensor, action: Tensor, reward: Tensor, next_observation: Tensor, terminal: Tensor
    ) -> dict[str, Tensor]:
        """One step of the value, then of the critics on the new value, then of the target critics. Shapes as in
        ``Batch``, observations normalised; the metrics are detached scalars."""
        value_loss = self.update_value(observation, self.target_values(observation, action).amin(0))
        with torch.no_grad():
            value = self.value(next_observation)
            target = reward + self.config.discount * (1 - terminal) * value
        critic_loss = self.update_critics(observation, action, target)
        return {"critic_loss": critic_loss.detach(), "value_loss": value_loss.detach(), "value": value.mean()}

    def update_value(self, observation: Tensor, estimate: Tensor) -> Tensor:
        """One step of ``V`` towards ``estimate [B]``; returns the loss before it."""
        advantage = estimate - self.value(observation)
        if self.loss == "linex":
            loss = linex_loss(advantage, self.linex_alpha).mean()
        else:
            loss = expectile_loss(advantage, self.expectile).mean()
        self.value_optimizer.minimize(loss)
        return loss

    def update_critics(self, observation: Tensor, action: Tensor, target: Tensor) -> Tensor:
        """One step of both critics towards ``target [B]``, then of their targets; returns the squared error before it,
        mean over the batch and summed over the two."""
        value = self.critic(torch.cat([observation, action], -1)).squeeze(-1)
        loss = (value - target).square().sum() / len(target)
        self.critic_optimizer.minimize(loss)
        soft_update(self.critic_target, self.critic, self.config.tau)
        return loss

    def anneal(self, share: float) -> None:
        """Learning rates after the share of the run, where the configuration asks for a cosine on everything."""
        if self.config.learning_rate_schedule == "cosine":
            for optimizer in (self.critic_optimizer, self.value_optimizer):
                optimizer.learning_rate = cosine(self.config.learning_rate, share)

    # ------------------------------------------------------------------------------------------------ state

    def parts(self) -> dict[str, Part]:
        """All that continues a run, for ``save_parts`` and ``load_parts``."""
        return {
            "critic": self.critic,
            "critic_target": self.critic_target,
            "critic_optimizer": self.critic_optimizer,
            "value": self.value_network,
            "value_optimizer": self.value_optimizer,
        }

"""The critics that AEPO compares with those of implicit Q-learning (its appendix H; section F.2).

The paper gives neither the conservative one's target nor its proposals. Here both share the value by expectiles: the
conservative critics bootstrap from it, and beside the in-support ones it serves as the baseline of the energies.
"""

from __future__ import annotations

import torch
from torch import Tensor

from raydiff.agents.networks import soft_update
from raydiff.agents.qgpo import in_support_value
from raydiff.agents.support_actions import Draw, SupportActions
from raydiff.agents.value_critics import ValueCritics
from raydiff.config_learner import LearnerConfig


class ConservativeCritics(ValueCritics):
    """Critics held low away from the data (Kumar et al. 2020): a penalty on the soft maximum of ``Q`` over proposed
    actions, uniform ones and those of other states of the batch, less the value of the data's action."""

    def __init__(
        self,
        config: LearnerConfig,
        observation_size: int,
        action_size: int,
        generator: torch.Generator,
        noise: torch.Generator,
    ) -> None:
        """``noise`` draws the proposals; it belongs to the learner."""
        super().__init__(config, observation_size, action_size, generator, expectile=config.aepo.expectile)
        self.options, self._noise = config.aepo, noise

    def proposals(self, action: Tensor) -> Tensor:
        """Actions ``[2K, B, A]``: K uniform ones for each state, then K of the batch ``[B, A]`` in random order."""
        count, size = self.options.penalty_actions, len(action)
        uniform = action.new_empty(count, *action.shape).uniform_(-1, 1, generator=self._noise)
        order = torch.rand(count, size, generator=self._noise, device=action.device).argsort(1)
        return torch.cat([uniform, action[order]])

    def penalty(self, values: Tensor, data_value: Tensor) -> Tensor:
        """``log mean exp Q`` over the proposals ``[2, P, B]`` less the data's value ``[2, B]``: mean over the batch,
        summed over the two critics."""
        return (values.logsumexp(1) - data_value).mean(-1).sum()

    def update_critics(self, observation: Tensor, action: Tensor, target: Tensor) -> Tensor:
        actions = torch.cat([action[None], self.proposals(action)])
        inputs = torch.cat([observation.expand(len(actions), -1, -1), actions], -1).flatten(0, 1)
        values = self.critic(inputs).view(2, len(actions), -1)
        error = (values[:, 0] - target).square().sum() / len(target)
        self.critic_optimizer.minimize(error + self.options.penalty * self.penalty(values[:, 1:], values[:, 0]))
        soft_update(self.critic_target, self.critic, self.config.tau)
        return error


class InSupportCritics(ValueCritics):
    """Critics whose target averages over actions that the behaviour model draws in the next state, by the softmax of
    their values (section G)."""

    def __init__(
        self,
        config: LearnerConfig,
        observation_size: int,
        action_size: int,
        generator: torch.Generator,
        noise: torch.Generator,
        draw: Draw,
    ) -> None:
        """``draw`` makes actions of the behaviour in normalised states. Those of states that are not stored come from
        ``noise``, which belongs to the learner."""
        super().__init__(config, observation_size, action_size, generator, expectile=config.aepo.expectile)
        self._beta, self._noise, self._draw = config.aepo.support_beta, noise, draw
        self._actions = config.aepo.support_actions, action_size
        self._stored: SupportActions | None = None

    def store(self, observation: Tensor, seed: int) -> None:
        """From now on the actions of all normalised observations ``[N, S]`` are drawn once, and then looked up."""
        self._stored = SupportActions(observation, self._actions, seed, self._draw)

    def update(
        self, observation: Tensor, action: Tensor, reward: Tensor, next_observation: Tensor, terminal: Tensor
    ) -> dict[str, Tensor]:
        next_action = self._support(next_observation)
        with torch.no_grad():
            rows = next_observation[:, None].expand(-1, next_action.shape[1], -1).flatten(0, 1)
            value = self.target_values(rows, next_action.flatten(0, 1)).amin(0).view(len(next_observation), -1)
            target = reward + self.config.discount * (1 - terminal) * in_support_value(value, self._beta)
        value_loss = self.update_value(observation, self.target_values(observation, action).amin(0))
        critic_loss = self.update_critics(observation, action, target)
        return {"critic_loss": critic_loss.detach(), "value_loss": value_loss.detach(), "value": value.mean()}

    def _support(self, observation: Tensor) -> Tensor:
        """Actions ``[B, K, A]`` of normalised observations ``[B, S]``: the stored ones, new ones where there are none."""
        if self._stored is None:
            return self._drawn(observation)
        action, found = self._stored(observation)
        if not bool(found.all()):
            missing = ~found
            action[missing] = self._drawn(observation[missing])
        return action

    def _drawn(self, observation: Tensor) -> Tensor:
        shape = len(observation), *self._actions
        return self._draw(observation, torch.randn(shape, generator=self._noise, device=observation.device))

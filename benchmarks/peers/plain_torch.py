"""The peers of benchmarks/learner.py in PyTorch: TD3+BC and IQL as single-file implementations write them.

Separate linear layers, ``backward``, torch's default Adam. They are spared the host synchronisations that many such
files have. Whether their matrix products take the faster route is up to the benchmark.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.nn import functional

from raydiff.types import Batch


def perceptron(inputs: int, outputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, outputs)
    )


@torch.no_grad()
def follow(target: nn.Module, online: nn.Module) -> None:
    for source, moved in zip(online.parameters(), target.parameters(), strict=True):
        moved.copy_(0.005 * source + 0.995 * moved)


def minimize(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


class PlainTD3BC:
    def __init__(self, states: int, actions: int, width: int) -> None:
        torch.manual_seed(0)
        self.actor = perceptron(states, actions, width)
        self.critics = nn.ModuleList([perceptron(states + actions, 1, width) for _ in range(2)])
        self.actor_target, self.critics_target = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=3e-4)
        self.updates = 0

    def update(self, batch: Batch) -> dict[str, Tensor]:
        observation, action, reward, next_observation, terminal = batch[:5]
        with torch.no_grad():
            noise = (torch.randn_like(action) * 0.2).clamp(-0.5, 0.5)
            next_action = (torch.tanh(self.actor_target(next_observation)) + noise).clamp(-1, 1)
            following = torch.cat([next_observation, next_action], 1)
            target_1, target_2 = (critic(following).squeeze(1) for critic in self.critics_target)
            target = reward + 0.99 * (1 - terminal) * torch.min(target_1, target_2)
        state_action = torch.cat([observation, action], 1)
        value_1, value_2 = (critic(state_action).squeeze(1) for critic in self.critics)
        critic_loss = functional.mse_loss(value_1, target) + functional.mse_loss(value_2, target)
        minimize(critic_loss, self.critic_optimizer)
        self.updates += 1
        if self.updates % 2 == 0:
            own = torch.tanh(self.actor(observation))
            value = self.critics[0](torch.cat([observation, own], 1))
            actor_loss = -2.5 / value.abs().mean().detach() * value.mean() + functional.mse_loss(own, action)
            minimize(actor_loss, self.actor_optimizer)
            follow(self.actor_target, self.actor)
            follow(self.critics_target, self.critics)
        return {"critic_loss": critic_loss.detach()}


class PlainIQL:
    def __init__(self, states: int, actions: int, width: int) -> None:
        torch.manual_seed(0)
        self.actor, self.value = perceptron(states, actions, width), perceptron(states, 1, width)
        self.log_std = nn.Parameter(torch.zeros(actions))
        self.critics = nn.ModuleList([perceptron(states + actions, 1, width) for _ in range(2)])
        self.critics_target = copy.deepcopy(self.critics)
        self.actor_optimizer = torch.optim.Adam([*self.actor.parameters(), self.log_std], lr=3e-4)
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self.actor_optimizer, 1_000_000)
        self.value_optimizer = torch.optim.Adam(self.value.parameters(), lr=3e-4)
        self.critic_optimizer = torch.optim.Adam(self.critics.parameters(), lr=3e-4)

    def update(self, batch: Batch) -> dict[str, Tensor]:
        observation, action, reward, next_observation, terminal = batch[:5]
        state_action = torch.cat([observation, action], 1)
        with torch.no_grad():
            estimate = torch.min(*(critic(state_action).squeeze(1) for critic in self.critics_target))
        advantage = estimate - self.value(observation).squeeze(1)
        value_loss = (torch.abs(0.7 - (advantage < 0).float()) * advantage**2).mean()
        minimize(value_loss, self.value_optimizer)

        with torch.no_grad():
            advantage = estimate - self.value(observation).squeeze(1)
            next_value = self.value(next_observation).squeeze(1)
        weight = torch.exp(3.0 * advantage).clamp(max=100.0)
        law = torch.distributions.Normal(torch.tanh(self.actor(observation)), self.log_std.clamp(-5, 2).exp())
        actor_loss = -(weight * law.log_prob(action).sum(1)).mean()
        minimize(actor_loss, self.actor_optimizer)
        self.schedule.step()

        target = reward + 0.99 * (1 - terminal) * next_value
        value_1, value_2 = (critic(state_action).squeeze(1) for critic in self.critics)
        critic_loss = functional.mse_loss(value_1, target) + functional.mse_loss(value_2, target)
        minimize(critic_loss, self.critic_optimizer)
        follow(self.critics_target, self.critics)
        return {"critic_loss": critic_loss.detach()}

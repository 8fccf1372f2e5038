"""TD3+BC against a plain implementation and the properties of section H.1."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

from raydiff.agents.registry import build_agent
from raydiff.agents.td3_bc import TD3BC
from raydiff.config_learner import LearnerConfig, TD3BCConfig
from raydiff.types import Batch

OBSERVATION, ACTION, SIZE = 5, 2, 32


def agent(seed: int = 0, **options: float) -> TD3BC:
    config = LearnerConfig(hidden=(24, 16), td3_bc=TD3BCConfig(**options))
    statistics = torch.full((OBSERVATION,), 0.5), torch.linspace(0.5, 2, OBSERVATION)
    built = build_agent(config, OBSERVATION, ACTION, *statistics, seed)
    assert isinstance(built, TD3BC)
    return built


def batch(seed: int = 0, terminal: float = 0.1) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    action = torch.rand(SIZE, ACTION, generator=generator) * 2 - 1
    states = torch.randn(2, SIZE, OBSERVATION, generator=generator)
    ended = (torch.rand(SIZE, generator=generator) < terminal).float()
    return Batch(states[0], action, torch.randn(SIZE, generator=generator), states[1], ended)


class Reference:
    """The algorithm once more, of linear layers, one statement per line of the published procedure."""

    def __init__(self, learner: TD3BC) -> None:
        self.actor = linear_layers(learner.actor.layers)
        self.critics = [linear_layers([(w[j], b[j]) for w, b in learner.critic.layers]) for j in range(2)]
        self.actor_target, self.critic_targets = copy.deepcopy(self.actor), copy.deepcopy(self.critics)
        both = [*self.critics[0].parameters(), *self.critics[1].parameters()]
        self.critic_optimizer = torch.optim.Adam(both, lr=3e-4)
        self.actor_optimizer = torch.optim.Adam(self.actor.parameters(), lr=3e-4)
        self.noise = torch.Generator()
        self.noise.set_state(learner.state_dict()["noise"])
        self.count = 0

    def update(self, batch: Batch) -> None:
        mean, std = torch.full((OBSERVATION,), 0.5), torch.linspace(0.5, 2, OBSERVATION) + 1e-3
        s, s2 = (batch.observation - mean) / std, (batch.next_observation - mean) / std
        with torch.no_grad():
            noise = (torch.randn(SIZE, ACTION, generator=self.noise) * 0.2).clamp(-0.5, 0.5)
            a2 = (torch.tanh(self.actor_target(s2)) + noise).clamp(-1, 1)
            q2 = torch.minimum(*(q(torch.cat([s2, a2], 1)) for q in self.critic_targets)).squeeze(1)
            y = batch.reward + 0.99 * (1 - batch.terminal) * q2
        values = [q(torch.cat([s, batch.action], 1)).squeeze(1) for q in self.critics]
        loss = sum(nn.functional.mse_loss(value, y) for value in values)
        self.critic_optimizer.zero_grad()
        loss.backward()
        self.critic_optimizer.step()
        self.count += 1
        if self.count % 2:
            return
        pi = torch.tanh(self.actor(s))
        q = self.critics[0](torch.cat([s, pi], 1))
        actor_loss = -2.5 / q.abs().mean().detach() * q.mean() + nn.functional.mse_loss(pi, batch.action)
        self.actor_optimizer.zero_grad()
        actor_loss.backward()
        self.actor_optimizer.step()
        for online, target in zip([self.actor, *self.critics], [self.actor_target, *self.critic_targets], strict=True):
            for new, old in zip(online.parameters(), target.parameters(), strict=True):
                old.data.copy_(0.005 * new.data + 0.995 * old.data)


def linear_layers(layers: list[tuple[torch.Tensor, torch.Tensor]]) -> nn.Sequential:
    modules: list[nn.Module] = []
    for weight, bias in layers:
        linear = nn.Linear(weight.shape[1], weight.shape[0])
        linear.weight.data.copy_(weight)
        linear.bias.data.copy_(bias[0])
        modules += [linear, nn.ReLU()]
    return nn.Sequential(*modules[:-1])


def assert_same(layers: list[tuple[torch.Tensor, torch.Tensor]], plain: nn.Sequential) -> None:
    linears = [module for module in plain if isinstance(module, nn.Linear)]
    for (weight, bias), linear in zip(layers, linears, strict=True):
        torch.testing.assert_close(weight, linear.weight.detach(), atol=1e-5, rtol=0)
        torch.testing.assert_close(bias[0], linear.bias.detach(), atol=1e-5, rtol=0)


def test_updates_equal_the_reference_step_by_step() -> None:
    learner = agent()
    reference = Reference(learner)
    start = learner.actor.flat.detach().clone()
    for step in range(10):
        learner.update(batch(step))
        reference.update(batch(step))
        assert_same(learner.actor.layers, reference.actor)
        assert_same(learner.actor_target.layers, reference.actor_target)
        for j in range(2):
            assert_same([(w[j], b[j]) for w, b in learner.critic.layers], reference.critics[j])
            assert_same([(w[j], b[j]) for w, b in learner.critic_target.layers], reference.critic_targets[j])
    assert (learner.actor.flat - start).abs().max() > 1e-3  # the comparison is of weights that moved


def test_scaling_the_critic_leaves_the_actor_gradient_unchanged() -> None:
    learner, data = agent(), batch()
    gradients = []
    for scale in (1.0, 37.0):
        weight, bias = learner.critic.layers[-1]
        weight.mul_(scale)
        bias.mul_(scale)
        loss, _ = learner.actor_loss(data.observation, data.action)
        gradients.append(torch.autograd.grad(loss, learner.actor.flat)[0])
    assert gradients[0].abs().max() > 1e-2
    torch.testing.assert_close(gradients[1], gradients[0], atol=1e-6, rtol=0)


def test_actor_and_targets_move_only_on_every_second_update() -> None:
    learner = agent()
    networks = {"actor": learner.actor, "actor_target": learner.actor_target, "critic_target": learner.critic_target}
    for step in range(1, 7):
        before = {name: network.flat.detach().clone() for name, network in networks.items()}
        critic = learner.critic.flat.detach().clone()
        learner.update(batch(step))
        assert not torch.equal(critic, learner.critic.flat)
        for name, network in networks.items():
            assert torch.equal(before[name], network.flat) == (step % 2 == 1), (step, name)


def test_terminal_rows_are_worth_their_reward() -> None:
    learner, data = agent(), batch(terminal=0.5)
    target = learner.target_value(data.reward, data.next_observation, data.terminal, *learner._draw(data.action, 1))
    ended = data.terminal > 0
    assert 0 < ended.sum() < SIZE
    assert torch.equal(target[ended], data.reward[ended])
    assert (target[~ended] - data.reward[~ended]).abs().min() > 0


def test_without_the_value_term_it_is_behaviour_cloning() -> None:
    learner, data = agent(alpha=0), batch()
    loss, _ = learner.actor_loss(data.observation, data.action)
    (gradient,) = torch.autograd.grad(loss, learner.actor.flat)
    cloning = (torch.tanh(learner.actor(data.observation)) - data.action).square().mean()
    torch.testing.assert_close(loss, cloning)
    torch.testing.assert_close(gradient, torch.autograd.grad(cloning, learner.actor.flat)[0])


def test_actions_of_the_target_are_smoothed_and_clipped() -> None:
    calm, noisy = agent(policy_noise=0.0), agent(policy_noise=50.0, noise_clip=0.3)
    seen: list[torch.Tensor] = []
    data = batch()
    for learner in (calm, noisy):
        original = learner.critic_target

        def record(inputs: torch.Tensor, network=original) -> torch.Tensor:
            seen.append(inputs[:, OBSERVATION:].clone())
            return network(inputs)

        learner.critic_target = record  # type: ignore[assignment]
        learner.target_value(data.reward, data.next_observation, data.terminal, *learner._draw(data.action, 1))
    difference = (seen[1] - seen[0]).abs()
    assert difference.max().item() == pytest.approx(0.3, abs=1e-6)
    assert (difference > 0.29).float().mean() > 0.9
    assert seen[1].abs().max() <= 1


def test_metrics_are_detached_scalars() -> None:
    learner = agent()
    learner.update(batch())
    metrics = learner.update(batch())
    assert set(metrics) == {"critic_loss", "value", "actor_loss", "cloning_loss"}
    assert all(value.shape == () and not value.requires_grad for value in metrics.values())


def test_policy_guided_diffusions_order_is_actor_then_critics_then_targets() -> None:
    config = LearnerConfig(
        hidden=(24, 16), adam_epsilon=1e-5, td3_bc=TD3BCConfig(order="pgd", critic_steps=2, policy_noise=0.0)
    )
    statistics = torch.full((OBSERVATION,), 0.5), torch.linspace(0.5, 2, OBSERVATION)
    learner = build_agent(config, OBSERVATION, ACTION, *statistics, 3)
    assert isinstance(learner, TD3BC)
    data = batch(4)
    actor, critic = linear_layers(learner.actor.layers), learner.critic.flat.detach().clone()
    mean, std = torch.full((OBSERVATION,), 0.5), torch.linspace(0.5, 2, OBSERVATION) + 1e-3
    s = (data.observation - mean) / std
    # The actor's step, by hand, with the critics as they were before this update.
    first = linear_layers([(w[0], b[0]) for w, b in learner.critic.layers])
    own = actor(s).tanh()
    value = first(torch.cat([s, own], 1))
    loss = (own - data.action).square().mean() - 2.5 / value.detach().abs().mean() * value.mean()
    optimizer = torch.optim.Adam(actor.parameters(), lr=3e-4, eps=1e-5)
    loss.backward()
    optimizer.step()
    target_before = learner.actor_target.flat.detach().clone()
    learner.update(data)
    expected = torch.cat([p.detach().flatten() for p in actor.parameters()])
    torch.testing.assert_close(learner.actor.flat.detach(), expected, atol=1e-6, rtol=0)
    assert not torch.equal(learner.critic.flat, critic)
    assert float(learner.critic_optimizer.steps[0]) == 2
    assert float(learner.actor_optimizer.steps[0]) == 1
    torch.testing.assert_close(learner.actor_target.flat, target_before.lerp(learner.actor.flat.detach(), 0.005))


def test_learning_rates_follow_their_schedule() -> None:
    config = LearnerConfig(
        hidden=(8,), updates=10, learning_rate=1e-3, actor_learning_rate=2e-3, learning_rate_schedule="cosine"
    )
    learner = build_agent(config, OBSERVATION, ACTION, torch.zeros(OBSERVATION), torch.ones(OBSERVATION), 0)
    assert isinstance(learner, TD3BC)
    seen = []
    for _ in range(10):
        learner.update(batch())
        seen.append((learner.actor_optimizer.learning_rate, learner.critic_optimizer.learning_rate))
    assert seen[0] == (2e-3, 1e-3)
    assert seen[5] == pytest.approx((1e-3, 5e-4))
    assert seen[9][0] == pytest.approx(2e-3 * (1 + math.cos(0.9 * math.pi)) / 2)

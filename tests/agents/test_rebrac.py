"""ReBRAC against formulas written out by hand with ``torch.nn`` (section H.5)."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from raydiff.agents.layer_norm_mlp import LayerNormMLP
from raydiff.agents.policy import Policy
from raydiff.agents.rebrac import ReBRAC
from raydiff.agents.registry import build_agent
from raydiff.config_learner import LearnerConfig, ReBRACConfig
from raydiff.types import Batch

OBSERVATION, ACTION, SIZE = 5, 2, 32
MEAN, STD = torch.full((OBSERVATION,), 0.5), torch.linspace(0.5, 2, OBSERVATION)


def agent(seed: int = 0, hidden: tuple[int, ...] = (24, 16), **options: float) -> ReBRAC:
    config = LearnerConfig(
        algorithm="rebrac", hidden=hidden, learning_rate=1e-3, tau=0.01, rebrac=ReBRACConfig(**options)
    )
    built = build_agent(config, OBSERVATION, ACTION, MEAN, STD, seed)
    assert isinstance(built, ReBRAC)
    return built


def batch(seed: int = 0, terminal: float = 0.2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    action, following = torch.rand(2, SIZE, ACTION, generator=generator) * 2 - 1
    states = torch.randn(2, SIZE, OBSERVATION, generator=generator)
    ended = (torch.rand(SIZE, generator=generator) < terminal).float()
    return Batch(states[0], action, torch.randn(SIZE, generator=generator), states[1], ended, following)


def plain_actor(learner: ReBRAC) -> nn.Sequential:
    modules: list[nn.Module] = []
    for weight, bias in learner.actor.layers:
        modules += [linear(weight, bias[0]), nn.ReLU()]
    return nn.Sequential(*modules[:-1], nn.Tanh())


def plain_critic(network: LayerNormMLP, j: int) -> nn.Sequential:
    """Critic ``j`` of layers in the published order: linear, ReLU, normalisation."""
    modules: list[nn.Module] = []
    norms = network.norms(network.flat.detach())
    for (weight, bias), (gain, shift) in zip(network.layers[:-1], norms, strict=True):
        norm = nn.LayerNorm(weight.shape[1], eps=1e-6)
        norm.weight.data.copy_(gain[j, 0])
        norm.bias.data.copy_(shift[j, 0])
        modules += [linear(weight[j], bias[j, 0]), nn.ReLU(), norm]
    weight, bias = network.layers[-1]
    return nn.Sequential(*modules, linear(weight[j], bias[j, 0]))


def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0])
    made.weight.data.copy_(weight)
    made.bias.data.copy_(bias)
    return made


def flat_critic(critics: list[nn.Sequential], of: Any = lambda parameter: parameter.detach()) -> Tensor:
    """The parameters of both critics in the order of ``LayerNormMLP.flat``."""
    linears = [[m for m in critic if isinstance(m, nn.Linear)] for critic in critics]
    norms = [[m for m in critic if isinstance(m, nn.LayerNorm)] for critic in critics]
    pairs = [(of(layer[j].weight), of(layer[j].bias)) for j in range(len(linears[0])) for layer in linears]
    stacked = []
    for first, second in zip(pairs[::2], pairs[1::2], strict=True):
        stacked += [torch.stack([a, b]).flatten() for a, b in zip(first, second, strict=True)]
    for name in ("weight", "bias"):
        stacked += [of(getattr(layer[j], name)) for j in range(len(norms[0])) for layer in norms]
    return torch.cat(stacked)


def flat_actor(actor: nn.Sequential) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in actor.parameters()])


def trained(steps: int = 4, **options: float) -> ReBRAC:
    """Away from its start, where both critics are next to 0."""
    learner = agent(**options)
    for step in range(steps):
        learner.update(batch(100 + step))
    return learner


def test_layer_norm_critics_equal_torch_nn() -> None:
    generator = torch.Generator().manual_seed(3)
    network = LayerNormMLP((7, 24, 16, 1), heads=2, generator=generator)
    with torch.no_grad():
        network.flat.add_(0.1 * torch.randn(network.flat.shape, generator=generator))  # gains and shifts too
    critics = [plain_critic(network, j) for j in range(2)]
    inputs = torch.randn(SIZE, 7, generator=generator)
    for_plain, for_ours = (inputs.clone().requires_grad_() for _ in range(2))
    expected = torch.stack([critic(for_plain) for critic in critics])
    found = network(for_ours)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    upstream = torch.randn(expected.shape, generator=generator)
    expected.backward(upstream)
    gradient, weights = torch.autograd.grad(found, [for_ours, network.flat], upstream)
    torch.testing.assert_close(gradient, for_plain.grad, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights, flat_critic(critics, lambda p: p.grad), atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(network(inputs), expected, atol=1e-6, rtol=1e-5)
    for j in range(2):
        torch.testing.assert_close(network.head(j, inputs), expected[j], atol=1e-6, rtol=1e-5)
        fixed = inputs.clone().requires_grad_()
        network.head(j, fixed).sum().backward()
        alone = torch.autograd.grad(critics[j](for_plain).sum(), for_plain)[0]
        torch.testing.assert_close(fixed.grad, alone, atol=1e-5, rtol=1e-5)
    assert torch.equal(network.copy().flat, network.flat)


def test_starting_weights_are_the_published_ones() -> None:
    learner = agent(hidden=(64, 64, 64))
    for network, last in ((learner.actor, 1e-3), (learner.critic, 3e-3)):
        for weight, bias in network.layers[:-1]:
            bound = weight.shape[-1] ** -0.5
            assert 0.9 * bound < weight.abs().max() <= bound
            assert (bias == 0.1).all()
        for part in network.layers[-1]:
            assert 0 < part.abs().max() <= last
        assert network.layers[-1][0].abs().max() > 0.8 * last
    for gain, shift in learner.critic.norms(learner.critic.flat.detach()):
        assert (gain == 1).all()
        assert (shift == 0).all()
    assert not torch.equal(*learner.critic.layers[0][0])  # the two critics differ
    assert torch.equal(learner.critic_target.flat, learner.critic.flat)


def test_target_is_penalised_by_the_distance_from_the_datas_next_action() -> None:
    data = batch()
    learner = trained(critic_penalty=0.7, policy_noise=0.0)
    observation = (data.next_observation - MEAN) / (STD + 1e-3)
    with torch.no_grad():
        own = learner.actor_target(observation).tanh()
        inputs = torch.cat([observation, own], 1)
        q = torch.minimum(*(plain_critic(learner.critic_target, j)(inputs)[:, 0] for j in range(2)))
        distance = ((own - data.next_action) ** 2).sum(1)
        expected = data.reward + 0.99 * (1 - data.terminal) * (q - 0.7 * distance)
    assert distance.max() > 0.5
    found = learner.target_value(data.reward, observation, data.terminal, data.next_action)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    ended = data.terminal > 0
    assert 0 < ended.sum() < SIZE
    assert torch.equal(found[ended], data.reward[ended])


def test_actor_loss_is_the_smaller_value_in_units_of_its_size_and_the_summed_distance() -> None:
    learner, data = trained(actor_penalty=0.3), batch()
    observation = (data.observation - MEAN) / (STD + 1e-3)
    actor = plain_actor(learner)
    own = actor(observation)
    inputs = torch.cat([observation, own], 1)
    first, second = (plain_critic(learner.critic, j)(inputs)[:, 0] for j in range(2))
    assert 0 < (first < second).sum() < SIZE
    q = torch.minimum(first, second)
    distance = ((own - data.action) ** 2).sum(1)
    expected = (0.3 * distance - q / q.abs().mean().detach()).mean()
    loss, cloning = learner.actor_loss(observation, data.action)
    torch.testing.assert_close(loss, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(cloning, distance.mean())
    expected.backward()
    wanted = torch.cat([parameter.grad.flatten() for parameter in actor.parameters()])  # type: ignore[union-attr]
    torch.testing.assert_close(torch.autograd.grad(loss, learner.actor.flat)[0], wanted, atol=1e-5, rtol=1e-4)


def test_updates_equal_a_plain_implementation_step_by_step() -> None:
    learner = trained(critic_penalty=0.05, actor_penalty=0.1)
    actor, critics = plain_actor(learner), [plain_critic(learner.critic, j) for j in range(2)]
    actor_target, critic_targets = copy.deepcopy(actor), [plain_critic(learner.critic_target, j) for j in range(2)]
    nn.utils.vector_to_parameters(learner.actor_target.flat.detach().clone(), actor_target.parameters())
    learner.actor_optimizer = type(learner.actor_optimizer)([learner.actor.flat], 1e-3)
    learner.critic_optimizer = type(learner.critic_optimizer)([learner.critic.flat], 1e-3)
    actor_optimizer = torch.optim.Adam(actor.parameters(), lr=1e-3)
    critic_optimizer = torch.optim.Adam([p for critic in critics for p in critic.parameters()], lr=1e-3)
    noise = torch.Generator()
    noise.set_state(learner.state_dict()["noise"])
    start = learner.actor.flat.detach().clone()
    for step in range(1, 7):
        data = batch(step)
        s, s2 = ((part - MEAN) / (STD + 1e-3) for part in (data.observation, data.next_observation))
        with torch.no_grad():
            smoothing = (torch.randn(SIZE, ACTION, generator=noise) * 0.2).clamp(-0.5, 0.5)
            a2 = (actor_target(s2) + smoothing).clamp(-1, 1)
            q2 = torch.minimum(*(q(torch.cat([s2, a2], 1))[:, 0] for q in critic_targets))
            q2 = q2 - 0.05 * ((a2 - data.next_action) ** 2).sum(1)
            y = data.reward + 0.99 * (1 - data.terminal) * q2
        inputs = torch.cat([s, data.action], 1)
        loss = sum(nn.functional.mse_loss(q(inputs)[:, 0], y) for q in critics)
        critic_optimizer.zero_grad()
        loss.backward()
        critic_optimizer.step()
        if step % 2 == 0:
            own = actor(s)
            q = torch.minimum(*(critic(torch.cat([s, own], 1))[:, 0] for critic in critics))
            actor_loss = (0.1 * ((own - data.action) ** 2).sum(1) - q / q.abs().mean().detach()).mean()
            actor_optimizer.zero_grad()
            actor_loss.backward()
            actor_optimizer.step()
            for online, target in zip([actor, *critics], [actor_target, *critic_targets], strict=True):
                for new, old in zip(online.parameters(), target.parameters(), strict=True):
                    old.data.lerp_(new.data, 0.01)
        learner.update(data)
        torch.testing.assert_close(learner.critic.flat.detach(), flat_critic(critics), atol=2e-5, rtol=0)
        torch.testing.assert_close(learner.critic_target.flat.detach(), flat_critic(critic_targets), atol=2e-5, rtol=0)
        torch.testing.assert_close(learner.actor.flat.detach(), flat_actor(actor), atol=2e-5, rtol=0)
        torch.testing.assert_close(learner.actor_target.flat.detach(), flat_actor(actor_target), atol=2e-5, rtol=0)
    assert (learner.actor.flat - start).abs().max() > 1e-3  # the comparison is of weights that moved


def test_without_a_penalty_in_the_target_no_next_action_is_needed() -> None:
    data = batch()._replace(next_action=None)
    agent(critic_penalty=0.0).update(data)
    with pytest.raises(ValueError, match="critic_penalty needs the data's next actions"):
        agent().update(data)


def test_state_goes_on_bit_by_bit() -> None:
    whole, first = agent(), agent()
    for step in range(5):
        whole.update(batch(step))
        first.update(batch(step))
    second = agent(seed=9)
    second.load_state_dict(first.state_dict())
    for step in range(5, 10):
        whole.update(batch(step))
        second.update(batch(step))
    expected, found = whole.state_dict(), second.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_its_policy_and_layer_norm_critics_are_published_whole() -> None:
    learner, data = trained(), batch()
    learner.publish_critic = True
    policy = Policy.from_blob(learner.policy_blob(3))
    observation = (data.observation - MEAN) / (STD + 1e-3)
    action = data.action.clone().requires_grad_()
    inputs = torch.cat([observation, action], 1)
    value = sum(plain_critic(learner.critic_target, j)(inputs)[:, 0] for j in range(2)) / 2
    (slope,) = torch.autograd.grad(value.sum(), action)
    np.testing.assert_allclose(policy.act(data.observation), plain_actor(learner)(observation).detach(), atol=1e-6)
    torch.testing.assert_close(policy.value(data.observation, data.action), value.detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(policy.value_gradient(data.observation, data.action), slope, atol=1e-5, rtol=1e-4)
    assert slope.abs().max() > 1e-3
    again = Policy.from_blob(policy.to_blob(4))
    np.testing.assert_array_equal(again.act(data.observation), policy.act(data.observation))
    learner.publish_critic = False
    assert not Policy.from_blob(learner.policy_blob(5)).has_critic

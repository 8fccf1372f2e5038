"""Policies: what is published is what acts, and guidance gets the right distribution."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from raydiff.agents.policy import Policy
from raydiff.agents.registry import build_agent
from raydiff.config_learner import LearnerConfig
from raydiff.types import PolicyBlob

OBSERVATION, ACTION = 5, 3


def published(algorithm: str, normalize: bool = True, critic: bool = False) -> PolicyBlob:
    config = LearnerConfig(algorithm=algorithm, hidden=(16, 16), normalize_observations=normalize)
    mean, std = np.full(OBSERVATION, 3.0), np.full(OBSERVATION, 2.0)
    agent = build_agent(config, OBSERVATION, ACTION, mean, std, 0, publish_critic=critic)
    if algorithm == "iql":
        with torch.no_grad():
            agent.log_std.copy_(torch.tensor([-9.0, -0.5, 0.3]))
    return agent.policy_blob(7)


def observations(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(3, 2, (*shape, OBSERVATION)).astype(np.float32)


@pytest.mark.parametrize("algorithm", ["td3_bc", "iql"])
def test_blob_round_trip(algorithm: str) -> None:
    blob = published(algorithm)
    policy = Policy.from_blob(blob)
    again = policy.to_blob(8)
    assert again.version == 8
    assert again.spec == blob.spec
    np.testing.assert_array_equal(again.weights, blob.weights)
    actions = policy.act(observations(9))
    assert actions.shape == (9, ACTION)
    assert actions.dtype == np.float32
    np.testing.assert_array_equal(actions, Policy.from_blob(again).act(torch.from_numpy(observations(9))))


@pytest.mark.parametrize("algorithm", ["td3_bc", "iql"])
def test_actions_are_those_of_the_agents_network(algorithm: str) -> None:
    config = LearnerConfig(algorithm=algorithm, hidden=(16, 16))
    mean, std = np.linspace(-4, 4, OBSERVATION), np.linspace(0, 2, OBSERVATION)
    agent = build_agent(config, OBSERVATION, ACTION, mean, std, 3)
    raw = torch.from_numpy(observations(9))
    normalized = ((raw - torch.tensor(mean)) / (torch.tensor(std) + 1e-3)).float()
    expected = torch.tanh(agent.actor(normalized)).detach().numpy()
    np.testing.assert_allclose(Policy.from_blob(agent.policy_blob(0)).act(raw), expected, atol=1e-6)


def test_without_normalisation_observations_are_taken_as_they_are() -> None:
    policy, other = Policy.from_blob(published("td3_bc", normalize=False)), Policy.from_blob(published("td3_bc"))
    raw = observations(4)
    torch.testing.assert_close(policy.observation_mean, torch.zeros(OBSERVATION))
    torch.testing.assert_close(policy.observation_std, torch.ones(OBSERVATION))
    np.testing.assert_allclose(policy.act((raw - 3.0) / 2.001), other.act(raw), atol=1e-6)


def test_damage_and_wrong_length_are_detected() -> None:
    blob = published("td3_bc")
    weights = blob.weights.copy()
    weights[10] += 1e-3
    with pytest.raises(ValueError, match="damaged"):
        Policy.from_blob(dataclasses.replace(blob, weights=weights))
    with pytest.raises(ValueError, match="weights"):
        Policy.from_blob(PolicyBlob.pack(7, blob.spec, blob.weights[:-1]))


def test_distribution_of_both_kinds() -> None:
    states = torch.from_numpy(observations(2, 6))
    deterministic = Policy.from_blob(published("td3_bc"))
    mean, variance = deterministic.distribution(states)
    assert deterministic.deterministic
    assert variance is None
    np.testing.assert_array_equal(mean.reshape(12, ACTION).numpy(), deterministic.act(states.reshape(12, -1)))

    gaussian = Policy.from_blob(published("iql"))
    mean, variance = gaussian.distribution(states)
    assert not gaussian.deterministic
    assert mean.shape == variance.shape == (2, 6, ACTION)
    expected = torch.tensor([-5.0, -0.5, 0.3]).mul(2).exp().expand(2, 6, ACTION)  # -9 is clamped to -5
    torch.testing.assert_close(variance, expected)


def test_action_gradient_is_the_score() -> None:
    states, gaussian = torch.from_numpy(observations(4)), Policy.from_blob(published("iql"))
    action = torch.linspace(-0.9, 0.9, 12).view(4, ACTION).requires_grad_()
    mean, variance = gaussian.distribution(states)
    torch.distributions.Normal(mean, variance.sqrt()).log_prob(action).sum().backward()
    torch.testing.assert_close(gaussian.action_gradient(states, action.detach()), action.grad, rtol=1e-5, atol=1e-6)

    deterministic = Policy.from_blob(published("td3_bc"))
    mean, _ = deterministic.distribution(states)
    gradient = deterministic.action_gradient(states, action.detach(), delta=0.2)
    torch.testing.assert_close(gradient, (mean - action.detach()) / 0.04)
    with pytest.raises(ValueError, match="delta"):
        deterministic.action_gradient(states, action.detach())


def test_stochastic_actions_follow_the_distribution_and_the_generator() -> None:
    policy = Policy.from_blob(published("iql"))
    state = np.repeat(observations(1), 40_000, axis=0)
    first = policy.act(state, deterministic=False, generator=torch.Generator().manual_seed(1))
    again = policy.act(state, deterministic=False, generator=torch.Generator().manual_seed(1))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first).max() == 1.0
    mean, variance = policy.distribution(torch.from_numpy(state[:1]))
    narrow = first[:, 0]  # this dimension's deviation is exp(-5): clipping does not touch it
    assert narrow.mean() == pytest.approx(mean[0, 0].item(), abs=1e-4)
    assert narrow.std() == pytest.approx(variance[0, 0].sqrt().item(), rel=0.02)


# ------------------------------------------------------------------------------------------------- the critic


def target_values(agent, observation: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
    """The mean of the agent's two target critics ``[B]``, by plain matrix products."""
    signal = torch.cat([(observation - 3.0) / 2.001, action], -1).expand(2, -1, -1)
    layers = agent.critic_target.layers
    for weight, bias in layers[:-1]:
        signal = torch.relu(signal @ weight.mT + bias)
    return (signal @ layers[-1][0].mT + layers[-1][1]).squeeze(-1).mean(0)


@pytest.mark.parametrize("algorithm", ["td3_bc", "iql"])
def test_published_critic_is_the_mean_of_the_targets(algorithm: str) -> None:
    config = LearnerConfig(algorithm=algorithm, hidden=(16, 16))
    mean, std = np.full(OBSERVATION, 3.0), np.full(OBSERVATION, 2.0)
    agent = build_agent(config, OBSERVATION, ACTION, mean, std, 0, publish_critic=True)
    with torch.no_grad():  # targets as they are in the middle of training: not the online critics
        agent.critic_target.flat.add_(0.1 * torch.randn(agent.critic_target.flat.shape))
    policy = Policy.from_blob(agent.policy_blob(7))
    states = torch.from_numpy(observations(2, 6))
    actions = torch.linspace(-0.9, 0.9, 36).view(2, 6, ACTION).requires_grad_()
    expected = target_values(agent, states.view(12, -1), actions.view(12, -1))
    gradient = torch.autograd.grad(expected.sum(), actions)[0]
    actions = actions.detach()
    assert policy.has_critic
    torch.testing.assert_close(policy.value(states, actions).view(12), expected.detach(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(policy.value_gradient(states, actions), gradient, rtol=1e-5, atol=1e-6)
    with torch.inference_mode():  # as generators call it
        inside = policy.value_gradient(states * 1.0, actions * 1.0)
    torch.testing.assert_close(inside, gradient, rtol=1e-5, atol=1e-6)
    again = Policy.from_blob(policy.to_blob(8))
    torch.testing.assert_close(again.value(states, actions), policy.value(states, actions), rtol=0, atol=0)


@pytest.mark.parametrize("algorithm", ["td3_bc", "iql"])
def test_the_critic_travels_only_where_it_is_wanted(algorithm: str) -> None:
    plain, valued = published(algorithm), published(algorithm, critic=True)
    assert (plain.spec["critic"], valued.spec["critic"]) == (False, True)
    critics = 2 * sum((inputs + 1) * outputs for inputs, outputs in ((OBSERVATION + ACTION, 16), (16, 16), (16, 1)))
    assert len(valued.weights) == len(plain.weights) + critics
    np.testing.assert_array_equal(valued.weights[: len(plain.weights)], plain.weights)
    states = torch.from_numpy(observations(4))
    for first, second in zip(*(Policy.from_blob(b).distribution(states) for b in (plain, valued)), strict=True):
        assert first is second or torch.equal(first, second)
    policy = Policy.from_blob(plain)
    assert not policy.has_critic
    with pytest.raises(ValueError, match="without its critic"):
        policy.value_gradient(states, torch.zeros(4, ACTION))
    with pytest.raises(ValueError, match="without its critic"):
        policy.value(states, torch.zeros(4, ACTION))
    with pytest.raises(ValueError, match="weights"):
        Policy.from_blob(PolicyBlob.pack(7, valued.spec, plain.weights))


def test_policies_of_older_files_have_no_critic() -> None:
    blob = published("td3_bc")
    spec = {key: value for key, value in blob.spec.items() if key != "critic"}
    assert not Policy.from_blob(PolicyBlob.pack(7, spec, blob.weights)).has_critic

"""IQL: expectiles of known laws, a chain with a known solution, and the order of its updates (section H.2)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.stats import norm

from raydiff.agents.iql import IQL
from raydiff.agents.registry import build_agent
from raydiff.config_learner import IQLConfig, LearnerConfig
from raydiff.types import Batch

QUANTILES = (np.arange(512) + 0.5) / 512


def agent(
    observation: int = 3, action: int = 2, hidden: tuple[int, ...] = (16, 16), updates: int = 1000, **settings: object
) -> IQL:
    options = {key: settings.pop(key) for key in list(settings) if key in IQLConfig.model_fields}
    config = LearnerConfig(algorithm="iql", hidden=hidden, updates=updates, iql=IQLConfig(**options), **settings)
    built = build_agent(config, observation, action, torch.zeros(observation), torch.full((observation,), 0.999), 0)
    assert isinstance(built, IQL)
    return built


def batch(seed: int = 0, size: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, size, 3, generator=generator)
    action = torch.rand(size, 2, generator=generator) * 2 - 1
    ended = (torch.rand(size, generator=generator) < 0.2).float()
    return Batch(states[0], action, torch.randn(size, generator=generator), states[1], ended)


def uniform_expectile(tau: float) -> float:
    return math.sqrt(tau) / (math.sqrt(tau) + math.sqrt(1 - tau))


def bernoulli_expectile(p: float, tau: float) -> float:
    return tau * p / (tau * p + (1 - tau) * (1 - p))


@pytest.mark.parametrize(
    ("law", "tau", "expected"),
    [
        (QUANTILES, 0.7, 0.60436),
        (QUANTILES, 0.9, 0.75),
        (norm.ppf(QUANTILES), 0.7, 0.33712),
        (norm.ppf(QUANTILES), 0.8, 0.54916),
        (norm.ppf(QUANTILES), 0.9, 0.86159),
        ((QUANTILES < 0.25).astype(float), 0.7, bernoulli_expectile(0.25, 0.7)),
        ((QUANTILES < 0.25).astype(float), 0.9, bernoulli_expectile(0.25, 0.9)),
    ],
)
def test_value_regression_finds_the_expectile(law: np.ndarray, tau: float, expected: float) -> None:
    """The law as 512 equally likely quantiles, which moves its expectile by less than 3e-3 (normal) or 1e-5."""
    learner = agent(hidden=(8,), expectile=tau, learning_rate=2e-2)
    state, value = torch.ones(len(law), 3), torch.tensor(law, dtype=torch.float32)
    for step in range(500):
        learner.value_optimizer.learning_rate = 2e-2 * 0.99**step
        learner.update_value(state, value)
    found = learner.value(state[:1]).item()
    assert found == pytest.approx(expected, abs=3e-3)
    if law is QUANTILES:
        assert uniform_expectile(tau) == pytest.approx(expected, abs=1e-5)
        assert found == pytest.approx(expected, abs=3e-4)


STATES, DISCOUNT = 5, 0.9


def chain() -> Batch:
    """Five states in a row. Action +1 moves right for a reward of 0, from the last state it ends with reward 1.
    Action -1 stays for a reward of 0.02. In state 2 the data also holds 0.5, which jumps to the end for 0.4."""
    eye = torch.eye(STATES)
    right = [(s, 1.0, float(s == STATES - 1), min(s + 1, STATES - 1), float(s == STATES - 1)) for s in range(STATES)]
    stay = [(s, -1.0, 0.02, s, 0.0) for s in range(STATES)]
    rows = torch.tensor([*right, *stay, (2, 0.5, 0.4, STATES - 1, 1.0)])
    s, a, r, s2, d = rows.unbind(1)
    return Batch(eye[s.long()], a[:, None], r, eye[s2.long()], d)


def expectile_fixed_point(data: Batch, tau: float) -> torch.Tensor:
    """Value iteration with the expectile over the data's actions in place of the maximum."""
    values = torch.zeros(STATES, dtype=torch.float64)
    state, following = data.observation.argmax(1), data.next_observation.argmax(1)
    for _ in range(300):
        q = data.reward + DISCOUNT * (1 - data.terminal) * values[following]
        for s in range(STATES):
            options, v = q[state == s], q[state == s].mean()
            for _ in range(100):  # the fixed point of the weighted mean is the expectile
                weight = torch.where(options < v, 1 - tau, tau)
                v = (weight * options).sum() / weight.sum()
            values[s] = v
    return values


def test_chain_values_become_optimal_within_the_data() -> None:
    data = chain()
    optimal = torch.tensor([DISCOUNT ** (STATES - 1 - s) for s in range(STATES)], dtype=torch.float64)
    errors = []
    for tau in (0.7, 0.95):
        learner = agent(STATES, 1, (32,), updates=1000, expectile=tau, learning_rate=5e-3, tau=0.1, discount=DISCOUNT)
        for _ in range(1000):
            learner.update(data)
        values = learner.value(torch.eye(STATES)).squeeze(1).detach().double()
        exact = expectile_fixed_point(data, tau)
        torch.testing.assert_close(values, exact, atol=0.02, rtol=0)
        errors.append((exact - optimal).abs().max().item())
    assert errors[1] < errors[0]
    assert (expectile_fixed_point(data, 0.9999) - optimal).abs().max() < 5e-3


def test_order_of_the_updates() -> None:
    """Value first; then the actor's and the critics' losses see the new values; then the target critics."""
    learner, data = agent(), batch()
    twin = agent()
    twin.load_state_dict(learner.state_dict())
    metrics = learner.update(data)

    state_action = torch.cat([data.observation, data.action], 1)
    estimate = twin.critic_target(state_action).squeeze(-1).amin(0).detach()
    old = estimate - twin.value(data.observation).squeeze(-1)
    expected_value_loss = ((0.7 * (old > 0) + 0.3 * (old < 0)) * old**2).mean()
    torch.testing.assert_close(metrics["value_loss"], expected_value_loss.detach())

    new_advantage = estimate - learner.value(data.observation).squeeze(-1)  # its value network has had its step
    mean = torch.tanh(twin.actor(data.observation))
    log_likelihood = torch.distributions.Normal(mean, 1.0).log_prob(data.action).sum(-1)
    weight = (3.0 * new_advantage).exp().clamp(max=100)
    torch.testing.assert_close(metrics["actor_loss"], -(weight * log_likelihood).mean().detach(), rtol=1e-5, atol=1e-6)

    following = learner.value(data.next_observation).squeeze(-1)
    target = data.reward + 0.99 * (1 - data.terminal) * following
    q = twin.critic(state_action).squeeze(-1)
    expected = (q - target).square().mean(1).sum()
    torch.testing.assert_close(metrics["critic_loss"], expected.detach(), rtol=1e-5, atol=1e-6)
    moved = 0.995 * twin.critic_target.flat + 0.005 * learner.critic.flat
    torch.testing.assert_close(learner.critic_target.flat, moved)


def test_advantage_weights_are_clipped() -> None:
    learner, data = agent(), batch()
    small = learner.actor_loss(data.observation, data.action, torch.full((64,), math.log(100) / 3))
    large = learner.actor_loss(data.observation, data.action, torch.full((64,), 50.0))
    torch.testing.assert_close(small, large, rtol=1e-4, atol=0)


def test_actor_learning_rate_follows_the_cosine_to_zero() -> None:
    learner, rates = agent(updates=10), []
    for step in range(11):
        before = learner.actor.flat.detach().clone()
        learner.update(batch(step))
        rates.append(learner.actor_optimizer.learning_rate)
    assert rates[0] == pytest.approx(3e-4)
    assert rates[5] == pytest.approx(1.5e-4)
    assert rates[10] == 0.0
    assert torch.equal(before, learner.actor.flat)


def test_log_std_is_learnt_within_its_bounds() -> None:
    """With exact cloning of one action per state the deviation falls, but no further than its bound."""
    learner = agent(learning_rate=1e-2, log_std_min=-1.0, log_std_max=0.5, beta=0.0)
    data = batch()._replace(action=torch.full((64, 2), 0.3))
    for _ in range(300):
        learner.update(data)
    assert learner.log_std.max() < -0.9
    size = learner.policy_blob(0).weights[-2:]
    np.testing.assert_allclose(size, np.maximum(learner.log_std.detach().numpy(), -1.0))


def test_a_constant_schedule_leaves_the_actors_rate() -> None:
    config = LearnerConfig(
        algorithm="iql", hidden=(8,), updates=4, learning_rate=1e-3, learning_rate_schedule="constant"
    )
    learner = build_agent(config, 3, 2, torch.zeros(3), torch.ones(3), 0)
    assert isinstance(learner, IQL)
    rows = torch.zeros(8, 3)
    for _ in range(3):
        learner.update(Batch(rows, torch.zeros(8, 2), torch.zeros(8), rows, torch.zeros(8)))
    assert learner.actor_optimizer.learning_rate == 1e-3

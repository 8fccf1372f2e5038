"""The critics of staged methods: known expectiles and soft maxima, a chain, and the order of a step (section H.2)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq
from scipy.stats import norm

from raydiff.agents.expectile import expectile_loss
from raydiff.agents.state import load_parts, save_parts
from raydiff.agents.value_critics import ValueCritics
from raydiff.config_learner import LearnerConfig

QUANTILES = (np.arange(512) + 0.5) / 512


def critics(observation: int = 3, action: int = 2, hidden: tuple[int, ...] = (16,), **options: object) -> ValueCritics:
    shared = {key: options.pop(key) for key in list(options) if key in LearnerConfig.model_fields}
    config = LearnerConfig(hidden=hidden, **shared)
    return ValueCritics(config, observation, action, torch.Generator().manual_seed(0), **options)


def rows(seed: int = 0, size: int = 64) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, size, 3, generator=generator)
    action = torch.rand(size, 2, generator=generator) * 2 - 1
    ended = (torch.rand(size, generator=generator) < 0.2).float()
    return states[0], action, torch.randn(size, generator=generator), states[1], ended


def regressed(law: np.ndarray, **options: object) -> float:
    """The value of a constant state whose action values are the entries of ``law``."""
    learner = critics(hidden=(8,), learning_rate=2e-2, **options)
    state, estimate = torch.ones(len(law), 3), torch.tensor(law, dtype=torch.float32)
    for step in range(500):
        learner.value_optimizer.learning_rate = 2e-2 * 0.99**step
        learner.update_value(state, estimate)
    return learner.value(state[:1]).item()


@pytest.mark.parametrize(
    ("law", "tau", "expected", "tolerance"),
    [
        (QUANTILES, 0.7, 0.60436, 3e-4),
        (QUANTILES, 0.9, 0.75, 3e-4),
        (norm.ppf(QUANTILES), 0.7, 0.33712, 3e-3),
        (norm.ppf(QUANTILES), 0.8, 0.54916, 3e-3),
        (norm.ppf(QUANTILES), 0.9, 0.86159, 3e-3),
        ((QUANTILES < 0.25).astype(float), 0.7, 0.7 * 0.25 / (0.7 * 0.25 + 0.3 * 0.75), 3e-4),
        ((QUANTILES < 0.25).astype(float), 0.9, 0.9 * 0.25 / (0.9 * 0.25 + 0.1 * 0.75), 3e-4),
    ],
)
def test_expectiles_of_known_laws(law: np.ndarray, tau: float, expected: float, tolerance: float) -> None:
    """512 equally likely quantiles stand for each law; for the normal one that moves the expectile by up to 3e-3."""
    assert regressed(law, expectile=tau) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("alpha", [0.5, 1.0])
def test_linex_regression_finds_the_soft_maximum(alpha: float) -> None:
    """The exponents of this law stay below the clip, so the optimum is the log of the mean exponential."""
    expected = math.log(np.exp(alpha * QUANTILES).mean()) / alpha
    assert regressed(QUANTILES, loss="linex", linex_alpha=alpha) == pytest.approx(expected, abs=1e-3)


def test_clipped_linex_regression() -> None:
    """Of a far tail each value counts as six times the average at most."""
    law = np.where(QUANTILES > 0.9, 8.0, 0.0)
    expected = brentq(lambda v: np.minimum(np.exp(law - v), 6).mean() - 1, 0, 8)
    unclipped = math.log(np.exp(law).mean())
    found = regressed(law, loss="linex", linex_alpha=1.0)
    assert found == pytest.approx(expected, abs=5e-3)
    assert unclipped - found > 1


STATES, DISCOUNT = 5, 0.9


def chain() -> tuple[torch.Tensor, ...]:
    """Five states in a row. Action +1 moves right for a reward of 0, from the last state it ends with reward 1.
    Action -1 stays for a reward of 0.02. In state 2 the data also holds 0.5, which jumps to the end for 0.4."""
    eye = torch.eye(STATES)
    right = [(s, 1.0, float(s == STATES - 1), min(s + 1, STATES - 1), float(s == STATES - 1)) for s in range(STATES)]
    stay = [(s, -1.0, 0.02, s, 0.0) for s in range(STATES)]
    table = torch.tensor([*right, *stay, (2, 0.5, 0.4, STATES - 1, 1.0)])
    s, a, r, s2, d = table.unbind(1)
    return eye[s.long()], a[:, None], r, eye[s2.long()], d


def expectile_fixed_point(tau: float) -> torch.Tensor:
    """Value iteration with the expectile over the data's actions in place of the maximum, ``[STATES]`` float64."""
    observation, _, reward, following, terminal = chain()
    values = np.zeros(STATES)
    for _ in range(200):
        q = reward.numpy() + DISCOUNT * (1 - terminal.numpy()) * values[following.argmax(1).numpy()]
        for s in range(STATES):
            own = q[observation.argmax(1).numpy() == s]

            def slope(v: float, own: np.ndarray = own) -> float:
                return float((np.where(own < v, 1 - tau, tau) * (own - v)).sum())

            values[s] = brentq(slope, own.min() - 1e-9, own.max() + 1e-9, xtol=1e-12)
    return torch.from_numpy(values)


@pytest.mark.parametrize("tau", [0.7, 0.95])
def test_chain_values(tau: float) -> None:
    """Values reach the fixed point, which for tau to 1 is the optimum within the data; and the advantage is that of
    the exact action values."""
    learner = critics(STATES, 1, (32,), expectile=tau, learning_rate=5e-3, tau=0.1, discount=DISCOUNT)
    data = chain()
    for _ in range(1000):
        learner.update(*data)
    exact = expectile_fixed_point(tau)
    torch.testing.assert_close(learner.value(torch.eye(STATES)).detach().double(), exact, atol=0.02, rtol=0)

    observation, action, reward, following, terminal = data
    q = reward + DISCOUNT * (1 - terminal) * (following.double() @ exact)
    expected = q - observation.double() @ exact
    torch.testing.assert_close(learner.advantage(observation, action).double(), expected, atol=0.04, rtol=0)
    optimum = torch.tensor([DISCOUNT ** (STATES - 1 - s) for s in range(STATES)], dtype=torch.float64)
    assert (expectile_fixed_point(0.9999) - optimum).abs().max() < 5e-3


def test_order_of_a_step() -> None:
    """The value first; the critics' target sees the new value and stops at terminals; then the target critics."""
    learner, twin = critics(), critics()
    observation, action, reward, following, terminal = rows()
    metrics = learner.update(observation, action, reward, following, terminal)

    estimate = twin.target_values(observation, action).amin(0)
    old = estimate - twin.value(observation)
    torch.testing.assert_close(metrics["value_loss"], expectile_loss(old, 0.7).mean().detach())
    target = reward + 0.99 * (1 - terminal) * learner.value(following)
    q = twin.critic(torch.cat([observation, action], 1)).squeeze(-1)
    torch.testing.assert_close(metrics["critic_loss"], (q - target).square().mean(1).sum().detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(learner.critic_target.flat, 0.995 * twin.critic.flat + 0.005 * learner.critic.flat)
    assert not any(value.requires_grad for value in metrics.values())


def test_terminal_rows_learn_the_reward_alone() -> None:
    learner, twin = critics(discount=0.9), critics(discount=0.5)
    observation, action, reward, following, _ = rows()
    ended = torch.ones(len(reward))
    learner.update(observation, action, reward, following, ended)
    twin.update(observation, action, reward, following, ended)
    assert torch.equal(learner.critic.flat, twin.critic.flat)


def test_advantage_takes_the_smaller_target() -> None:
    learner, (observation, action, *_) = critics(), rows()
    learner.critic.load(torch.zeros_like(learner.critic.flat))  # the online critics have no say
    first, second = learner.target_values(observation, action)
    expected = torch.minimum(first, second) - learner.value(observation).detach()
    torch.testing.assert_close(learner.advantage(observation, action), expected)
    assert ((first < second).any(), (first > second).any()) == (True, True)


def test_layer_norm_of_the_value() -> None:
    """Scale and mean of an observation's entries do not matter then; without it they do."""
    observation = torch.randn(16, 3, generator=torch.Generator().manual_seed(1)) * 100
    normed, plain = critics(layer_norm=True), critics()
    torch.testing.assert_close(normed.value(observation), normed.value(3 * observation + 7), rtol=1e-4, atol=1e-5)
    assert (plain.value(observation) - plain.value(3 * observation + 7)).abs().max() > 0.1
    loss = normed.update_value(observation, torch.ones(16))
    assert normed.update_value(observation, torch.ones(16)) < loss


def test_cosine_only_where_asked() -> None:
    asked, published = critics(learning_rate_schedule="cosine"), critics()
    for learner in (asked, published):
        learner.anneal(0.5)
    assert asked.value_optimizer.learning_rate == asked.critic_optimizer.learning_rate == pytest.approx(1.5e-4)
    assert published.value_optimizer.learning_rate == published.critic_optimizer.learning_rate == 3e-4


def test_state_continues_bit_by_bit() -> None:
    whole, other = critics(), critics(loss="expectile", learning_rate=3e-4)
    for step in range(3):
        whole.update(*rows(step))
    other.update(*rows(9))
    assert load_parts(other.parts(), save_parts(whole.parts(), 3)) == 3
    whole.update(*rows(3))
    other.update(*rows(3))
    found = save_parts(other.parts(), 4)
    for key, tensor in save_parts(whole.parts(), 4).items():
        assert torch.equal(tensor, found[key]), key

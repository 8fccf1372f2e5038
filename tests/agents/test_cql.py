"""CQL: its soft maximum against integrals, its entropy, its penalty, and plain formulas (section H.4)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.distributions import Normal, TanhTransform, TransformedDistribution

from raydiff.agents.cql import CQL
from raydiff.agents.networks import MLP, Adam
from raydiff.agents.policy import Policy
from raydiff.agents.registry import build_agent
from raydiff.agents.tanh_policy import TanhGaussianPolicy, mean_and_log_std
from raydiff.config_learner import CQLConfig, LearnerConfig
from raydiff.types import Batch

OBSERVATION = 3
MEAN, STD = torch.full((OBSERVATION,), 0.5), torch.linspace(0.5, 2, OBSERVATION)


def agent(action: int = 2, seed: int = 0, hidden: tuple[int, ...] = (24, 16), **settings: object) -> CQL:
    options = {key: settings.pop(key) for key in list(settings) if key in CQLConfig.model_fields}
    config = LearnerConfig(algorithm="cql", hidden=hidden, cql=CQLConfig(**options), **settings)
    built = build_agent(config, OBSERVATION, action, MEAN, STD, seed)
    assert isinstance(built, CQL)
    return built


def batch(seed: int = 0, size: int = 32, action: int = 2) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, size, OBSERVATION, generator=generator)
    actions = torch.rand(size, action, generator=generator) * 2 - 1
    ended = (torch.rand(size, generator=generator) < 0.2).float()
    return Batch(states[0], actions, torch.randn(size, generator=generator), states[1], ended)


def law(output: Tensor) -> TransformedDistribution:
    mean, log_std = output.chunk(2, -1)
    return TransformedDistribution(Normal(mean, log_std.clamp(-20, 2).exp()), TanhTransform(cache_size=1))


class Table:
    """A value that depends on the action alone, read from a grid: it stands for both critics."""

    def __init__(self, values: list[float]) -> None:
        self.values = torch.tensor(values)

    def __call__(self, action: Tensor) -> Tensor:
        cell = ((action + 1) / 2 * len(self.values)).long().clamp_(max=len(self.values) - 1)
        return self.values[cell]

    def log_integral(self) -> float:
        """``log`` of the integral of ``e^Q`` over the actions from -1 to 1."""
        return float((self.values.exp() * 2 / len(self.values)).sum().log())


TABLES = [[0.0, 3.0, -2.0, 1.0, 4.0, -1.0, 2.5, 0.5], [5.0, -5.0], [0.0]]


@pytest.mark.parametrize("values", TABLES)
def test_the_soft_maximum_is_the_integral_of_a_table(values: list[float]) -> None:
    """``log(1/3K sum e^Q/q)`` over uniform and policy actions tends to ``log int e^Q da``. The tolerance is five standard
    errors of the sample at hand."""
    table, count = Table(values), 20_000
    learner = agent(action=1, samples=count)
    output = torch.tensor([[0.3, -0.5], [-1.0, -0.2]])
    actions, log_density = learner.proposals(output, output.flip(0))
    assert actions.shape == (3 * count, 2, 1)
    assert actions.abs().max() <= 1
    value = table(actions[..., 0])
    difference = learner.differences(value.expand(2, -1, -1), log_density, torch.zeros(2, 2))
    weights = (value - log_density).exp().double()
    error = float((weights.std(0) / weights.mean(0)).max()) / math.sqrt(3 * count)
    assert error < 0.02
    expected = math.log(3 * count) + table.log_integral()
    torch.testing.assert_close(difference, torch.full((2,), expected), atol=5 * error + 1e-4, rtol=0)


def test_the_estimate_improves_with_more_samples() -> None:
    table = Table(TABLES[0])
    spread = []
    for count in (10, 1000):
        learner = agent(action=1, samples=count)
        output = torch.tensor([[0.0, -1.0]]).expand(200, -1)
        actions, log_density = learner.proposals(output, output)
        estimate = (table(actions[..., 0]) - log_density).logsumexp(0) - math.log(3 * count)
        spread.append(float((estimate - table.log_integral()).square().mean().sqrt()))
    assert spread[1] < 0.2 * spread[0]


def test_densities_of_all_three_laws_are_those_of_torch() -> None:
    learner = agent(samples=50)
    generator = torch.Generator().manual_seed(1)
    outputs = torch.randn(2, 7, 4, generator=generator)
    outputs[0, 0, 2:] = 5.0  # beyond the largest log standard deviation, which is 2
    actions, log_density = learner.proposals(outputs[0], outputs[1])
    torch.testing.assert_close(log_density[:50], torch.full((50, 7), -2 * math.log(2)))
    assert actions[:50].abs().max() > 0.95
    for part, output in ((slice(50, 100), outputs[0]), (slice(100, 150), outputs[1])):
        inside = actions[part].abs().amax(-1) < 0.999  # nearer to ±1 the inverse of tanh loses its digits
        expected = law(output).log_prob(actions[part]).sum(-1)
        assert inside.float().mean() > 0.5
        torch.testing.assert_close(log_density[part][inside], expected[inside], atol=2e-3, rtol=1e-3)


def test_the_entropy_settles_at_its_target() -> None:
    """With a fixed value of ``-20 |a|^2`` the policy's entropy goes to ``-A``; where it starts, above or below, decides
    in which direction the weight of entropy moves first."""
    for start, rises in ((-4.0, True), (0.0, False)):
        learner = agent(action=1, hidden=(8,), learning_rate=1e-2)
        learner.critic.head = lambda _, inputs: -20 * inputs[:, -1:].square()  # type: ignore[method-assign]
        with torch.no_grad():
            learner.actor.layers[-1][1][:, 1:] = start
        observation = torch.zeros(256, OBSERVATION)
        first = learner._actor_step(observation, learner.actor(observation))
        assert (float(first["entropy"]) < -1) == rises
        assert (float(learner.log_entropy_weight.detach()) > 0) == rises
        entropies = []
        for step in range(700):
            if step == 500:
                learner.actor_optimizer.learning_rate = learner.entropy_optimizer.learning_rate = 1e-3
            entropies.append(float(learner._actor_step(observation, learner.actor(observation))["entropy"]))
        assert abs(entropies[0] + 1) > 0.3
        assert np.mean(entropies[-100:]) == pytest.approx(-1, abs=0.1)


def test_the_penalty_raises_the_datas_actions_over_others() -> None:
    """Reward says nothing, so what differs between actions is the penalty's doing."""
    gaps = []
    for alpha in (0.0, 5.0):
        learner = agent(action=1, alpha=alpha, learning_rate=3e-3, hidden=(32, 32))
        data = batch(size=64, action=1)
        data = data._replace(action=0.05 * data.action + 0.5, reward=torch.zeros(64), terminal=torch.ones(64))
        for _ in range(150):
            learner.update(data)
        observation = (data.observation - MEAN) / (STD + 1e-3)
        with torch.no_grad():
            inside, outside = (
                learner.critic(torch.cat([observation, torch.full((64, 1), a)], 1)).mean() for a in (0.5, -0.5)
            )
        gaps.append(float(inside - outside))
    assert abs(gaps[0]) < 0.05
    assert gaps[1] > 1


def test_the_multiplier_holds_the_difference_at_the_gap() -> None:
    learner = agent(lagrange=True, gap=2.0, alpha=3.0)
    above, below = torch.tensor([5.0, 4.0]), torch.tensor([1.0, 0.0])
    weight = 3.0 * math.e  # the multiplier starts at e
    torch.testing.assert_close(learner.penalty(above), torch.tensor(weight * (3 + 2)))
    torch.testing.assert_close(learner.penalty(below), torch.tensor(weight * (-1 - 2)))
    for difference, rises in ((above, True), (below, False)):
        fresh = agent(lagrange=True, gap=2.0, alpha=3.0)
        fresh.multiplier_optimizer.minimize(-0.5 * fresh.penalty(difference))
        assert (float(fresh.log_multiplier.detach()) > 1) == rises
    with torch.no_grad():
        learner.log_multiplier.fill_(100.0)
    torch.testing.assert_close(learner.penalty(above), torch.tensor(1e6 * 3.0 * 5))
    plain = agent(alpha=3.0)
    torch.testing.assert_close(plain.penalty(above), torch.tensor(27.0))
    before = plain.log_multiplier.clone()
    plain.update(batch())
    assert torch.equal(plain.log_multiplier, before)


@pytest.mark.parametrize(("gap", "rises"), [(10.0, False), (-20.0, True)])
def test_the_multiplier_follows_the_difference_in_training(gap: float, rises: bool) -> None:
    learner = agent(action=1, lagrange=True, gap=gap, alpha=1.0, learning_rate=1e-2, samples=200)
    data = batch(size=64, action=1)
    first = float(learner.update(data)["difference"])
    assert first == pytest.approx(math.log(600 * 2), abs=0.1)  # critics near 0: log(3K) and log of the integral of 1
    for _ in range(20):
        learner.update(data)
    assert float(learner.log_multiplier.detach()) == pytest.approx(1.21 if rises else 0.79, abs=0.02)


def test_differences_are_clamped_state_by_state() -> None:
    values, density, data_value = torch.zeros(2, 6, 2), torch.zeros(6, 2), torch.tensor([[0.0, 9.0], [1.0, -9.0]])
    free, bounded = (agent(difference_min=bound).differences(values, density, data_value) for bound in (None, -2.0))
    soft = math.log(6)
    torch.testing.assert_close(free, torch.tensor([soft - 4.5, soft + 4.0]))
    torch.testing.assert_close(bounded, torch.tensor([(soft - 2) / 2, soft + 4.0]))


def test_temperature_of_the_soft_maximum() -> None:
    values = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    learner, cold = agent(temperature=2.5), agent(temperature=1e-3)
    zero = torch.zeros(2, 4)
    expected = 2.5 * ((values - 0.3) / 2.5).exp().sum(1).log().mean(1)
    torch.testing.assert_close(learner.differences(values, torch.full((6, 4), 0.3), zero), expected)
    torch.testing.assert_close(
        cold.differences(values, torch.zeros(6, 4), zero), values.amax(1).mean(1), atol=1e-2, rtol=0
    )


@pytest.mark.parametrize("best_of", [False, True])
def test_target_is_the_smaller_target_critic_without_entropy(best_of: bool) -> None:
    learner, data = agent(max_target_backup=best_of, samples=5), batch()
    learner.critic_target.load(torch.randn(learner.critic.flat.shape, generator=torch.Generator().manual_seed(1)))
    observation = (data.next_observation - MEAN) / (STD + 1e-3)
    output = torch.randn(32, 4, generator=torch.Generator().manual_seed(2))
    noise = torch.Generator()
    noise.set_state(learner.state_dict()["noise"])
    mean, log_std = output.chunk(2, -1)
    action = (mean + log_std.clamp(-20, 2).exp() * torch.randn(5 if best_of else 1, 32, 2, generator=noise)).tanh()
    with torch.no_grad():
        each = torch.stack([learner.critic_target(torch.cat([observation, a], 1))[..., 0].amin(0) for a in action])
    expected = data.reward + 0.99 * (1 - data.terminal) * each.amax(0)
    found = learner.target_value(data.reward, observation, data.terminal, output)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)
    ended = data.terminal > 0
    assert ended.any()
    assert torch.equal(found[ended], data.reward[ended])


def test_one_update_equals_a_plain_one() -> None:
    """Every loss once more, with ``torch.distributions`` and ``torch.optim``, from the same noise."""
    rates = {"learning_rate": 1e-3, "actor_learning_rate": 1e-4}
    learner, data, size = agent(lagrange=True, gap=1.0, alpha=2.0, samples=3, **rates), batch(), 32
    for step in range(3):
        learner.update(batch(10 + step))
    for name in ("actor", "critic", "entropy", "multiplier"):  # of fresh moments, as the reference's
        optimizer = getattr(learner, f"{name}_optimizer")
        setattr(learner, f"{name}_optimizer", Adam(optimizer.parameters, optimizer.learning_rate))
    noise = torch.Generator()
    noise.set_state(learner.state_dict()["noise"])
    actor, critic, target = learner.actor.copy(), learner.critic.copy(), learner.critic_target.copy()
    log_weight, log_multiplier = (
        t.detach().clone().requires_grad_() for t in (learner.log_entropy_weight, learner.log_multiplier)
    )
    s, s2 = ((part - MEAN) / (STD + 1e-3) for part in (data.observation, data.next_observation))

    def act(states: Tensor, count: int) -> tuple[Tensor, Tensor]:
        mean, log_std = actor(states).chunk(2, -1)
        before = mean + log_std.exp() * torch.randn(count, size, 2, generator=noise)
        gaussian = Normal(mean, log_std.exp()).log_prob(before)
        return before.tanh(), (gaussian - (1 - before.tanh() ** 2).log()).sum(-1)

    def q(network: MLP, states: Tensor, actions: Tensor) -> Tensor:
        return torch.stack([network(torch.cat([states, a], 1))[..., 0] for a in actions], 1)  # [2, K, B]

    with torch.no_grad():
        y = data.reward + 0.99 * (1 - data.terminal) * q(target, s2, act(s2, 1)[0])[:, 0].amin(0)
        uniform = torch.empty(3, size, 2).uniform_(-1, 1, generator=noise)
        (now, log_now), (then, log_then) = act(s, 3), act(s2, 3)
    own, log_pi = act(s, 1)
    entropy_loss = -(log_weight * (log_pi - 2).detach()).mean()
    actor_loss = (log_weight.detach().exp() * log_pi[0] - q(critic, s, own)[:, 0].amin(0)).mean()
    data_q = q(critic, s, data.action[None])[:, 0]
    weighted = [q(critic, s, uniform) + 2 * math.log(2), q(critic, s, now) - log_now, q(critic, s, then) - log_then]
    difference = (torch.cat(weighted, 1).exp().sum(1).log() - data_q).mean(1)
    penalty = 2.0 * (difference - 1.0).sum()
    critic_loss = ((data_q - y) ** 2).mean(1).sum() + log_multiplier.detach().exp() * penalty
    multiplier_loss = -0.5 * log_multiplier.exp() * penalty.detach()
    losses = [(actor_loss, actor.flat, 1e-4), (entropy_loss, log_weight, 1e-4), (critic_loss, critic.flat, 1e-3)]
    for loss, parameter, rate in [*losses, (multiplier_loss, log_multiplier, 1e-3)]:
        (parameter.grad,) = torch.autograd.grad(loss, parameter)
        torch.optim.Adam([parameter], lr=rate).step()

    before = learner.actor.flat.detach().clone()
    metrics = learner.update(data)
    assert (learner.actor.flat - before).abs().max() > 5e-5
    torch.testing.assert_close(metrics["actor_loss"], actor_loss.detach(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(metrics["difference"], difference.detach().mean(), atol=1e-4, rtol=1e-4)
    for found, expected, rate in (
        (learner.actor.flat, actor.flat, 1e-4),
        (learner.critic.flat, critic.flat, 1e-3),
        (learner.log_entropy_weight, log_weight, 1e-4),
        (learner.log_multiplier, log_multiplier, 1e-3),
    ):
        assert (
            found - expected
        ).abs().mean() < 0.01 * rate  # Adam's first step: the sign of a gradient near 0 may differ
    expected_target = target.flat.lerp(critic.flat, 0.005)
    torch.testing.assert_close(learner.critic_target.flat, expected_target, atol=2e-5, rtol=0)


def test_starting_weights_are_the_published_ones() -> None:
    learner = agent(hidden=(64, 64))
    data = torch.randn(500, OBSERVATION, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mean, log_std = mean_and_log_std(learner.actor(data))
    assert mean.abs().max() < 0.05
    assert (log_std + 1).abs().max() < 0.05
    for index, (weight, bias) in enumerate(learner.critic.layers):
        assert not bias.any()
        gain = 1e-2 if index == 2 else math.sqrt(2)
        for head in weight:
            short = head if head.shape[0] <= head.shape[1] else head.T
            torch.testing.assert_close(short @ short.T, gain**2 * torch.eye(len(short)), atol=1e-5, rtol=0)
        assert not torch.equal(*weight)


def test_its_policy_is_published_whole() -> None:
    learner, data = agent(), batch(size=400)
    for step in range(30):
        learner.update(batch(step))
    learner.publish_critic = True
    blob = learner.policy_blob(5)
    policy = Policy.from_blob(blob)
    assert isinstance(policy, TanhGaussianPolicy)
    assert not policy.deterministic
    with torch.no_grad():
        output = learner.actor((data.observation - MEAN) / (STD + 1e-3))
    np.testing.assert_allclose(policy.act(data.observation), output[:, :2].tanh(), atol=1e-6)
    draws = np.stack([policy.act(data.observation, False, torch.Generator().manual_seed(seed)) for seed in range(200)])
    assert np.abs(draws).max() <= 1
    mean, variance = policy.distribution(data.observation)
    assert variance is not None
    np.testing.assert_allclose(draws.mean((0, 1)), mean.mean(0), atol=0.01)
    np.testing.assert_allclose(draws.var(0).mean(0), variance.mean(0), rtol=0.03)
    assert policy.distribution(data.observation.view(4, 100, -1))[0].shape == (4, 100, 2)
    assert policy.value(data.observation, data.action).shape == (400,)
    np.testing.assert_array_equal(policy.to_blob(5).weights, blob.weights)
    with pytest.raises(ValueError, match="weights"):
        Policy.from_blob(type(blob).pack(5, blob.spec, blob.weights[1:]))


def test_state_goes_on_bit_by_bit() -> None:
    whole, first = agent(lagrange=True), agent(lagrange=True)
    for step in range(4):
        whole.update(batch(step))
        first.update(batch(step))
    second = agent(seed=9, lagrange=True)
    second.load_state_dict(first.state_dict())
    for step in range(4, 8):
        whole.update(batch(step))
        second.update(batch(step))
    expected, found = whole.state_dict(), second.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)

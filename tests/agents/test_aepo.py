"""AEPO as a learner: its stages, what each trains, its three kinds of critics, and the policy that it publishes."""

from __future__ import annotations

import math

import pytest
import torch
from pydantic import ValidationError
from safetensors.torch import load, save
from torch import Tensor

from raydiff.agents.action_guidance import closed_form_guide, energy_guide
from raydiff.agents.aepo import AEPO
from raydiff.agents.aepo_critics import ConservativeCritics, InSupportCritics
from raydiff.agents.closed_form import CriticMean
from raydiff.agents.diffusion_policy import DiffusionPolicy
from raydiff.agents.policy import Policy
from raydiff.agents.registry import build_agent
from raydiff.agents.value_critics import ValueCritics
from raydiff.config_learner import AEPOConfig, LearnerConfig
from raydiff.replay.table import Table
from raydiff.types import Batch, Transitions

OBSERVATION, ACTION, SIZE = 3, 2, 32
KINDS = [("iql", "network"), ("cql", "network"), ("isql", "network"), ("iql", "direct")]


def agent(updates: int = 12, seed: int = 0, **options: object) -> AEPO:
    small = {
        "width": 16,
        "blocks": 2,
        "energy_hidden": (16, 16),
        "steps": 4,
        "support_actions": 3,
        "penalty_actions": 3,
    }
    config = LearnerConfig(
        algorithm="aepo", hidden=(16,), updates=updates, batch_size=SIZE, aepo=AEPOConfig(**(small | options))
    )
    built = build_agent(config, OBSERVATION, ACTION, torch.ones(OBSERVATION), torch.full((OBSERVATION,), 2.0), seed)
    assert isinstance(built, AEPO)
    return built


def batch(seed: int = 0, size: int = SIZE) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, size, OBSERVATION, generator=generator)
    action = torch.rand(size, ACTION, generator=generator) * 2 - 1
    ended = (torch.rand(size, generator=generator) < 0.2).float()
    return Batch(states[0], action, torch.randn(size, generator=generator), states[1], ended)


def table(seed: int = 0) -> Table:
    rows = batch(seed, 20)
    names = ("observation", "action", "reward", "next_observation", "terminal")
    return Table.from_transitions(Transitions(**{name: getattr(rows, name).numpy() for name in names}))


@pytest.mark.parametrize("energy", ["network", "direct"])
@pytest.mark.parametrize("updates", [1, 2, 3, 12, 640, 10_000, 1_000_000])
def test_stages_add_up(updates: int, energy: str) -> None:
    learner = agent(updates, energy=energy)
    stages = learner.stages()
    assert sum(stage.updates for stage in stages) == updates
    assert all(stage.updates > 0 for stage in stages)
    names = [stage.name for stage in stages]
    assert names == [name for name in ("behaviour", "critic", "posterior", "energy") if name in names]
    if updates >= 12:
        assert ("energy" in names) == (energy == "network")
    counted = next(stage.updates for stage in stages if stage.name == "posterior")
    assert counted == min(16_384 // SIZE, max(1, updates // 100)), "of 2^14 actions where there is time"


def test_shares_that_leave_nothing_are_refused() -> None:
    with pytest.raises(ValidationError, match="leave no updates"):
        AEPOConfig(behaviour_share=0.5, critic_share=0.5)


def test_unknown_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="behaviour, critic, posterior, energy; diffusion was begun"):
        agent().begin_stage("diffusion", None)


@pytest.mark.parametrize(("critic", "energy"), KINDS)
def test_each_stage_trains_its_own_networks(critic: str, energy: str) -> None:
    learner, moved = agent(critic=critic, energy=energy), {}
    parts = {
        "behaviour": {"behaviour"},
        "critic": {"critic", "critic_target", "value"},
        "posterior": {"posterior_sums", "posterior_count"},
        "energy": {"energy"},
    }
    watched = set().union(*parts.values())
    step = 0
    for stage in learner.stages():
        learner.begin_stage(stage.name, table())
        before = learner.state_dict()
        for _ in range(stage.updates):
            metrics = learner.update(batch(step))
            assert all(torch.isfinite(value) and not value.requires_grad for value in metrics.values())
            step += 1
        after = learner.state_dict()
        moved[stage.name] = {name for name in watched if not torch.equal(before[name], after[name])}
    assert moved == {name: names for name, names in parts.items() if name in moved}
    assert list(moved) == [stage.name for stage in learner.stages()]


@pytest.mark.parametrize(("critic", "energy"), KINDS)
@pytest.mark.parametrize("stop", [2, 5, 7, 9])
def test_a_round_trip_continues_bit_by_bit(critic: str, energy: str, stop: int) -> None:
    """Stopped within each stage; a stage is begun again where it goes on."""

    def train(learner: AEPO, first: int, last: int) -> AEPO:
        entered = None
        for step in range(first, last):
            name = learner._position()[0]
            if name != entered:
                learner.begin_stage(name, table())
                entered = name
            learner.update(batch(step))
        return learner

    options = {"critic": critic, "energy": energy}
    whole = train(agent(**options), 0, 12)
    saved = save(train(agent(**options), 0, stop).state_dict())
    second = agent(seed=99, **options)
    second.load_state_dict(load(saved))
    train(second, stop, 12)
    expected, found = whole.state_dict(), second.state_dict()
    assert expected.keys() == found.keys()
    assert all(torch.equal(tensor, found[name]) for name, tensor in expected.items())
    assert whole.policy_blob(12).checksum == second.policy_blob(12).checksum


@pytest.mark.parametrize(("critic", "energy"), KINDS)
def test_a_published_policy_acts_as_the_learner_would(critic: str, energy: str) -> None:
    learner = agent(critic=critic, energy=energy, rescale=False, guidance_scale=2.0, clip_denoised=True)
    for step in range(12):
        learner.update(batch(step))
    with torch.no_grad():
        learner.energy.flat += 0.1 * torch.randn(learner.energy.flat.shape, generator=torch.Generator().manual_seed(0))
    blob = learner.policy_blob(12)
    policy = Policy.from_blob(blob)
    assert isinstance(policy, DiffusionPolicy)
    assert policy.has_critic == (energy == "direct")
    observation = batch(7).observation
    acted = torch.from_numpy(policy.act(observation, deterministic=False, generator=torch.Generator().manual_seed(3)))

    state, options = (observation - learner._mean) / learner._std, learner.options

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return learner.behaviour(x, t, state)

    if energy == "network":
        guided = energy_guide(predict, lambda x, t: learner.energy(x, t, state), learner.vp, 2.0)
    else:
        posterior = learner.table.posterior(options.posterior)
        slope = CriticMean(learner.critics.critic_target, state).slope
        guided = closed_form_guide(
            predict, slope, posterior.variance, learner.vp, options.beta, 2.0, mean=posterior.mean
        )
    noise = torch.randn(SIZE, ACTION, generator=torch.Generator().manual_seed(3))
    expected = plain_dpm_solver(guided, noise, learner, 4)
    torch.testing.assert_close(acted, expected, atol=1e-5, rtol=1e-5)
    unguided = plain_dpm_solver(predict, noise, learner, 4)
    assert (acted - unguided).abs().max() > 1e-2

    again = Policy.from_blob(policy.to_blob(12))
    assert (again.act(observation) == Policy.from_blob(blob).act(observation)).all()
    assert policy.to_blob(12).checksum == blob.checksum


def plain_dpm_solver(predict: object, x: Tensor, learner: AEPO, steps: int) -> Tensor:
    """Multistep DPM-Solver++ of second order, one statement per line of its algorithm, denoised values within +-1."""
    times = learner.vp.grid(steps)[:-1]
    levels = list(zip(*(level.tolist() for level in learner.vp.levels(times)), strict=True))
    previous, last_h = None, 0.0
    for index, (alpha, sigma) in enumerate(levels):
        t = torch.full((len(x),), float(times[index]))
        with torch.no_grad():
            denoised = ((x - sigma * predict(x, t)) / alpha).clamp(-1, 1)  # type: ignore[operator]
        if index == steps - 1:
            return denoised
        next_alpha, next_sigma = levels[index + 1]
        h = math.log(next_alpha / next_sigma) - math.log(alpha / sigma)
        value = denoised if previous is None else denoised + h / (2 * last_h) * (denoised - previous)
        x = next_sigma / sigma * x - next_alpha * (math.exp(-h) - 1) * value
        previous, last_h = denoised, h
    raise AssertionError


def test_a_policy_without_guidance_is_the_behaviour() -> None:
    """Also with an energy that has learnt: the scale alone decides."""
    learner = agent(guidance_scale=0.0)
    for step in range(12):
        learner.update(batch(step))
    observation = batch(7).observation
    free = Policy.from_blob(learner.policy_blob(0)).act(observation)
    with torch.no_grad():
        learner.energy.flat += 1.0
    assert (Policy.from_blob(learner.policy_blob(0)).act(observation) == free).all()


def test_critics_are_published_on_request() -> None:
    learner = agent()
    learner.publish_critic = True
    policy = Policy.from_blob(learner.policy_blob(0))
    data = batch()
    state = (data.observation - learner._mean) / learner._std
    expected = learner.critics.target_values(state, data.action).mean(0)
    torch.testing.assert_close(policy.value(data.observation, data.action), expected)


def test_the_energy_target_is_the_closed_form_less_its_baseline() -> None:
    """Against automatic differentiation of the mean of the target critics, at actions held within +-1."""
    learner = agent(beta=2.0, posterior="posterior_2")
    for step in range(10):
        learner.update(batch(step))
    data = batch(5)
    state = (data.observation - learner._mean) / learner._std
    t = torch.linspace(1e-3, 1.0, SIZE)
    x = 2 * torch.randn(SIZE, ACTION, generator=torch.Generator().manual_seed(0))
    alpha, sigma = (level[:, None] for level in learner.vp.levels(t))
    clipped = ((x - sigma * learner.behaviour(x, t, state)) / alpha).detach().clamp(-1, 1).requires_grad_()
    assert ((clipped == 1) | (clipped == -1)).any()
    value = learner.critics.critic_target(torch.cat([state, clipped], -1)).squeeze(-1).mean(0)
    slope = torch.autograd.grad(value.sum(), clipped)[0]
    h = learner.table.posterior("posterior_2").variance(t)
    expected = 2 * value + 2 * h * slope.square().sum(-1) - 2 * learner.critics.value(state)
    torch.testing.assert_close(learner.energy_target(x, t, state), expected.detach(), atol=1e-5, rtol=1e-4)


def test_critics_are_those_that_were_asked_for() -> None:
    kinds = {kind: type(agent(critic=kind).critics) for kind in ("iql", "cql", "isql")}
    assert kinds == {"iql": ValueCritics, "cql": ConservativeCritics, "isql": InSupportCritics}
    assert agent(expectile=0.8).critics.expectile == 0.8


def test_conservative_critics_lower_what_the_data_do_not_have() -> None:
    """Data: the action 0.5 alone. Without the penalty values elsewhere are what the network makes of them."""
    data = batch()._replace(action=torch.full((SIZE, ACTION), 0.5), terminal=torch.ones(SIZE), reward=torch.ones(SIZE))
    gaps = []
    for penalty in (0.0, 10.0):
        learner = agent(critic="cql", penalty=penalty)
        for _ in range(300):
            learner.critics.update(data.observation, data.action, data.reward, data.next_observation, data.terminal)
        inside = learner.critics.target_values(data.observation, data.action).mean()
        outside = learner.critics.target_values(data.observation, -data.action).mean()
        gaps.append(float(inside - outside))
    assert gaps[1] > gaps[0] + 0.1


def test_the_penalty_is_a_soft_maximum_less_the_datas_value() -> None:
    critics = agent(critic="cql").critics
    assert isinstance(critics, ConservativeCritics)
    values, data_value = torch.randn(2, 6, 5), torch.randn(2, 5)
    expected = sum((values[j, :, b].exp().sum().log() - data_value[j, b]) / 5 for j in range(2) for b in range(5))
    torch.testing.assert_close(critics.penalty(values, data_value), torch.as_tensor(expected))
    action = batch().action
    proposed = critics.proposals(action)
    assert proposed.shape == (6, SIZE, ACTION)
    assert proposed[:3].abs().max() <= 1
    for shuffled in proposed[3:]:
        assert torch.equal(shuffled.sort(0).values, action.sort(0).values)
        assert not torch.equal(shuffled, action)


def test_support_actions_are_drawn_once_for_the_table_and_anew_for_others() -> None:
    learner, stored = agent(critic="isql"), table()
    critics = learner.critics
    assert isinstance(critics, InSupportCritics)
    learner.begin_stage("critic", stored)
    real = (stored.split(stored.records).next_observation - learner._mean) / learner._std
    noise = learner._noise.get_state()
    first = critics._support(real)
    assert first.shape == (20, 3, ACTION)
    assert torch.equal(critics._support(real), first)
    assert torch.equal(learner._noise.get_state(), noise)
    mixed = torch.cat([real[:4], real[4:8] + 1])
    assert torch.equal(critics._support(mixed)[:4], first[:4])
    assert not torch.equal(learner._noise.get_state(), noise)


def test_in_support_targets_average_by_softmax() -> None:
    learner, data = agent(critic="isql", support_beta=2.0), batch()
    critics = learner.critics
    assert isinstance(critics, InSupportCritics)
    critics.store(data.next_observation, 0)
    actions, before = critics._support(data.next_observation), learner.state_dict()
    q = torch.stack([critics.target_values(data.next_observation, actions[:, k]).amin(0) for k in range(3)], 1)
    target = data.reward + 0.99 * (1 - data.terminal) * ((2 * q).exp() * q).sum(1) / (2 * q).exp().sum(1)
    metrics = critics.update(data.observation, data.action, data.reward, data.next_observation, data.terminal)
    twin = agent(critic="isql").critics
    twin.critic.load(before["critic"])
    value = twin.critic(torch.cat([data.observation, data.action], -1)).squeeze(-1)
    torch.testing.assert_close(metrics["critic_loss"], (value - target).square().mean(1).sum().detach())


def test_a_cosine_falls_to_zero_over_each_stage() -> None:
    config = LearnerConfig(algorithm="aepo", hidden=(8,), updates=100, batch_size=8, learning_rate_schedule="cosine")
    learner = AEPO(config, OBSERVATION, ACTION, torch.zeros(OBSERVATION), torch.ones(OBSERVATION), 0)
    data, rates = batch(size=8), {"behaviour": [], "critic": [], "energy": []}
    for _ in range(100):
        stage = learner._position()[0]
        learner.update(data)
        optimizer = {"behaviour": learner.behaviour_optimizer, "energy": learner.energy_optimizer}
        if stage in rates:
            rates[stage].append(optimizer.get(stage, learner.critics.critic_optimizer).learning_rate)
    assert [values[0] for values in rates.values()] == [1e-4, 3e-4, 3e-4]
    assert all(values == sorted(values, reverse=True) and values[-1] < 0.02 * values[0] for values in rates.values())

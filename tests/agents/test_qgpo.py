"""QGPO: its updates against a plain reference, its stages and support actions, its policy (section G)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from raydiff.agents.policy import Policy
from raydiff.agents.qgpo import QGPO
from raydiff.agents.registry import build_agent
from raydiff.config_learner import LearnerConfig, QGPOConfig
from raydiff.diffusion.vp import add_noise
from raydiff.replay.table import Table
from raydiff.types import Batch, Transitions

SIZES = {"width": 16, "blocks": 1, "energy_hidden": (16, 16), "support_actions": 4, "support_steps": 8, "steps": 8}


def agent(seed: int = 0, updates: int = 160, **settings: Any) -> QGPO:
    options = (
        SIZES
        | {"behaviour_learning_rate": 1e-2}
        | {key: settings.pop(key) for key in list(settings) if key in QGPOConfig.model_fields}
    )
    config = LearnerConfig(algorithm="qgpo", hidden=(16,), updates=updates, qgpo=QGPOConfig(**options), **settings)
    built = build_agent(config, 3, 2, np.full(3, 1.0), np.full(3, 2.0), seed)
    assert isinstance(built, QGPO)
    return built


def table(seed: int = 0, rows: int = 40) -> Table:
    """Random transitions in pairs: the second of a pair begins where the first ends."""
    random = np.random.default_rng(seed)
    states = random.normal(1.0, 2.0, (rows // 2, 3, 3))
    return Table.from_transitions(
        Transitions(
            observation=states[:, :2].reshape(-1, 3),
            action=random.uniform(-1, 1, (rows, 2)),
            reward=random.normal(size=rows),
            next_observation=states[:, 1:].reshape(-1, 3),
            terminal=(random.random(rows) < 0.2).astype(float),
        )
    )


def everything(data: Table) -> Batch:
    return data.split(data.records)


def critic_stage(learner: QGPO, data: Table | None) -> QGPO:
    """The learner past its behaviour stage."""
    learner.begin_stage("behaviour", data)
    while learner.updates < learner.stages()[0].updates:
        learner.update(everything(table()))
    learner.begin_stage("critic", data)
    return learner


# ------------------------------------------------------------------------------------------------ updates


def plain_adam(parameters: list[Tensor], loss: Tensor, rate: float = 3e-4) -> None:
    optimizer = torch.optim.Adam(parameters, rate)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def test_the_first_stage_trains_the_noise_of_the_behaviour_alone() -> None:
    learner, twin, data = agent(), agent(), everything(table())
    metrics = learner.update(data)
    noised = add_noise(data.action, twin.vp, twin._noise)
    assert 1e-3 <= noised.t.min() < noised.t.max() <= 1
    predicted = twin.behaviour(noised.x, noised.t, (data.observation - 1.0) / 2.001)
    loss = (predicted - noised.noise).square().sum(1).mean()
    plain_adam([twin.behaviour.flat], loss, 1e-2)
    assert metrics.keys() == {"behaviour_loss"}
    torch.testing.assert_close(metrics["behaviour_loss"], loss.detach())
    torch.testing.assert_close(learner.behaviour.flat, twin.behaviour.flat, rtol=1e-4, atol=1e-6)
    for part in ("critic", "critic_target", "energy"):
        assert torch.equal(learner.state_dict()[part], agent().state_dict()[part]), part


def test_the_second_stage_equals_a_plain_reference() -> None:
    """The critics first; then the energies, with labels of the target critics that have just moved."""
    data = table()
    learner, twin = critic_stage(agent(tau=0.5), data), critic_stage(agent(tau=0.5), data)
    batch = everything(data)
    metrics = learner.update(batch)
    observation, following = (batch.observation - 1.0) / 2.001, (batch.next_observation - 1.0) / 2.001

    def values(critic: Any, states: Tensor, actions: Tensor) -> Tensor:
        columns = [critic(torch.cat([states, actions[:, k]], 1)).squeeze(-1).amin(0) for k in range(4)]
        return torch.stack(columns, 1).detach()

    q = values(twin.critic_target, following, twin.support(batch.next_observation))
    target = batch.reward + 0.99 * (1 - batch.terminal) * (q.softmax(1) * q).sum(1)
    first, second = twin.critic(torch.cat([observation, batch.action], 1)).squeeze(-1)
    loss = ((first - target).square().mean() + (second - target).square().mean()) / 2
    before = twin.critic.flat.detach().clone()
    plain_adam([twin.critic.flat], loss)
    torch.testing.assert_close(metrics["critic_loss"], loss.detach())
    torch.testing.assert_close(learner.critic.flat, twin.critic.flat, rtol=1e-4, atol=1e-6)
    twin.critic_target.load(0.5 * before + 0.5 * twin.critic.flat)
    torch.testing.assert_close(learner.critic_target.flat, twin.critic_target.flat, rtol=1e-4, atol=1e-6)

    action = twin.support(batch.observation)
    label = (3.0 * values(twin.critic_target, observation, action)).softmax(1)
    noised = add_noise(action, twin.vp, twin._noise)
    assert noised.t.shape == (40,)  # one time for all actions of a state
    energy = torch.stack([twin.energy(noised.x[:, k], noised.t, observation) for k in range(4)], 1)
    loss = -(label * energy.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(metrics["energy_loss"], loss.detach())
    torch.testing.assert_close(metrics["label_entropy"], -(label * label.log()).sum(1).mean())
    plain_adam([twin.energy.flat], loss)
    weights, constant = learner.energy.flat.split([len(learner.energy.flat) - 1, 1])  # no loss depends on the constant
    torch.testing.assert_close(weights, twin.energy.flat[:-1], rtol=1e-4, atol=1e-6)
    assert constant.abs() <= 1e-3


def test_critics_rest_after_their_share_and_the_behaviour_after_its_stage() -> None:
    learner = agent(updates=16, behaviour_share=0.25, critic_share=0.5)
    data, moved = table(), []
    for step in range(16):
        if step in (0, 4):
            learner.begin_stage(learner.stages()[step // 4].name, data)
        before = learner.state_dict()
        learner.update(everything(data))
        after = learner.state_dict()
        moved.append([not torch.equal(before[k], after[k]) for k in ("behaviour", "critic", "energy")])
    assert [row[0] for row in moved] == [True] * 4 + [False] * 12
    assert [row[1] for row in moved] == [False] * 4 + [True] * 6 + [False] * 6
    assert [row[2] for row in moved] == [False] * 4 + [True] * 12
    assert after["critic_optimizer.0.step"] == 6


@pytest.mark.parametrize(
    ("updates", "share", "expected"), [(1600, 0.375, (600, 1000)), (3, 0.5, (2, 1)), (1, 0.4, (0, 1))]
)
def test_stages_add_up(updates: int, share: float, expected: tuple[int, int]) -> None:
    stages = agent(updates=updates, behaviour_share=share).stages()
    assert [stage.name for stage in stages] == ["behaviour", "critic"]
    assert tuple(stage.updates for stage in stages) == expected


def test_other_stages_are_refused() -> None:
    with pytest.raises(ValueError, match="two stages, behaviour and critic; train"):
        agent().begin_stage("train", table())


def test_a_cosine_runs_over_the_updates_of_each_network() -> None:
    learner = agent(updates=16, behaviour_share=0.5, critic_share=0.5, learning_rate_schedule="cosine")
    rates = []
    for _ in range(16):
        learner.update(everything(table(rows=8)))
        optimizers = (learner.behaviour_optimizer, learner.critic_optimizer, learner.energy_optimizer)
        rates.append([optimizer.learning_rate for optimizer in optimizers])
    assert rates[0] == pytest.approx([1e-2, 3e-4, 3e-4])
    assert rates[4] == pytest.approx([0.5e-2, 3e-4, 3e-4])
    assert rates[10][1:] == pytest.approx([1.5e-4, 3e-4 * (1 + np.cos(np.pi / 4)) / 2])
    assert rates[12][2] == pytest.approx(1.5e-4)


# ------------------------------------------------------------------------------------------------ support


def test_support_actions_of_a_table_are_drawn_once() -> None:
    learner, data = critic_stage(agent(), table()), everything(table())
    first, noise = learner.support(data.observation), learner._noise.get_state()
    assert first.shape == (40, 4, 2)
    assert first.abs().max() <= 1
    assert torch.equal(first[7:9], learner.support(data.observation[7:9]))
    assert torch.equal(learner.support(data.next_observation[::2]), learner.support(data.observation[1::2]))
    assert torch.equal(noise, learner._noise.get_state())
    assert first.std(1).mean() > 0.1  # the actions of a state differ
    assert first.std(0).mean() > 0.1  # and so do those of states


def test_rows_that_no_table_holds_get_new_actions() -> None:
    learner, data = critic_stage(agent(), table()), everything(table())
    stored, foreign = learner.support(data.observation), everything(table(seed=1)).observation
    mixed = torch.stack([data.observation, foreign], 1).flatten(0, 1)
    first, second = learner.support(mixed), learner.support(mixed)
    assert torch.equal(first[::2], stored)
    assert torch.equal(second[::2], stored)
    assert (first[1::2] - second[1::2]).abs().mean() > 0.1
    without = critic_stage(agent(), None)
    assert (without.support(data.observation) - without.support(data.observation)).abs().mean() > 0.1
    metrics = without.update(data)
    assert all(torch.isfinite(metric) for metric in metrics.values())


def test_support_comes_from_the_unguided_behaviour() -> None:
    learner = critic_stage(agent(support_actions=64), table())
    states = torch.zeros(3, 3)
    before = learner.sample_behaviour(states, torch.Generator().manual_seed(1))
    learner.energy.load(torch.randn(learner.energy.flat.shape, generator=torch.Generator().manual_seed(2)))
    assert torch.equal(before, learner.sample_behaviour(states, torch.Generator().manual_seed(1)))


def test_support_is_drawn_as_it_is_needed_and_does_not_depend_on_when() -> None:
    """No work when the stage begins; and the same bits whichever batches come first."""
    data = everything(table(rows=400))
    parts = [[data.observation[:40], data.observation[40:90], data.next_observation], [data.next_observation.flip(0)]]
    found = []
    for asked in parts:
        learner = critic_stage(agent(), table(rows=400))
        assert learner._stored is not None
        assert learner._stored.left == len(learner._stored) == 600
        for rows in asked:
            learner.support(rows)
        found.append(learner.support(data.observation))
    assert torch.equal(*found)


# ------------------------------------------------------------------------------------------------ policy and state


def test_a_state_brings_its_support_actions_along() -> None:
    """Also into a learner of another seed that has begun the stage already."""
    data = table()
    learner, other = critic_stage(agent(), data), critic_stage(agent(seed=9), data)
    observation = everything(data).observation
    assert not torch.equal(learner.support(observation), other.support(observation))
    other.load_state_dict(learner.state_dict())
    assert torch.equal(learner.support(observation), other.support(observation))
    fresh = agent(seed=5)
    fresh.load_state_dict(learner.state_dict())
    fresh.begin_stage("critic", data)
    assert torch.equal(learner.support(observation), fresh.support(observation))


def test_the_policy_is_the_behaviour_until_energies_have_learnt() -> None:
    learner = agent()
    for _ in range(3):
        learner.update(everything(table()))
    states = torch.randn(5, 3, generator=torch.Generator().manual_seed(6))
    policy = Policy.from_blob(learner.policy_blob(3))
    found = policy.act(states.repeat_interleave(4, 0), generator=torch.Generator().manual_seed(7))
    expected = learner.sample_behaviour(states, torch.Generator().manual_seed(7)).flatten(0, 1)
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-6)


def test_the_published_policy_acts_the_same_when_rebuilt_and_is_guided() -> None:
    states = torch.randn(20, 3, generator=torch.Generator().manual_seed(6))
    actions = {}
    for scale in (0.0, 1.0, 3.0):
        learner = critic_stage(agent(guidance_scale=scale, updates=160, learning_rate=1e-2), table())
        while learner.updates < 160:
            learner.update(everything(table()))
        blob = learner.policy_blob(160)
        policy = Policy.from_blob(blob)
        actions[scale] = policy.act(states, generator=torch.Generator().manual_seed(7))
        again = Policy.from_blob(policy.to_blob(160))
        assert policy.to_blob(160).checksum == blob.checksum
        np.testing.assert_array_equal(actions[scale], again.act(states, generator=torch.Generator().manual_seed(7)))
        assert np.abs(actions[scale]).max() <= 1
    start = learner.support_values(states, torch.tensor(actions[0.0])[:, None]).mean()
    assert learner.support_values(states, torch.tensor(actions[3.0])[:, None]).mean() > start
    assert not np.array_equal(actions[0.0], actions[1.0])


def test_candidates_bring_the_critics_along() -> None:
    assert Policy.from_blob(agent(candidates=4).policy_blob(0)).has_critic
    assert not Policy.from_blob(agent().policy_blob(0)).has_critic

"""Self-weighted guidance as a learner: stages, weights, and the policy it publishes."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor

from raydiff.agents.action_guidance import weight_guide
from raydiff.agents.diffusion_policy import DiffusionPolicy
from raydiff.agents.policy import Policy
from raydiff.agents.registry import build_agent
from raydiff.agents.swg import SWG
from raydiff.agents.weights import action_weight
from raydiff.config_learner import LearnerConfig, SWGConfig
from raydiff.diffusion.vp import VP, add_noise, sample
from raydiff.replay.table import Table
from raydiff.types import Batch, Transitions

STATES, ACTIONS = 3, 2


def agent(updates: int = 12, seed: int = 0, **options: object) -> SWG:
    shared = {key: options.pop(key) for key in list(options) if key in LearnerConfig.model_fields}
    small = {"width": 16, "blocks": 2, "steps": 4} | options
    config = LearnerConfig(algorithm="swg", hidden=(16,), updates=updates, swg=SWGConfig(**small), **shared)
    built = build_agent(config, STATES, ACTIONS, torch.full((STATES,), 0.1), torch.full((STATES,), 0.999), seed)
    assert isinstance(built, SWG)
    return built


def batch(seed: int = 0, size: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, size, STATES, generator=generator)
    action = torch.rand(size, ACTIONS, generator=generator) * 2 - 1
    ended = (torch.rand(size, generator=generator) < 0.2).float()
    return Batch(states[0], action, torch.randn(size, generator=generator), states[1], ended)


def table(seed: int = 0, size: int = 500) -> Table:
    rows = batch(seed, size)
    arrays = [part.numpy() for part in rows if part is not None]
    return Table.from_transitions(Transitions(*arrays[:5]))


def snapshot(learner: SWG) -> dict[str, Tensor]:
    return learner.state_dict()


def changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key for key, tensor in before.items() if not torch.equal(tensor, after[key])}


# ---------------------------------------------------------------------------------------------------- stages


@pytest.mark.parametrize(("updates", "share", "expected"), [(12, 0.5, (6, 6)), (7, 0.3, (2, 5)), (1, 0.5, (1,))])
def test_stages_add_up(updates: int, share: float, expected: tuple[int, ...]) -> None:
    stages = agent(updates, critic_share=share).stages()
    assert tuple(stage.updates for stage in stages) == expected
    assert [stage.name for stage in stages] == ["critic", "behaviour"][-len(expected) :]
    assert agent(updates, order="joint").stages() == [("train", updates)]


def test_critics_first_and_the_diffusion_model_after_them() -> None:
    learner = agent(4)
    behaviour = {"network", "average", "optimizer", "noise", "weight_range"}
    for step in range(4):
        before = snapshot(learner)
        learner.update(batch(step))
        moved = {key.split(".")[0] for key in changed(before, snapshot(learner))} - {"updates"}
        if step < 2:
            assert moved == {"critic", "critic_target", "critic_optimizer", "value", "value_optimizer"}
        else:
            assert {"network", "average", "optimizer", "noise"} <= moved <= behaviour


def test_joint_order_trains_all_in_every_update() -> None:
    learner = agent(4, order="joint")
    before = snapshot(learner)
    metrics = learner.update(batch())
    moved = {key.split(".")[0] for key in changed(before, snapshot(learner))}
    assert {"critic", "critic_target", "value", "network", "average", "noise"} <= moved
    assert {"critic_loss", "value_loss", "action_loss", "weight_loss", "weight"} <= metrics.keys()


def test_unknown_stages_are_refused() -> None:
    for learner, name in ((agent(), "train"), (agent(order="joint"), "critic")):
        with pytest.raises(ValueError, match=f"{name} was begun"):
            learner.begin_stage(name, None)


@pytest.mark.parametrize("order", ["staged", "joint"])
def test_continues_bit_by_bit(order: str) -> None:
    """Before, at, and behind the change of stage, with the table measured again where the stage is entered again."""
    data = table()

    def advance(learner: SWG, start: int, stop: int, enter: bool) -> None:
        for step in range(start, stop):
            if order == "staged" and (step == 4 or (enter and step == start)):
                learner.begin_stage("critic" if step < 4 else "behaviour", data)
            learner.update(batch(100 + step))

    for cut in (3, 4, 6):
        whole, first, second = (agent(8, order=order, seed=seed) for seed in (0, 0, 9))
        advance(whole, 0, 8, enter=True)
        advance(first, 0, cut, enter=True)
        second.load_state_dict(first.state_dict())
        advance(second, cut, 8, enter=True)
        assert changed(whole.state_dict(), second.state_dict()) == set(), cut
        np.testing.assert_array_equal(whole.policy_blob(8).weights, second.policy_blob(8).weights)


# ---------------------------------------------------------------------------------------------------- weights


def test_weights_come_from_the_target_critics_of_the_moment() -> None:
    learner, rows = agent(4), batch()
    for step in range(2):
        learner.update(batch(step))
    observation = (rows.observation - 0.1) / 1.0
    pair = torch.cat([observation, rows.action], 1)
    q = learner.critics.critic_target(pair).squeeze(-1).amin(0)
    v = learner.critics.value_network(observation).squeeze(-1)
    step = torch.sigmoid(3 * (q - v))
    expected = 0.7 * step + 0.3 * (1 - step)
    torch.testing.assert_close(learner.weight(observation, rows.action), expected.detach())
    metrics = learner.update(rows)
    torch.testing.assert_close(metrics["weight"], expected.mean().detach())


@pytest.mark.parametrize(("weight", "loss"), [("linex", "linex"), ("exponential", "expectile")])
def test_the_value_is_trained_for_its_weight(weight: str, loss: str) -> None:
    assert agent(weight=weight).critics.loss == loss


@pytest.mark.parametrize("scale", ["none", "mean", "deviation"])
def test_scale_and_range_of_the_weights_over_the_data(scale: str) -> None:
    learner, data = agent(4, weight="exponential", weight_scale=scale), table()
    for step in range(2):
        learner.update(batch(step))
    learner.begin_stage("behaviour", data)
    rows = batch(0, 500)
    weight = learner.weight((rows.observation - 0.1) / 1.0, rows.action)
    if scale == "mean":
        assert weight.mean().item() == pytest.approx(1.0, rel=1e-4)
    elif scale == "deviation":
        assert weight.std(correction=0).item() == pytest.approx(0.5, rel=1e-4)
    else:
        advantage = learner.critics.advantage((rows.observation - 0.1) / 1.0, rows.action)
        torch.testing.assert_close(weight, action_weight(advantage, learner.options))
    spec = learner.policy_spec()
    assert spec.weight_range == pytest.approx((weight.min().item(), weight.max().item()), rel=1e-4)
    assert spec.weight_floor == pytest.approx(weight.min().item() / 2, rel=1e-4)


def test_synthetic_rows_widen_the_range() -> None:
    learner = agent(4, weight="exponential", critic_share=0.25)
    learner.update(batch())
    learner.begin_stage("behaviour", table(size=4))
    narrow = learner.policy_spec().weight_range
    rows = batch(5, 400)
    learner.update(rows)
    wide = learner.policy_spec().weight_range
    assert narrow is not None
    assert wide is not None
    weight = learner.weight((rows.observation - 0.1) / 1.0, rows.action)
    assert wide == pytest.approx((min(narrow[0], weight.min().item()), max(narrow[1], weight.max().item())))
    assert wide != narrow


def test_loss_is_the_squared_error_over_all_entries() -> None:
    learner, rows = agent(4, dropout=0.0), batch()
    twin = agent(4, dropout=0.0)
    weight = torch.linspace(0.3, 0.7, 64)
    action_loss, weight_loss = learner.noise_losses(rows.observation, rows.action, weight)
    noised = add_noise(torch.cat([rows.action, weight[:, None]], 1), twin.vp, twin._noise)
    error = (twin.network(noised.x, noised.t, rows.observation) - noised.noise).square()
    torch.testing.assert_close(action_loss, error[:, :2].sum(1).mean())
    torch.testing.assert_close(weight_loss, error[:, 2].mean())


def test_dropout_acts_in_training_alone() -> None:
    learner, rows = agent(4, dropout=0.5), batch()
    x, t = torch.zeros(64, ACTIONS + 1), torch.full((64,), 2.0)
    first, second = (learner.network(x, t, rows.observation, learner._noise) for _ in range(2))
    assert not torch.equal(first, second)
    policy = Policy.from_blob(learner.policy_blob(0))
    np.testing.assert_array_equal(policy.act(rows.observation), policy.act(rows.observation))


# ---------------------------------------------------------------------------------------------------- network, policy


def test_published_network_has_its_published_size() -> None:
    """1.8 million weights at the size of locomotion, most of them in the residual blocks (section E.5)."""
    config = LearnerConfig(algorithm="swg")
    built = build_agent(config, 17, 6, torch.zeros(17), torch.ones(17), 0)
    assert isinstance(built, SWG)
    assert len(built.network.flat) == pytest.approx(1.8e6, rel=0.03)
    assert built.network.spec.head == 2
    assert built.network.spec.inputs == 7
    assert built.vp == VP("discrete", 15)


def test_the_weight_head_reads_the_second_block() -> None:
    """What lies behind the second block does not reach the weight's noise; without a head of its own it does."""
    for head in (True, False):
        learner = agent(blocks=3, weight_head=head)
        x, t, s = torch.randn(5, 3), torch.full((5,), 2.0), torch.randn(5, STATES)
        output = learner.network(x, t, s)
        (gradient,) = torch.autograd.grad(output[:, -1].sum(), learner.network.flat)
        last = gradient[-(16 * (3 if not head else 2) + (3 if not head else 2)) :]  # the output layer
        assert bool(last.any()) is not head


def test_average_forgets_the_start() -> None:
    """Its first shares are large: after the first update a random start weighs a tenth, and it ends as configured."""
    learner = agent(40, critic_share=0.01, ema=1e-3)
    start = learner.average.flat.clone()
    learner.update(batch())
    torch.testing.assert_close(learner.average.flat, 0.1 * start + 0.9 * learner.network.flat.detach())
    before = learner.average.flat.clone()
    learner._move_average(10**6)
    torch.testing.assert_close(learner.average.flat, before.lerp(learner.network.flat.detach(), 1e-3))


def test_learning_rate_falls_along_the_behaviour_stage() -> None:
    learner = agent(8, actor_learning_rate=1e-3)
    rates = []
    for step in range(8):
        learner.update(batch(step))
        rates.append(learner.optimizer.learning_rate)
    assert rates[3:5] == [1e-3, 1e-3]
    assert rates[6] == pytest.approx(5e-4)
    assert learner.critics.critic_optimizer.learning_rate == 3e-4
    constant = agent(8, learning_rate_schedule="constant")
    for step in range(8):
        constant.update(batch(step))
    assert constant.optimizer.learning_rate == 3e-4


def test_policy_follows_the_mean_path_from_zero() -> None:
    """What is published is the average, guided by its own weight, from zero and with no noise (section E.3)."""
    learner, rows = agent(6, guidance_scale=2.0), batch()
    for step in range(6):
        learner.update(batch(step))
    policy = Policy.from_blob(learner.policy_blob(6))
    assert isinstance(policy, DiffusionPolicy)
    state = (rows.observation - 0.1) / 1.0
    spec = learner.policy_spec()
    assert spec.weight_range is not None
    low, high = spec.weight_range

    def clip(z: Tensor) -> Tensor:
        return torch.cat([z[:, :-1].clamp(-1, 1), z[:, -1:].clamp(low, high)], 1)

    predict = weight_guide(lambda x, t: learner.average(x, t, state), learner.vp, 2.0, low / 2)
    path = sample(predict, torch.zeros(64, 3), learner.vp, "ddpm", 4, temperature=0.0, clip=clip)
    expected = path[:, :2].clamp(-1, 1).numpy()
    np.testing.assert_allclose(policy.act(rows.observation), expected, atol=1e-6)
    mean, variance = policy.distribution(rows.observation)
    assert variance is None
    np.testing.assert_allclose(mean.numpy(), expected, atol=1e-6)
    drawn = policy.act(rows.observation, deterministic=False, generator=torch.Generator().manual_seed(1))
    assert np.abs(drawn - expected).max() > 0.05


@pytest.mark.parametrize("choose", ["value", "weight"])
def test_candidates_by_value_or_weight(choose: str) -> None:
    learner, rows = agent(6, candidates=5, temperature=1.0, choose=choose), batch()
    for step in range(6):
        learner.update(batch(step))
    blob = learner.policy_blob(6)
    policy = Policy.from_blob(blob)
    assert blob.spec["critic"] == (choose == "value")
    found = torch.from_numpy(policy.act(rows.observation, generator=torch.Generator().manual_seed(3)))

    assert isinstance(policy, DiffusionPolicy)
    state = ((rows.observation - 0.1) / 1.0).repeat_interleave(5, 0)
    candidates = policy._sample(state, 1.0, torch.Generator().manual_seed(3))
    merit = candidates[:, 2]
    if choose == "value":
        pair = torch.cat([state, candidates[:, :2].clamp(-1, 1)], 1)
        merit = learner.critics.critic_target(pair).squeeze(-1).amin(0)
    best = merit.view(64, 5).argmax(1)
    expected = candidates.view(64, 5, 3)[torch.arange(64), best, :2].clamp(-1, 1)
    torch.testing.assert_close(found, expected.detach(), atol=1e-5, rtol=0)


def test_critics_come_along_where_guidance_by_value_asks() -> None:
    learner = agent()
    assert learner.policy_blob(0).spec["critic"] is False
    learner.publish_critic = True
    policy, rows = Policy.from_blob(learner.policy_blob(0)), batch()
    pair = torch.cat([(rows.observation - 0.1) / 1.0, rows.action], 1)
    expected = learner.critics.critic_target(pair).squeeze(-1).mean(0)
    torch.testing.assert_close(policy.value(rows.observation, rows.action), expected.detach())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "joint", "weight_scale": "mean"}, "weight_scale=mean"),
        ({"candidates": 4}, "raise the temperature"),
        ({"weight_min": 2.0, "weight_max": 1.0}, "weight_min"),
    ],
)
def test_contradictions_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        SWGConfig(**options)

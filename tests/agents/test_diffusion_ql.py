"""Diffusion-QL and its efficient variant: targets, where gradients go, and policies with known laws (section H.3)."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from raydiff.agents.diffusion_ql import DiffusionQL
from raydiff.agents.policy import Policy
from raydiff.agents.registry import build_agent
from raydiff.config_learner import DiffusionQLConfig, LearnerConfig
from raydiff.diffusion.vp import VP, sample
from raydiff.types import Batch

STATES, ACTIONS = 3, 2
VARIANTS = ["full", "efficient"]


def agent(variant: str = "full", seed: int = 0, actions: int = ACTIONS, **settings: object) -> DiffusionQL:
    options = {key: settings.pop(key) for key in list(settings) if key in DiffusionQLConfig.model_fields}
    if variant == "efficient":
        options = {"steps": 50, "solver_steps": 10} | options
    config = LearnerConfig(
        algorithm="diffusion_ql",
        **{"hidden": (24, 24)} | settings,
        diffusion_ql=DiffusionQLConfig(variant=variant, **options),
    )
    built = build_agent(config, STATES, actions, torch.zeros(STATES), torch.full((STATES,), 0.999), seed)
    assert isinstance(built, DiffusionQL)
    return built


def batch(seed: int = 0, size: int = 64) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(2, size, STATES, generator=generator)
    action = torch.rand(size, ACTIONS, generator=generator) * 2 - 1
    ended = (torch.rand(size, generator=generator) < 0.2).float()
    return Batch(states[0], action, torch.randn(size, generator=generator), states[1], ended)


def twin_of(learner: DiffusionQL) -> DiffusionQL:
    twin = DiffusionQL(learner.config, STATES, ACTIONS, learner._mean, learner._std, 99)
    twin.load_state_dict(learner.state_dict())
    return twin


# ------------------------------------------------------------------------------------------------- settings


def test_published_settings() -> None:
    full, efficient = agent(), DiffusionQLConfig(variant="efficient")
    assert (full.vp, full.spec.solver, full.spec.steps) == (VP("discrete", 5), "ddpm", 5)
    assert (full.spec.candidates, full.spec.choice, full.spec.critic_activation) == (50, "softmax", "mish")
    assert (full.spec.network.activation, full.spec.network.time_size) == ("mish", 16)
    assert (efficient.levels, efficient.solver_steps) == (1000, 15)
    with pytest.raises(ValidationError, match="solver_steps is 15, more than the 10"):
        DiffusionQLConfig(variant="efficient", steps=10)


# ------------------------------------------------------------------------------------------------- critics


def by_layers(layers: list[tuple[Tensor, Tensor]], x: Tensor) -> Tensor:
    """Twin Mish critics ``[2, B]`` by plain products."""
    for index, (weight, bias) in enumerate(layers):
        x = x @ weight.mT + bias
        x = nn.functional.mish(x) if index < len(layers) - 1 else x
    return x.squeeze(-1)


@pytest.mark.parametrize("several", [False, True])
def test_targets_use_the_target_policy_and_the_smaller_critic(several: bool) -> None:
    learner, data = agent(max_q_backup=several, backup_actions=4), batch()
    learner.actor_target.load(learner.actor_target.flat + 0.05)  # not the online actor
    learner.critic_target.load(learner.critic_target.flat + 0.05)
    twin = twin_of(learner)
    target = learner.target_value(data.reward, data.next_observation, data.terminal)
    count = 4 if several else 1
    rows = data.next_observation.repeat_interleave(count, 0)
    with torch.no_grad():
        action = twin.actions(twin.actor_target, rows)
        values = by_layers(twin.critic_target.layers, torch.cat([rows, action], 1)).view(2, 64, count)
    best = values.max(-1).values.min(0).values
    torch.testing.assert_close(target, data.reward + 0.99 * (1 - data.terminal) * best, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(target[data.terminal == 1], data.reward[data.terminal == 1], rtol=0, atol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_update_is_critics_then_actor_then_targets(variant: str) -> None:
    learner, data = agent(variant, ema_start=0, ema_every=1, ema=0.1), batch()
    twin = twin_of(learner)
    metrics = learner.update(data)
    target = twin.target_value(data.reward, data.next_observation, data.terminal)
    values = by_layers(twin.critic.layers, torch.cat([data.observation, data.action], 1))
    expected = (values - target).square().mean(1).sum()
    torch.testing.assert_close(metrics["critic_loss"], expected, rtol=1e-5, atol=1e-6)
    before = twin.critic_target.flat.detach().clone()
    twin.critic.load(learner.critic.flat)  # the actor sees the new critics
    loss, cloning = twin.actor_loss(data.observation, data.action)
    torch.testing.assert_close(metrics["actor_loss"], loss.detach())
    torch.testing.assert_close(metrics["cloning_loss"], cloning.detach())
    torch.testing.assert_close(learner.critic_target.flat, 0.995 * before + 0.005 * learner.critic.flat)
    torch.testing.assert_close(learner.actor_target.flat, 0.9 * twin.actor.flat + 0.1 * learner.actor.flat)


def test_the_target_policy_starts_late_and_moves_seldom() -> None:
    learner, moved = agent(ema_start=7, ema_every=5), []
    for step in range(17):
        before = learner.actor_target.flat.clone()
        learner.update(batch(step))
        if not torch.equal(before, learner.actor_target.flat):
            moved.append(step)
    assert moved == [10, 15]


# ------------------------------------------------------------------------------------------------- actor


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_value_reaches_the_network_only_through_the_policys_action(variant: str) -> None:
    """H3a: the gradient of the loss is that of the noise loss, and ``dQ/da`` carried back through the action; it is
    nothing where the value does not depend on the action."""
    learner, data = agent(variant, eta=3.0), batch()
    seen: list[Tensor] = []
    original = learner.value_loss

    def value_loss(observation: Tensor, action: Tensor) -> Tensor:
        seen.append(action)
        return original(observation, action)

    learner.value_loss = value_loss  # type: ignore[method-assign]
    state = learner._noise.get_state()
    loss, cloning = learner.actor_loss(data.observation, data.action)
    (whole,) = torch.autograd.grad(loss, learner.actor.flat, retain_graph=True)
    (own,) = seen
    assert own.abs().max() <= 1
    (slope,) = torch.autograd.grad(loss - cloning, own, retain_graph=True)
    (noise_part,) = torch.autograd.grad(cloning, learner.actor.flat, retain_graph=True)
    (through,) = torch.autograd.grad(own, learner.actor.flat, slope)
    torch.testing.assert_close(whole, noise_part + through, rtol=1e-4, atol=1e-6)
    assert through.norm() > 1e-3

    with torch.no_grad():
        learner.critic.layers[0][0][..., STATES:] = 0
    learner._noise.set_state(state)
    loss, cloning = learner.actor_loss(data.observation, data.action)
    flat_gradient, cloning_gradient = (
        torch.autograd.grad(part, learner.actor.flat, retain_graph=True)[0] for part in (loss, cloning)
    )
    torch.testing.assert_close(flat_gradient, cloning_gradient, rtol=1e-5, atol=1e-7)
    assert loss != cloning


def test_the_gradient_passes_the_whole_chain() -> None:
    """Each of the five steps contributes: cut off before the last one, the gradient is another."""
    learner, data = agent(), batch()
    state = learner._noise.get_state()
    own = learner.actions(learner.actor, data.observation, differentiable=True)
    (whole,) = torch.autograd.grad(own.sum(), learner.actor.flat)
    calls: list[int] = []

    def cut(x: Tensor, t: Tensor) -> Tensor:
        calls.append(int(t[0]))
        return learner.actor(x if t[0] > 1 else x.detach(), t, data.observation)

    learner._noise.set_state(state)
    noise = torch.randn(64, ACTIONS, generator=learner._noise)
    same = sample(cut, noise, learner.vp, "ddpm", 5, clip=learner._clip, generator=learner._noise, differentiable=True)
    torch.testing.assert_close(same, own)
    (last_only,) = torch.autograd.grad(same.sum(), learner.actor.flat)
    assert calls == [5, 4, 3, 2, 1]
    assert not torch.allclose(whole, last_only, rtol=0.1)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_actors_step_is_free_of_the_scale_of_values(variant: str) -> None:
    learner, data = agent(variant), batch()
    gradients, state = [], learner._noise.get_state()
    for factor in (1.0, 250.0):
        with torch.no_grad():
            for part in learner.critic.layers[-1]:
                part *= factor
        learner._noise.set_state(state)
        loss, _ = learner.actor_loss(data.observation, data.action)
        gradients.append(torch.autograd.grad(loss, learner.actor.flat)[0])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_either_critic_may_give_the_value_and_the_other_its_size() -> None:
    learner, data = agent(), batch()
    values = by_layers(learner.critic.layers, torch.cat([data.observation, data.action], 1))
    options = [-(values[i].mean() / values[1 - i].abs().mean()).item() for i in (0, 1)]
    found = [learner.value_loss(data.observation, data.action).item() for _ in range(400)]
    first = np.isclose(found, options[0], rtol=1e-5)
    assert (first | np.isclose(found, options[1], rtol=1e-5)).all()
    assert 150 < first.sum() < 250


def test_the_one_step_estimate_at_the_lowest_level_is_the_action(monkeypatch: pytest.MonkeyPatch) -> None:
    """H3c: within ``sigma_1 / alpha_1`` times the error of the predicted noise, which is about 1 before training."""
    learner, data = agent("efficient", steps=1000), batch()
    monkeypatch.setattr(VP, "draw", lambda self, n, generator, device="cpu", dtype=torch.float32: torch.ones(n))
    seen: list[Tensor] = []
    monkeypatch.setattr(learner, "value_loss", lambda observation, action: seen.append(action) or action.sum() * 0)
    _, cloning = learner.actor_loss(data.observation, data.action)
    alpha, sigma = (level.item() for level in learner.vp.levels(torch.ones(1)))
    assert sigma == pytest.approx(math.sqrt(0.1 / 1000 + 9.9 / 2e6), rel=1e-3)
    error = (seen[0] - data.action).detach()
    assert error.square().mean().sqrt().item() <= sigma / alpha * math.sqrt(cloning.item()) + 1e-6
    assert error.abs().max() < 5 * sigma
    assert error.abs().max() > 0.5 * sigma


@pytest.mark.parametrize("variant", VARIANTS)
def test_without_eta_the_actor_clones(variant: str) -> None:
    learner, data = agent(variant, eta=0.0), batch()
    loss, cloning = learner.actor_loss(data.observation, data.action)
    assert loss is cloning


def test_gradients_are_clipped_to_their_norm() -> None:
    """Adam's first moment after one step is a tenth of the gradient that it was given."""
    norms = {}
    for limit in (None, 1e-3, 1e3):
        learner = agent(gradient_clip=limit)
        learner.update(batch())
        parts = learner.actor_optimizer, learner.critic_optimizer
        norms[limit] = [10 * part.first_moments[0].norm().item() for part in parts]
    assert norms[1e-3] == pytest.approx([1e-3, 1e-3], rel=1e-4)
    assert norms[1e3] == pytest.approx(norms[None], rel=1e-6)
    assert min(norms[None]) > 0.1


def test_rates_fall_where_a_cosine_is_asked_for() -> None:
    learner = agent(updates=10, learning_rate_schedule="cosine", actor_learning_rate=1e-3)
    for step in range(6):
        learner.update(batch(step))
    assert learner.actor_optimizer.learning_rate == pytest.approx(5e-4)
    assert learner.critic_optimizer.learning_rate == pytest.approx(1.5e-4)


# ------------------------------------------------------------------------------------------------- policy


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_policy_acts_like_the_agent(variant: str) -> None:
    learner = agent(variant, ema_start=0)
    for step in range(3):
        learner.update(batch(step))
    policy = Policy.from_blob(learner.policy_blob(3))
    states, state = batch(7).observation, torch.Generator().manual_seed(3)
    learner._noise.set_state(state.get_state())
    expected = learner.actions(learner.actor, states)
    np.testing.assert_array_equal(policy.act(states, False, state), expected.numpy())
    assert policy.has_critic
    torch.testing.assert_close(policy.critic.flat, learner.critic_target.flat)


def test_the_critics_travel_where_they_choose_or_are_asked_for() -> None:
    plain, asked = agent(candidates=1), agent(candidates=1)
    asked.publish_critic = True
    carried = [Policy.from_blob(learner.policy_blob(0)).has_critic for learner in (plain, asked, agent())]
    assert carried == [False, True, True]


def gaussian_data(size: int, mean: float, std: float) -> Batch:
    action = mean + std * torch.randn(size, 1, generator=torch.Generator().manual_seed(1))
    rows, ended = torch.zeros(size, STATES), torch.ones(size)
    return Batch(rows, action.clamp(-1, 1), torch.zeros(size), rows, ended)


def exact_deviation(vp: VP, solver: str, steps: int, mean: float, std: float) -> float:
    """What the sampler makes of ``N(mean, std^2)`` with the exact noise network: few steps narrow it."""

    def predict(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = (level[:, None] for level in vp.levels(t))
        return sigma * (x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    start = torch.randn(40_000, 1, generator=torch.Generator().manual_seed(0))
    return sample(predict, start, vp, solver, steps, generator=torch.Generator().manual_seed(1)).std().item()


@pytest.mark.parametrize(("variant", "steps", "left"), [("full", 5, 0.36), ("efficient", 100, 1.0)])
def test_with_a_constant_value_the_policy_is_the_data(variant: str, steps: int, left: float) -> None:
    """H3b: trained on ``N(.3, .2^2)``, the policy has its mean, and its deviation as far as the sampler can: with
    the five published steps a third of it, also with an exact network."""
    learner = agent(variant, actions=1, steps=steps, hidden=(64,), candidates=1)
    with torch.no_grad():
        learner.critic.layers[0][0][..., STATES:] = 0  # the same value for every action
    data = gaussian_data(20_000, 0.3, 0.2)
    picks = torch.Generator().manual_seed(2)
    for step in range(400):
        learner.actor_optimizer.learning_rate = 0.015 * (1 - step / 400)
        rows = torch.randint(len(data.action), (256,), generator=picks)
        loss, _ = learner.actor_loss(data.observation[rows], data.action[rows])
        learner.actor_optimizer.minimize(loss)
    actions = Policy.from_blob(learner.policy_blob(0)).act(np.zeros((20_000, STATES)), deterministic=False)
    expected = exact_deviation(learner.vp, learner.spec.solver, learner.spec.steps, 0.3, 0.2)
    assert actions.mean() == pytest.approx(0.3, abs=0.02)
    assert actions.std() == pytest.approx(expected, rel=0.1)
    assert expected == pytest.approx(left * 0.2, rel=0.05)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_policy_climbs_the_value_within_the_data(variant: str) -> None:
    """One-step episodes with uniform actions and the reward ``-(a - .6)^2``: cloning has mean 0, the learner goes up."""
    found = []
    for eta in (0.0, 5.0):
        learner = agent(variant, actions=1, eta=eta, learning_rate=1e-2, candidates=1)
        generator = torch.Generator().manual_seed(0)
        rows = torch.zeros(64, STATES)
        for _ in range(120):
            action = torch.rand(64, 1, generator=generator) * 2 - 1
            reward = -(action[:, 0] - 0.6).square()
            learner.update(Batch(rows, action, reward, rows, torch.ones(64)))
        actions = Policy.from_blob(learner.policy_blob(0)).act(np.zeros((2000, STATES)), deterministic=False)
        found.append((actions.mean(), -np.square(actions - 0.6).mean()))
    assert abs(found[0][0]) < 0.25
    assert found[1][0] > 0.35
    assert found[1][1] > found[0][1] + 0.2

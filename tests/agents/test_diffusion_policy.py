"""Diffusion policies: what is published is what samples, with its guidance, its candidates and its own noise."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import Tensor

from raydiff.agents.diffusion_policy import DiffusionPolicy, DiffusionPolicySpec, pack_diffusion_policy
from raydiff.agents.energy_network import EnergyNetwork
from raydiff.agents.mish import MishMLP
from raydiff.agents.networks import MLP
from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork
from raydiff.agents.policy import Policy
from raydiff.generators.api import action_agreement
from raydiff.guidance.sampled import SampledPolicy
from raydiff.types import PolicyBlob, Trajectories

OBSERVATION, ACTION = 5, 3
MEAN, STD = torch.full((OBSERVATION,), 3.0), torch.full((OBSERVATION,), 2.0)
KINDS = ["plain", "weight", "energy"]


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def published(kind: str = "plain", critic: bool = True, **settings: object) -> PolicyBlob:
    """A policy with random weights: Diffusion-QL's kind, self-weighted guidance's or QGPO's."""
    inputs, beside = ACTION + (kind == "weight"), {}
    network = NetworkSpec(inputs=inputs, condition=OBSERVATION, hidden=(32, 32))
    beside = {"schedule": "discrete", "levels": 5, "solver": "ddpm", "steps": 5, "network": network}
    if kind == "weight":
        beside |= {"guidance": "weight", "guidance_scale": 2.0, "weight_range": (0.3, 0.7)}
    if kind == "energy":
        network = network.model_copy(update={"kind": "residual", "time_features": "fourier", "time_scale": 15.0})
        beside |= {"guidance": "energy", "guidance_scale": 2.0, "energy_hidden": (16,), "network": network}
        beside |= {"schedule": "continuous", "levels": 1, "solver": "dpmpp_2m", "steps": 6}
    if kind == "plain" and critic:
        beside |= {"critic_activation": "mish"}
    beside |= settings
    spec = DiffusionPolicySpec(observation_size=OBSERVATION, action_size=ACTION, critic=critic, **beside)
    energy = EnergyNetwork(OBSERVATION, ACTION, (16,), random(1)) if kind == "energy" else None
    if energy is not None:
        energy.load(torch.randn(len(energy.flat), generator=random(2)) / 2)  # its last layer starts at zero
    sizes = (OBSERVATION + ACTION, 12, 1)
    critics = (MishMLP if spec.critic_activation == "mish" else MLP)(sizes, heads=2, generator=random(3))
    net = NoiseNetwork(spec.network, random())
    return pack_diffusion_policy(7, spec, MEAN, STD, net, energy, critics if critic else None)


def rebuilt(kind: str = "plain", **settings: object) -> DiffusionPolicy:
    policy = Policy.from_blob(published(kind, **settings))
    assert isinstance(policy, DiffusionPolicy)
    return policy


def observations(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(3, 2, (*shape, OBSERVATION)).astype(np.float32)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("critic", [False, True])
def test_blob_round_trip(kind: str, critic: bool) -> None:
    blob = published(kind, critic)
    policy = Policy.from_blob(blob)
    again = policy.to_blob(8)
    assert (again.version, again.spec) == (8, blob.spec)
    assert again.spec["critic"] == critic == policy.has_critic
    np.testing.assert_array_equal(again.weights, blob.weights)
    copy = Policy.from_blob(again)
    for deterministic in (True, False):
        actions = policy.act(observations(9), deterministic)
        assert actions.shape == (9, ACTION)
        assert actions.dtype == np.float32
        assert np.abs(actions).max() <= 1
        np.testing.assert_array_equal(actions, copy.act(torch.from_numpy(observations(9)), deterministic))


def test_damage_and_wrong_length_are_detected() -> None:
    blob = published("energy")
    weights = blob.weights.copy()
    weights[100] += 1e-3
    with pytest.raises(ValueError, match="damaged"):
        Policy.from_blob(dataclasses.replace(blob, weights=weights))
    with pytest.raises(ValueError, match="weights"):
        Policy.from_blob(PolicyBlob.pack(7, blob.spec, blob.weights[:-1]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"guidance": "weight"}, "must take 4 noisy numbers"),
        ({"guidance": "energy"}, "come together"),
        ({"energy_hidden": (8,)}, "come together"),
        ({"candidates": 5, "critic": False}, "needs the critics"),
        ({"candidates": 5, "choice": "weight"}, "no weight"),
        ({"steps": 6}, "6 sampler steps"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, object], message: str) -> None:
    blob = published()
    with pytest.raises(ValueError, match=message):
        Policy.from_blob(PolicyBlob.pack(7, blob.spec | changes, blob.weights))


# ------------------------------------------------------------------------------------------------- acting


def ddpm_by_hand(
    policy: DiffusionPolicy, state: Tensor, x: Tensor, generator: torch.Generator | None, temperature: float = 1.0
) -> Tensor:
    """Diffusion-QL's chain in its published form: clipped denoised value, posterior mean, posterior noise."""
    kept = torch.cat([torch.ones(1), policy.vp.levels(torch.arange(1.0, 6.0))[0] ** 2])
    for t in range(5, 0, -1):
        beta = 1 - kept[t] / kept[t - 1]
        noise = policy.noise_network(x, torch.full((len(x),), float(t)), state)
        x0 = ((x - (1 - kept[t]).sqrt() * noise) / kept[t].sqrt()).clamp(-1, 1)
        mean = kept[t - 1].sqrt() * beta * x0 + (1 - beta).sqrt() * (1 - kept[t - 1]) * x
        x = mean / (1 - kept[t])
        if t > 1 and generator is not None:
            variance = beta * (1 - kept[t - 1]) / (1 - kept[t])
            x = x + temperature * variance.sqrt() * torch.randn(x.shape, generator=generator)
    return x


def test_actions_are_those_of_the_published_chain_in_normalised_states() -> None:
    policy, raw = rebuilt(), torch.from_numpy(observations(9))
    generator = random(4)
    start = torch.randn(9, ACTION, generator=generator)
    expected = ddpm_by_hand(policy, (raw - 3) / 2, start, generator)
    np.testing.assert_allclose(policy.act(raw, False, random(4)), expected.numpy(), atol=1e-5)
    path = ddpm_by_hand(policy, (raw - 3) / 2, torch.zeros(9, ACTION), None)
    torch.testing.assert_close(policy.distribution(raw)[0], path, atol=1e-5, rtol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_surrogate_is_one_path_without_noise(kind: str) -> None:
    """The same for equal states whatever was drawn before, in any shape, in inference mode too; and what a policy of
    temperature 0 does."""
    policy, states = rebuilt(kind), torch.from_numpy(observations(2, 6))
    mean, variance = policy.distribution(states)
    assert policy.deterministic
    assert variance is None
    assert mean.shape == (2, 6, ACTION)
    policy.act(observations(3), deterministic=False)
    torch.rand(1)
    with torch.inference_mode():  # as generators call it
        again, _ = policy.distribution(states * 1.0)
    assert torch.equal(mean, again)
    torch.testing.assert_close(policy.distribution(states[1, 2])[0], mean[1, 2], rtol=0, atol=1e-5)
    cold = rebuilt(kind, temperature=0.0, candidates=4)
    np.testing.assert_allclose(cold.act(states.view(12, -1)), mean.view(12, ACTION).numpy(), atol=1e-6)
    assert not np.allclose(policy.act(states.view(12, -1)), mean.view(12, ACTION).numpy(), atol=1e-2)


@pytest.mark.parametrize("kind", ["weight", "energy"])
def test_guidance_acts_and_its_scale_counts(kind: str) -> None:
    states = torch.from_numpy(observations(6))
    paths = [rebuilt(kind, guidance_scale=scale).distribution(states)[0] for scale in (0.0, 1.0, 2.0)]
    assert not torch.allclose(paths[0], paths[1], atol=1e-4)
    assert not torch.allclose(paths[1], paths[2], atol=1e-4)
    if kind == "energy":
        policy = rebuilt(kind, guidance_scale=0.0)
        policy.energy = None
        assert torch.equal(policy.distribution(states)[0], paths[0])


def test_denoised_weights_stay_within_their_range() -> None:
    policy, state = rebuilt("weight"), torch.zeros(400, OBSERVATION)
    x = policy._sample(state, 1.0, random())
    assert x.shape == (400, ACTION + 1)
    assert x[:, -1].min() >= 0.3
    assert x[:, -1].max() <= 0.7
    free = rebuilt("weight", clip_denoised=False)._sample(state, 1.0, random())
    assert (free[:, -1].max() > 0.7) | (free[:, -1].min() < 0.3)


def test_copies_act_alike_and_a_policy_never_repeats_its_noise() -> None:
    first, second = rebuilt(), rebuilt()
    moves = [first.act(observations(4)) for _ in range(2)]
    np.testing.assert_array_equal(moves[0], second.act(observations(4)))
    assert not np.array_equal(moves[0], moves[1])
    chosen = [first.act(observations(4), False, random(s)) for s in (1, 1, 2)]
    np.testing.assert_array_equal(chosen[0], chosen[1])
    assert not np.array_equal(chosen[0], chosen[2])


def test_temperature_scales_all_noise_of_evaluation() -> None:
    policy, raw, generator = rebuilt(temperature=0.3), torch.from_numpy(observations(9)), random(4)
    start = 0.3 * torch.randn(9, ACTION, generator=generator)
    expected = ddpm_by_hand(policy, (raw - 3) / 2, start, generator, temperature=0.3)
    np.testing.assert_allclose(policy.act(raw, generator=random(4)), expected.numpy(), atol=1e-5)
    np.testing.assert_array_equal(policy.act(raw, False, random(4)), rebuilt().act(raw, generator=random(4)))
    same = rebuilt(temperature=0.0).act(np.repeat(observations(1), 9, axis=0))
    assert np.ptp(same, axis=0).max() < 1e-4


# ------------------------------------------------------------------------------------------------- candidates


def test_candidates_are_chosen_by_value() -> None:
    """The best of the very samples that the policy draws for each state, by the smaller of two critics."""
    states, count = torch.from_numpy(observations(7)), 6
    rows = states.repeat_interleave(count, 0)
    options = torch.from_numpy(rebuilt().act(rows, generator=random(3)))
    policy = rebuilt(candidates=count, choice="value")
    assert policy.critic is not None
    values = policy.critic(torch.cat([(rows - 3) / 2, options], 1)).squeeze(-1).amin(0).view(7, count)
    expected = options.view(7, count, ACTION)[torch.arange(7), values.argmax(1)]
    np.testing.assert_array_equal(policy.act(states, generator=random(3)), expected.numpy())


def test_candidates_are_drawn_by_the_softmax_of_their_values() -> None:
    states = np.repeat(observations(1), 8000, axis=0)
    policy = rebuilt(candidates=2, choice="softmax")
    assert policy.critic is not None
    policy.critic.load(12 * policy.critic.flat)  # values that differ
    rows = torch.from_numpy(states).repeat_interleave(2, 0)
    options = torch.from_numpy(rebuilt().act(rows, generator=random(3)))
    values = policy.critic(torch.cat([(rows - 3) / 2, options], 1)).squeeze(-1).amin(0).view(-1, 2).detach()
    first = np.abs(policy.act(states, generator=random(3)) - options[::2].numpy()).max(1) == 0
    share = values.softmax(1)[:, 0].numpy()
    assert share.std() > 0.1
    assert first.mean() == pytest.approx(share.mean(), abs=0.02)
    for part in (share < 0.4, share > 0.6):
        assert first[part].mean() == pytest.approx(share[part].mean(), abs=0.04)


def test_candidates_are_chosen_by_their_weight() -> None:
    policy = rebuilt("weight", candidates=5, choice="weight", critic=False)
    state = policy._normalised(torch.from_numpy(observations(4)))
    rows = state.repeat_interleave(5, 0)
    options = policy._sample(rows, 1.0, random(3)).view(4, 5, ACTION + 1)
    expected = options[torch.arange(4), options[..., -1].argmax(1), :ACTION].clamp(-1, 1)
    np.testing.assert_array_equal(policy.act(observations(4), generator=random(3)), expected.numpy())


def test_plain_draws_ignore_the_candidates() -> None:
    many, one = rebuilt(candidates=9), rebuilt()
    np.testing.assert_array_equal(
        many.act(observations(4), False, random(1)), one.act(observations(4), False, random(1))
    )


# ------------------------------------------------------------------------------------------------- as a guide


def test_its_values_are_the_mean_of_its_critics() -> None:
    policy = rebuilt()
    states, actions = torch.from_numpy(observations(2, 6)), torch.linspace(-0.9, 0.9, 36).view(2, 6, ACTION)
    actions.requires_grad_()
    assert policy.critic is not None
    both = policy.critic(torch.cat([(states - 3) / 2, actions], -1).view(12, -1)).squeeze(-1)
    (gradient,) = torch.autograd.grad(both.mean(0).sum(), actions)
    torch.testing.assert_close(policy.value(states, actions.detach()).view(12), both.mean(0).detach())
    with torch.inference_mode():
        found = policy.value_gradient(states * 1.0, actions.detach() * 1.0)
    torch.testing.assert_close(found, gradient, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="without its critic"):
        rebuilt(critic=False).value(states, actions)


def test_its_score_is_that_of_a_gaussian_round_the_path() -> None:
    policy, states = rebuilt(), torch.from_numpy(observations(4))
    action = torch.linspace(-0.9, 0.9, 12).view(4, ACTION)
    mean, _ = policy.distribution(states)
    torch.testing.assert_close(policy.action_gradient(states, action, delta=0.2), (mean - action) / 0.04)
    with pytest.raises(ValueError, match="delta"):
        policy.action_gradient(states, action)
    rows = torch.zeros(2, 3, OBSERVATION + ACTION + 2)
    rows[:, :, :OBSERVATION] = states.view(2, 2, -1)[:, :1].expand(-1, 3, -1)
    measured = action_agreement(Trajectories(rows.numpy(), OBSERVATION, ACTION), policy, "cpu", 0.1)
    expected = policy.distribution(rows[:, :2, :OBSERVATION])[0].square().mean()
    assert measured is not None
    assert measured.deviation == pytest.approx(expected.item(), rel=1e-5)


def test_draws_as_a_function_of_noise_serve_a_sampled_policy() -> None:
    policy, states = rebuilt("energy"), torch.from_numpy(observations(6))
    zero = policy.draw(states, torch.zeros(6, ACTION))
    assert torch.equal(zero, policy.distribution(states)[0])
    sampled = SampledPolicy(policy.draw, ACTION, samples=1000)
    mean, variance = sampled.distribution(states)
    draws = policy.act(states.repeat_interleave(4000, 0), False, random()).reshape(6, 4000, ACTION)
    np.testing.assert_allclose(mean, draws.mean(1), atol=0.15)
    assert variance is not None
    np.testing.assert_allclose(variance, draws.var(1), atol=0.15)
    assert draws.mean(1).std() > 0.2  # states differ
    assert torch.equal(mean, sampled.distribution(states)[0])

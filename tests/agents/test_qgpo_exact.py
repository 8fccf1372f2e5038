"""QGPO against closed forms: guided frequencies of atoms, the optimum and the bound of its loss, its targets
(section G)."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from raydiff.agents.action_guidance import Energy, energy_guide
from raydiff.agents.energy_network import EnergyNetwork
from raydiff.agents.networks import Adam
from raydiff.agents.policy import Policy
from raydiff.agents.qgpo import contrastive_loss, in_support_value, label_entropy
from raydiff.agents.registry import build_agent
from raydiff.config_learner import LearnerConfig, QGPOConfig
from raydiff.diffusion.vp import VP, Solver, add_noise, sample
from raydiff.replay.table import Table
from raydiff.types import Transitions

ATOMS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]], dtype=torch.float64)
WEIGHTS = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
VALUES = torch.tensor([0.0, 0.3, 0.6, 0.5], dtype=torch.float64)
BETA = 3.0
CONTINUOUS = VP("continuous")


def posterior(x: Tensor, t: Tensor) -> Tensor:
    """Log probabilities ``[B, 4]`` of the atoms, up to a constant, given their noisy values ``x [B, 2]``."""
    alpha, sigma = (level[:, None] for level in CONTINUOUS.levels(t))
    atoms = ATOMS.to(x)
    closeness = alpha * x @ atoms.T - alpha.square() * atoms.square().sum(1) / 2
    return (WEIGHTS.to(x).log() + closeness / sigma.square()).log_softmax(1)


def exact_noise(x: Tensor, t: Tensor) -> Tensor:
    """What a perfect noise network predicts."""
    alpha, sigma = (level[:, None] for level in CONTINUOUS.levels(t))
    return (x - alpha * posterior(x, t).exp() @ ATOMS.to(x)) / sigma


def exact_energy(x: Tensor, t: Tensor, values: Tensor = VALUES) -> Tensor:
    """``log E[exp(beta Q) | a_t]``."""
    return (posterior(x, t) + BETA * values.to(x)).logsumexp(1)


def draw(
    energy: Energy, scale: float = 1.0, solver: Solver = "dpmpp_2m", steps: int = 200, count: int = 20_000
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(count, 2, generator=generator)
    predict = energy_guide(exact_noise, energy, CONTINUOUS, scale)
    return sample(predict, start, CONTINUOUS, solver, steps, generator=generator)


@pytest.mark.parametrize("solver", ["dpmpp_2m", "ddpm"])
def test_g1_guided_atoms_come_in_proportion_to_exp_beta_q(solver: Solver) -> None:
    distance = torch.cdist(draw(exact_energy, solver=solver), ATOMS.float())
    counts = torch.bincount(distance.argmin(1), minlength=4).numpy()
    expected = (WEIGHTS * (BETA * VALUES).exp()).numpy()
    assert distance.amin(1).max() < 0.05
    assert chisquare(counts, 20_000 * expected / expected.sum()).pvalue > 1e-3
    assert chisquare(counts, 20_000 * WEIGHTS.numpy()).pvalue < 1e-12


def test_g2_a_constant_value_guides_nowhere() -> None:
    constant = torch.full((4,), 0.7, dtype=torch.float64)
    x = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    energy = exact_energy(x, torch.linspace(0.01, 1, 64, dtype=torch.float64), constant)
    torch.testing.assert_close(energy, torch.full_like(energy, BETA * 0.7))
    assert torch.autograd.grad(energy.sum(), x)[0].abs().max() < 1e-12
    guided = draw(lambda x, t: exact_energy(x, t, constant), steps=15, count=500)
    torch.testing.assert_close(guided, draw(exact_energy, scale=0.0, steps=15, count=500), atol=1e-4, rtol=0)


def test_g2_a_constant_value_teaches_a_flat_energy_nothing() -> None:
    """The labels are uniform, and so is the softmax of any energy that does not depend on the action."""
    energy = torch.full((32, 16), 1.3, requires_grad=True)
    loss = contrastive_loss(energy, torch.full((32, 16), -4.0), BETA)
    assert loss.item() == pytest.approx(math.log(16), abs=1e-6)
    assert torch.autograd.grad(loss, energy)[0].abs().max() < 1e-8


def test_g3_the_loss_is_bounded_by_the_entropy_of_its_labels() -> None:
    generator = torch.Generator().manual_seed(2)
    value = torch.randn(500, 16, generator=generator, dtype=torch.float64)
    bound = label_entropy(value, BETA)
    label = (BETA * value).softmax(1)
    torch.testing.assert_close(bound, -(label * label.log()).sum(1).mean())
    shift = torch.randn(500, 1, generator=generator, dtype=torch.float64)  # a constant for each state
    torch.testing.assert_close(contrastive_loss(BETA * value + shift, value, BETA), bound)
    for size in (0.01, 0.1, 1.0, 10.0):
        other = BETA * value + size * torch.randn(500, 16, generator=generator, dtype=torch.float64)
        assert contrastive_loss(other, value, BETA) > bound


def test_g3_a_gradient_shifts_energies_within_one_state_alone() -> None:
    """The softmax runs over the support actions of a state: no other state's are compared with them."""
    value = torch.randn(4, 8, generator=torch.Generator().manual_seed(3))
    energy = torch.zeros(4, 8, requires_grad=True)
    gradient = torch.autograd.grad(contrastive_loss(energy, value, BETA), energy)[0]
    assert gradient.sum(1).abs().max() < 1e-7
    torch.testing.assert_close(gradient, (torch.full((4, 8), 1 / 8) - (BETA * value).softmax(1)) / 4)


def largest_slope(energy: Tensor, label: Tensor, directions: Tensor) -> float:
    """Derivatives of the loss at ``energy [B, K]`` along functions ``directions [B, K, J]``: the largest, in units of
    its standard error."""
    each = ((energy.softmax(1) * label.sum(1, keepdim=True) - label)[..., None] * directions).sum(1)
    return (each.mean(0) / (each.std(0) / math.sqrt(len(each)))).abs().max().item()


@pytest.mark.parametrize("count", [2, 16])
def test_the_intermediate_energy_is_the_optimum_of_the_loss(count: int) -> None:
    """With the weights exp(beta Q) as labels the loss is flat at the exact energy for any K. Softmax labels divide them
    by a sum over the sample, which moves the optimum for few actions but hardly for 16; it is never the mean of Q."""
    generator = torch.Generator().manual_seed(4)
    states = 400_000 // count
    index = torch.multinomial(WEIGHTS, states * count, replacement=True, generator=generator)
    noised = add_noise(ATOMS[index].view(states, count, 2), CONTINUOUS, generator)
    x, t = noised.x.flatten(0, 1), noised.t.repeat_interleave(count)
    directions = torch.randn(8, 3, generator=generator, dtype=torch.float64)
    directions = torch.tanh(torch.cat([x, t[:, None]], 1) @ directions.T).view(states, count, 8)
    logits = (BETA * VALUES)[index].view(states, count)
    exact = exact_energy(x, t).view(states, count)
    mean = (posterior(x, t).exp() @ (BETA * VALUES)).view(states, count)
    assert largest_slope(exact, logits.exp(), directions) < 4
    assert largest_slope(mean, logits.exp(), directions) > 8
    assert (largest_slope(exact, logits.softmax(1), directions) < 4) == (count == 16)
    assert largest_slope(mean, logits.softmax(1), directions) > 8


def test_a_trained_network_guides_as_the_closed_form() -> None:
    """By its gradients at diffused actions, where these are not yet at an atom and nothing is decided."""
    generator = torch.Generator().manual_seed(5)
    config = LearnerConfig(algorithm="qgpo", hidden=(8,), qgpo=QGPOConfig(beta=BETA, energy_hidden=(64, 64)))
    learner = build_agent(config, 1, 2, torch.zeros(1), torch.ones(1), 0)
    assert isinstance(learner.energy, EnergyNetwork)
    optimizer = Adam([learner.energy.flat], 1e-2)
    state, steps = torch.zeros(32, 1), 1600
    for step in range(steps):
        index = torch.multinomial(WEIGHTS, 32 * 16, replacement=True, generator=generator).view(32, 16)
        optimizer.learning_rate = 1e-2 * (1 - step / steps)
        optimizer.minimize(learner.energy_loss(state, ATOMS[index].float(), VALUES[index].float()))
    t = torch.linspace(0.2, 0.9, 500)
    index = torch.multinomial(WEIGHTS, 500, replacement=True, generator=generator)
    alpha, sigma = (level[:, None] for level in CONTINUOUS.levels(t))
    x = alpha * ATOMS[index].float() + sigma * torch.randn(500, 2, generator=generator)
    x.requires_grad_()
    found = torch.autograd.grad(learner.energy(x, t, torch.zeros(500, 1)).sum(), x)[0]
    exact = torch.autograd.grad(exact_energy(x, t).sum(), x)[0]
    assert torch.corrcoef(torch.stack([found.flatten(), exact.flatten()]))[0, 1] > 0.95
    assert ((found - exact).norm() / exact.norm()) < 0.3


def test_targets_lie_between_the_behaviours_value_and_the_best() -> None:
    value = torch.randn(100, 16, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    torch.testing.assert_close(in_support_value(value, 0.0), value.mean(1))
    torch.testing.assert_close(in_support_value(value, 1e6), value.amax(1))
    between = [in_support_value(value, beta) for beta in (0.0, 0.5, 1.0, 3.0, 10.0)]
    for lower, upper in itertools.pairwise(between):
        assert (lower < upper).all()


def test_targets_use_the_smaller_target_critic_and_stop_at_terminals() -> None:
    config = LearnerConfig(algorithm="qgpo", hidden=(16,), qgpo=QGPOConfig(critic_beta=2.0))
    learner = build_agent(config, 3, 2, torch.zeros(3), torch.ones(3), 0)
    generator = torch.Generator().manual_seed(7)
    following, action = torch.randn(6, 3, generator=generator), torch.rand(6, 5, 2, generator=generator) * 2 - 1
    reward, terminal = torch.randn(6, generator=generator), torch.tensor([0.0, 1.0, 0.0, 1.0, 0.0, 0.0])
    target = learner.target_value(reward, following, terminal, action)
    for row in range(6):
        q = []
        for k in range(5):
            inputs = torch.cat([following[row], action[row, k]])[None]
            q.append(learner.critic_target(inputs).amin().item())
        weight = [math.exp(2.0 * value) for value in q]
        mean = sum(w * v for w, v in zip(weight, q, strict=True)) / sum(weight)
        assert target[row].item() == pytest.approx(reward[row].item() + 0.99 * (1 - terminal[row].item()) * mean, 1e-5)
    assert torch.equal(target[terminal > 0], reward[terminal > 0])


def test_a_bandit_is_solved_in_proportion() -> None:
    """Whatever the state, actions lie round -.5 and .5 alike, with reward 0 and .5: at beta 3 the better mode gets
    e^1.5 / (1 + e^1.5) = .818 of the policy, and .5 of the behaviour."""
    random = np.random.default_rng(8)
    state, better = random.normal(size=(512, 1)), random.permutation(512) % 2
    action = better - 0.5 + 0.1 * random.normal(size=512)
    table = Table.from_transitions(Transitions(state, action[:, None], 0.5 * better, state, np.ones(512)))
    options = QGPOConfig(width=32, blocks=2, energy_hidden=(32, 32), support_steps=10, behaviour_learning_rate=5e-3)
    learner = build_agent(
        LearnerConfig(
            algorithm="qgpo",
            hidden=(32, 32),
            updates=1600,
            learning_rate=5e-3,
            learning_rate_schedule="cosine",
            tau=0.05,
            qgpo=options,
        ),
        1,
        1,
        torch.zeros(1),
        torch.ones(1),
        0,
    )
    generator = torch.Generator().manual_seed(8)
    for stage in learner.stages():
        learner.begin_stage(stage.name, table)
        for _ in range(stage.updates):
            learner.update(table.split(table.gather(64, generator)[0]))
    policy = Policy.from_blob(learner.policy_blob(0))
    actions = policy.act(torch.randn(4000, 1, generator=generator), generator=generator)[:, 0]
    behaviour = learner.sample_behaviour(torch.randn(250, 1, generator=generator), generator).flatten().numpy()
    assert (behaviour > 0).mean() == pytest.approx(0.5, abs=0.04)
    assert (actions > 0).mean() == pytest.approx(0.818, abs=0.1)
    assert np.abs(np.abs(actions) - 0.5).mean() < 0.15  # N(0, .1) has .08

"""AEPO trained on a problem with one state, where the guided law is known (F5)."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raydiff.agents.action_guidance import closed_form_guide, energy_guide
from raydiff.agents.aepo import AEPO
from raydiff.agents.closed_form import CriticMean
from raydiff.agents.policy import Policy
from raydiff.agents.registry import build_agent
from raydiff.config_learner import AEPOConfig, LearnerConfig
from raydiff.types import Batch


@pytest.fixture(scope="module")
def toy() -> AEPO:
    """One state, actions from N(.3, .25), and a reward of ``-(a - 1)^2 / 2`` at the end of one step: everything
    trained by the learner itself. Beta times curvature times variance is one half."""
    settings = AEPOConfig(
        width=64, blocks=2, energy_hidden=(64, 64), beta=2.0, behaviour_learning_rate=1e-3, rescale=False
    )
    config = LearnerConfig(
        algorithm="aepo",
        hidden=(64, 64),
        updates=1600,
        learning_rate=1e-3,
        learning_rate_schedule="cosine",
        aepo=settings,
    )
    learner = build_agent(config, 1, 1, torch.zeros(1), torch.ones(1), 0)
    assert isinstance(learner, AEPO)
    generator, state = torch.Generator().manual_seed(0), torch.zeros(256, 1)
    for _ in range(1600):
        action = 0.3 + 0.5 * torch.randn(256, 1, generator=generator)
        action = action.clamp(-1, 1)
        reward = -((action - 1) ** 2).squeeze(1) / 2
        learner.update(Batch(state, action, reward, state, torch.ones(256)))
    return learner


def test_f5_the_trained_energy_guides_as_the_closed_form_does(toy: AEPO) -> None:
    generator = torch.Generator().manual_seed(1)
    action, t = (
        (0.3 + 0.5 * torch.randn(2000, 1, generator=generator)).clamp(-1, 1),
        torch.rand(2000, generator=generator),
    )
    t = t.clamp_min(1e-3)
    alpha, sigma = (level[:, None] for level in toy.vp.levels(t))
    x, state = alpha * action + sigma * torch.randn(2000, 1, generator=generator), torch.zeros(2000, 1)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return toy.behaviour(x, t, state)

    posterior = toy.table.posterior(toy.options.posterior)
    slope = CriticMean(toy.critics.critic_target, state).slope
    direct = closed_form_guide(predict, slope, posterior.variance, toy.vp, 2.0, 1.0, mean=posterior.mean)(x, t)
    learnt = energy_guide(predict, lambda x, t: toy.energy(x, t, state), toy.vp, 1.0)(x, t)
    plain = predict(x, t)
    pair = torch.stack([((plain - guided) / sigma).squeeze(1).detach() for guided in (learnt, direct)])
    assert torch.corrcoef(pair)[0, 1] > 0.95
    assert 0.9 < pair[0].mean() / pair[1].mean() < 1.1


def test_a_trained_policy_moves_towards_the_guided_law(toy: AEPO) -> None:
    """Of the data's clipped actions, weighted by exp(2 Q): mean .514, deviation .367, from .282 and .465. The closed
    form alone falls short of the mean by .03 (F3)."""
    policy = Policy.from_blob(toy.policy_blob(0))
    acted = torch.from_numpy(policy.act(torch.zeros(4000, 1)))
    assert acted.mean() == pytest.approx(0.514, abs=0.12)
    assert acted.mean() > 0.38
    assert acted.std() == pytest.approx(0.367, abs=0.05)

"""Policies that are known by their draws alone, such as diffusion policies, in rollouts and in DyDiff: their own actions
are taken, not the one of their deterministic path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from dydiff_cases import A, L, S, make

from raydiff.config import Config, DyDiffConfig, RolloutConfig
from raydiff.dynamics.ensemble import GaussianEnsemble
from raydiff.generators.rollout import RolloutGenerator
from raydiff.guidance.api import DrawnActions

STARTS = np.random.default_rng(0).normal(0, 0.1, (20, S)).astype(np.float32)


class TwoActions:
    """Acts by +.5 or -.5 plus a small part of the state, by the sign of its noise; its path lies between the two."""

    deterministic, noise_size = True, A + 1

    def distribution(self, observation):
        return 0.1 * observation[..., :A], None

    def draw(self, observation, noise):
        assert noise.shape == (*observation.shape[:-1], A + 1)
        return 0.1 * observation[..., :A] + 0.5 * noise[..., :1].sign()


def side(trajectories):
    """+-1 for each step, and what is left of its actions."""
    state, action = trajectories.observation[:, :-1], trajectories.action[:, :-1]
    rest = action - 0.1 * state[..., :A]
    sign = np.sign(rest[..., :1])
    np.testing.assert_allclose(rest, np.broadcast_to(0.5 * sign, rest.shape), atol=1e-5)
    return sign


def test_it_is_one() -> None:
    assert isinstance(TwoActions(), DrawnActions)


def test_rollouts_draw_an_action_in_every_step() -> None:
    ensemble = GaussianEnsemble(S, A, 2, (), torch.Generator().manual_seed(0))
    generator = RolloutGenerator(
        ensemble.eval(), None, STARTS, "HalfCheetah-v4", Config(rollout=RolloutConfig(horizon=4))
    )
    made = generator.generate(TwoActions(), 200, (1,))
    sign = side(made.trajectories)
    assert abs(sign.mean()) < 0.1
    assert (sign[:, 0] != sign[:, 1]).mean() == pytest.approx(0.5, abs=0.15)
    assert made.agreement.deviation == pytest.approx(0.25, abs=1e-4)
    assert np.array_equal(made.trajectories.rows, generator.generate(TwoActions(), 200, (1,)).trajectories.rows)


@pytest.mark.parametrize("refined", [False, True])
def test_dydiff_keeps_the_noise_of_a_row_through_its_iterations(refined) -> None:
    """After L - 1 iterations of an exact model states follow actions; were the draws other ones in each, they would
    not."""
    generator = make(dydiff=DyDiffConfig(iterations=L - 1))
    made = generator.generate(TwoActions(), 64, (1,))
    if refined:
        made = generator.refine(made.trajectories, TwoActions(), (2,))
    assert abs(side(made.trajectories).mean()) < 0.25
    again = generator._draw(
        torch.from_numpy(made.trajectories.observation[:, 0].copy()),
        torch.from_numpy(made.trajectories.action.copy()),
        torch.Generator().manual_seed(5),
    )
    states = torch.from_numpy(made.trajectories.observation.copy())
    torch.testing.assert_close(again[:, :-1], states[:, :-1], rtol=0, atol=1e-4)


def test_dydiff_without_sampled_actions_takes_the_path() -> None:
    made = make(dydiff=DyDiffConfig(sample_actions=False)).generate(TwoActions(), 16, (1,))
    assert made.agreement.deviation < 1e-10

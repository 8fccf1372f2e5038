"""The score of a diffusion policy's own law with noise added, and its draws, against Gaussians in closed form."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from raydiff.agents.action_guidance import energy_guide
from raydiff.agents.diffusion_policy import DiffusionPolicy, DiffusionPolicySpec, noise_widths
from raydiff.agents.noise_network import NetworkSpec, NoiseNetwork
from raydiff.diffusion.vp import VP, Predict

S, A = 3, 2
GAIN = torch.tensor([[0.1, -0.05], [0.05, 0.02], [-0.02, 0.1]])
CENTRE, DEVIATION = torch.tensor([0.2, -0.1]), 0.3
MEAN, STD = torch.full((S,), 2.0), torch.full((S,), 0.5)


class GaussianActions(DiffusionPolicy):
    """Predicts the noise of ``N(CENTRE + s GAIN, DEVIATION^2)`` exactly, ``s`` being the normalised state; with a
    ``slope`` it is guided by the exact intermediate energy of the value ``slope . a``, to the mean plus
    ``DEVIATION^2 slope`` (section F.3)."""

    slope: Tensor | None = None
    asked = 0

    def mean(self, observation: Tensor) -> Tensor:
        shift = 0 if self.slope is None else DEVIATION**2 * self.slope
        return CENTRE + (observation - MEAN) / STD @ GAIN + shift

    def _predict(self, state: Tensor) -> Predict:
        def predict(x: Tensor, t: Tensor) -> Tensor:
            self.asked += len(x)
            alpha, sigma = (level[:, None] for level in self.vp.levels(t))
            return sigma * (x - alpha * (CENTRE + state @ GAIN)) / (alpha**2 * DEVIATION**2 + sigma**2)

        def energy(x: Tensor, t: Tensor) -> Tensor:
            alpha, sigma = (level[:, None] for level in self.vp.levels(t))
            return (x @ self.slope) * (alpha * DEVIATION**2 / (alpha**2 * DEVIATION**2 + sigma**2))[:, 0]

        return predict if self.slope is None else energy_guide(predict, energy, self.vp, 1.0)


def policy(schedule: str = "continuous", levels: int = 1, solver: str = "dpmpp_2m", steps: int = 15) -> GaussianActions:
    network = NetworkSpec(inputs=A, condition=S, hidden=(4, 4))
    spec = DiffusionPolicySpec(
        observation_size=S, action_size=A, network=network, schedule=schedule, levels=levels, solver=solver, steps=steps
    )
    return GaussianActions(spec, torch.cat([MEAN, STD, NoiseNetwork(network).flat.detach()]))


def rows(*shape: int) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    state = MEAN + STD * torch.randn(*shape, S, generator=random)
    return state, torch.empty(*shape, A).uniform_(-0.9, 0.9, generator=random)


@pytest.mark.parametrize(("schedule", "levels"), [("continuous", 1), ("discrete", 1000), ("cosine", 1000)])
@pytest.mark.parametrize("width", [0.03, 0.2, 1.0, 3.0])
@pytest.mark.parametrize("guided", [False, True])
def test_score_of_a_gaussian_with_noise_added(schedule: str, levels: int, width: float, guided: bool) -> None:
    target, (observation, action) = policy(schedule, levels), rows(7, 4)
    target.slope = torch.tensor([0.8, -1.0]) if guided else None
    with torch.inference_mode():  # where generators ask
        score = target.blurred_score(observation, action, width)
    exact = (target.mean(observation) - action) / (DEVIATION**2 + width**2)
    torch.testing.assert_close(score, exact, rtol=2e-3 if levels == 1 else 3e-2, atol=2e-3)
    assert target.asked == 28  # one prediction in each row


def test_every_row_has_a_width_of_its_own() -> None:
    target, (observation, action) = policy(), rows(5)
    widths = torch.tensor([0.02, 0.1, 0.3, 1.0, 20.0])[:, None]
    score = target.blurred_score(observation, action, widths)
    for row, width in enumerate(widths):
        alone = target.blurred_score(observation[row : row + 1], action[row : row + 1], width)
        torch.testing.assert_close(score[row : row + 1], alone)


@pytest.mark.parametrize(("schedule", "levels"), [("continuous", 1), ("discrete", 5), ("cosine", 20)])
def test_widths_are_those_of_the_noise_levels(schedule: str, levels: int) -> None:
    times, widths = noise_widths(VP(schedule, levels))
    assert (widths.diff() > 0).all()
    alpha, sigma = VP(schedule, levels).levels(times)
    torch.testing.assert_close(widths, sigma / alpha)
    if levels > 1:
        assert times.tolist() == list(range(1, levels + 1))
    else:
        assert (times[0], times[-1]) == (1e-3, 1.0)
        assert (widths[1:] / widths[:-1]).max() < 1.002


@pytest.mark.parametrize(("asked", "level"), [(0.001, 0), (0.3, 0), (0.7, 0), (0.8, 1), (1e3, -1)])
def test_between_few_levels_the_nearest_answers(asked: float, level: int) -> None:
    target, (observation, action) = policy("discrete", 5, steps=5), rows(3)
    width = noise_widths(target.vp)[1][level].item()
    exact = (target.mean(observation) - action) / (DEVIATION**2 + width**2)
    torch.testing.assert_close(target.blurred_score(observation, action, asked), exact, rtol=1e-4, atol=1e-5)


def test_denoised_actions_stay_within_the_bounds() -> None:
    target, (observation, action) = policy(), rows(6)
    target.slope = torch.tensor([30.0, 30.0])  # to means beyond 1
    score = target.blurred_score(observation, action, 0.5)
    torch.testing.assert_close(score, (1 - action) / 0.25, rtol=2e-3, atol=1e-3)


def test_pairs_of_action_and_weight_have_no_score_of_the_action() -> None:
    network = NetworkSpec(inputs=A + 1, condition=S, hidden=(4, 4))
    spec = DiffusionPolicySpec(
        observation_size=S, action_size=A, network=network, schedule="discrete", levels=15, solver="ddpm", steps=15,
        guidance="weight", weight_range=(0.3, 0.7),
    )  # fmt: skip
    pairs = DiffusionPolicy(spec, torch.cat([MEAN, STD, NoiseNetwork(network).flat.detach()]))
    with pytest.raises(ValueError, match="pairs of action and weight"):
        pairs.blurred_score(*rows(2), 0.2)
    assert pairs.draw(rows(2)[0], torch.randn(2, pairs.noise_size)).shape == (2, A)


@pytest.mark.parametrize(("solver", "levels", "steps"), [("ddpm", 5, 5), ("ddpm", 15, 15), ("dpmpp_2m_sde", 1000, 15)])
def test_draws_are_spread_as_the_policy_s_own(solver: str, levels: int, steps: int) -> None:
    target = policy("discrete", levels, solver, steps)
    states = MEAN.expand(20_000, S)
    drawn = target.draw(states, torch.randn(20_000, A, generator=torch.Generator().manual_seed(1)))
    own = target.act(states, deterministic=False, generator=torch.Generator().manual_seed(2))
    np.testing.assert_allclose(drawn.mean(0), own.mean(0), atol=0.01)
    np.testing.assert_allclose(drawn.std(0), own.std(0), rtol=0.2)
    assert torch.equal(drawn, target.draw(states, torch.randn(20_000, A, generator=torch.Generator().manual_seed(1))))


def test_draws_keep_the_axes_of_observations() -> None:
    target, (observation, _) = policy(), rows(4, 3)
    noise = torch.randn(4, 3, A, generator=torch.Generator().manual_seed(0))
    drawn = target.draw(observation, noise)
    assert drawn.shape == (4, 3, A)
    for i, j in itertools.product(range(4), range(3)):
        torch.testing.assert_close(drawn[i, j], target.draw(observation[i, j][None], noise[i, j][None])[0])

"""The toy of the posterior study: its exact laws against integration and automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from raydiff.diffusion.vp import VP
from raydiff.studies.aepo_toy import TOYS, Mixture, Toy

CONTINUOUS = VP("continuous")
NAMES = tuple(TOYS)
UNEVEN = Mixture([0.2, 0.8], [-0.5, 0.4], [0.09, 0.04])


def grid(points: int = 4001) -> Tensor:
    return torch.linspace(-4, 4, points, dtype=torch.float64)[:, None]


def clean(law: Mixture, x: Tensor) -> Tensor:
    """Shares of the grid's points under a law without noise."""
    return law.log_density(x, x.new_ones(len(x)), x.new_zeros(len(x))).softmax(0)


def levels(x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    return CONTINUOUS.levels(torch.full((len(x),), t, dtype=x.dtype))


@pytest.mark.parametrize("t", [0.001, 0.3, 1.0])
@pytest.mark.parametrize("law", [*TOYS.values(), UNEVEN])
def test_the_noise_network_is_the_score_of_the_density(law: Mixture, t: float) -> None:
    x = grid(161).requires_grad_()
    alpha, sigma = levels(x, t)
    (score,) = torch.autograd.grad(law.log_density(x, alpha, sigma).sum(), x)
    torch.testing.assert_close(law.noise(x, alpha, sigma), -sigma[:, None] * score)


@pytest.mark.parametrize("law", [*TOYS.values(), UNEVEN])
def test_mean_and_variance_are_those_of_the_density_of_the_draws_and_of_the_quantiles(law: Mixture) -> None:
    x, draws = grid()[:, 0], law.draw(40_000, torch.Generator().manual_seed(0)).double()[:, 0]
    share = clean(law, grid())
    for mean, variance, tolerance in (
        ((share * x).sum(), (share * x**2).sum() - (share * x).sum() ** 2, 1e-9),
        (draws.mean(), draws.var(), 0.02),
        (law.quantiles(4000).mean(), law.quantiles(4000).var(), 1e-3),
    ):
        assert float(mean) == pytest.approx(law.mean, abs=tolerance)
        assert float(variance) == pytest.approx(law.variance, abs=tolerance)


@pytest.mark.parametrize("beta", [0.0, 1.0, 4.0])
@pytest.mark.parametrize("behaviour", [*TOYS.values(), UNEVEN])
def test_the_policy_is_behaviour_times_the_exponential_of_the_value(behaviour: Mixture, beta: float) -> None:
    toy, x = Toy(behaviour, beta, limit=10.0), grid()
    expected = (clean(behaviour, x).log() + beta * toy.value(x)).softmax(0)
    torch.testing.assert_close(clean(toy.policy, x), expected, atol=1e-12, rtol=1e-6)


@pytest.mark.parametrize(("beta", "mean", "std"), [(1.0, 0.440, 0.447), (2.0, 0.533, 0.408), (8.0, 0.767, 0.289)])
def test_the_policy_of_one_mode_is_that_of_section_f3(beta: float, mean: float, std: float) -> None:
    policy = Toy(TOYS["one-mode"], beta).policy
    assert (policy.mean, policy.variance**0.5) == (pytest.approx(mean, abs=1e-3), pytest.approx(std, abs=1e-3))


def test_the_energy_of_one_mode_is_that_of_section_f3() -> None:
    """``-beta (mu - c)^2 / 2 / (1 + beta V)`` but for a constant."""
    toy, x = Toy(TOYS["one-mode"], 2.0), grid(41)
    alpha, sigma = levels(x, 0.4)
    mu = (x - sigma[:, None] * toy.behaviour.noise(x, alpha, sigma)) / alpha[:, None]
    variance = toy.behaviour.posterior_variance(x, alpha, sigma)
    expected = -((mu[:, 0] - 1) ** 2) / (1 + 2 * variance)
    off = toy.energy(x, alpha, sigma) - expected
    torch.testing.assert_close(off, off[:1].expand_as(off))


@pytest.mark.parametrize("name", NAMES)
def test_guidance_is_the_gradient_of_the_energy(name: str) -> None:
    toy, x = Toy(TOYS[name], 2.0), grid(161).requires_grad_()
    alpha, sigma = levels(x, 0.5)
    (gradient,) = torch.autograd.grad(toy.energy(x, alpha, sigma).sum(), x)
    torch.testing.assert_close(toy.guidance(x, alpha, sigma), sigma[:, None] * gradient)


@pytest.mark.parametrize(
    ("name", "t", "variance"), [("two-modes", 0.5, 0.387), ("two-modes", 0.8, 0.3996), ("one-mode", 1.0, 0.25)]
)
def test_the_mean_posterior_variance_is_that_of_section_f2(name: str, t: float, variance: float) -> None:
    assert Toy(TOYS[name], 1.0).variance(CONTINUOUS, t) == pytest.approx(variance, abs=1e-3)


def test_the_value_is_asked_within_its_limit_and_its_gradient_passes() -> None:
    toy, action = Toy(TOYS["one-mode"], 1.0, limit=2.0), torch.tensor([[-3.0], [-2.0], [0.5], [7.0]])
    torch.testing.assert_close(toy.value(action), torch.tensor([-4.5, -4.5, -0.125, -0.5]))
    torch.testing.assert_close(toy.slope(action), torch.tensor([[3.0], [3.0], [0.5], [-1.0]]))
    assert all(clean(law, grid())[grid()[:, 0].abs() > 2].sum() < 1e-3 for law in TOYS.values())

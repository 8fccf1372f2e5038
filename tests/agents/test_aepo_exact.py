"""AEPO's closed form against laws where the guided one is known: linear and quadratic values (F2 to F4, F6)."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from raydiff.agents.action_guidance import closed_form_guide, energy_guide
from raydiff.agents.closed_form import closed_form_energy, closed_form_gradient
from raydiff.diffusion.vp import VP, Predict, sample

VARIANCE, MEAN, LINEAR = 0.25, 0.3, 0.8
CONTINUOUS = VP(kind="continuous")
POINTS = 1024
STEPS = 400


def behaviour(x: Tensor, t: Tensor) -> Tensor:
    """The exact noise network of N(.3, .25) in every direction."""
    alpha, sigma = (level[:, None] for level in CONTINUOUS.levels(t))
    return sigma * (x - alpha * MEAN) / (alpha**2 * VARIANCE + sigma**2)


def posterior_variance(t: Tensor) -> Tensor:
    alpha, sigma = CONTINUOUS.levels(t)
    return VARIANCE * sigma**2 / (alpha**2 * VARIANCE + sigma**2)


def linear_slope(action: Tensor) -> Tensor:
    return torch.full_like(action, LINEAR)


def quadratic_slope(action: Tensor) -> Tensor:
    """Of ``-(a - 1)^2 / 2``."""
    return 1 - action


def normal_noise(actions: int = 1) -> Tensor:
    """One entry: equally likely quantiles, which need no luck. More: draws."""
    if actions > 1:
        return torch.randn(4096, actions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.special.ndtri((torch.arange(POINTS, dtype=torch.float64) + 0.5) / POINTS)[:, None]


def law(predict: Predict, actions: int = 1) -> tuple[float, float]:
    """Mean and standard deviation of what the probability flow makes in many small steps."""
    action = sample(predict, normal_noise(actions), CONTINUOUS, "ddim", STEPS)
    return float(action.mean()), float(action.std(0).mean())


@pytest.mark.parametrize(("beta", "mean"), [(1.0, 0.5), (3.0, 0.9)])
@pytest.mark.parametrize("damped", [False, True])
def test_f2_a_linear_value_shifts_the_mean_and_keeps_the_width(beta: float, mean: float, damped: bool) -> None:
    guided = closed_form_guide(behaviour, linear_slope, posterior_variance, CONTINUOUS, beta, 1.0, damped=damped)
    assert law(guided) == (pytest.approx(mean, abs=0.01), pytest.approx(0.5, abs=0.01))


@pytest.mark.parametrize(
    ("beta", "mean", "std"),
    [(1.0, 0.436, 0.446), (2.0, 0.507, 0.412), (4.0, 0.503, 0.387), (6.0, 0.315, 0.412), (8.0, -0.135, 0.498)],
)
def test_f3_a_quadratic_value_has_the_published_forms_errors(beta: float, mean: float, std: float) -> None:
    """Up to guiding away from the optimum where beta times curvature times variance is above 1."""
    guided = closed_form_guide(behaviour, quadratic_slope, posterior_variance, CONTINUOUS, beta, 1.0)
    assert law(guided) == (pytest.approx(mean, abs=0.01), pytest.approx(std, abs=0.01))


@pytest.mark.parametrize("beta", [1.0, 2.0, 4.0, 6.0, 8.0])
def test_f3_the_damped_form_is_exact_for_a_quadratic_value(beta: float) -> None:
    precision = 1 / VARIANCE + beta
    guided = closed_form_guide(behaviour, quadratic_slope, posterior_variance, CONTINUOUS, beta, 1.0, damped=True)
    mean, std = law(guided)
    assert mean == pytest.approx((MEAN / VARIANCE + beta) / precision, abs=0.01)
    assert std == pytest.approx(precision**-0.5, abs=0.01)


def test_f3_guidance_points_away_from_the_optimum_where_the_bound_is_broken() -> None:
    mean, variance = torch.tensor([[0.2]]), torch.tensor([[0.2]])
    for beta in (4.9, 5.1):
        gradient = closed_form_gradient(quadratic_slope, mean, variance, beta)
        assert (gradient > 0).item() == (beta * 0.2 < 1)
        assert closed_form_gradient(quadratic_slope, mean, variance, beta, damped=True) > 0


@pytest.mark.parametrize("damped", [False, True])
def test_the_gradient_is_that_of_the_energy(damped: bool) -> None:
    """For an anisotropic quadratic with the curvature along the gradient held constant: of the damped form only in the
    isotropic case."""
    scale = torch.tensor([1.0, 1.0]) if damped else torch.tensor([0.5, 2.0])
    mean = torch.randn(16, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    variance = torch.linspace(0.01, 0.3, 16, dtype=torch.float64)
    target = torch.tensor([0.5, -0.5], dtype=torch.float64)

    def value(action: Tensor) -> Tensor:
        return -0.5 * (scale * (action - target) ** 2).sum(-1)

    def slope(action: Tensor) -> Tensor:
        return -scale * (action - target)

    energy = closed_form_energy(value, slope, mean, variance, 3.0, damped=damped)
    expected = torch.autograd.grad(energy.sum(), mean)[0]
    found = closed_form_gradient(slope, mean.detach(), variance[:, None], 3.0, damped=damped)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_the_energy_is_that_of_equation_25() -> None:
    mean, variance = torch.tensor([[0.1, 0.4]]), torch.tensor([0.2])
    energy = closed_form_energy(lambda a: (a**3).sum(-1), lambda a: 3 * a**2, mean, variance, 2.0)
    expected = 2 * (0.001 + 0.064) + 0.5 * 4 * 0.2 * (0.03**2 + 0.48**2)
    torch.testing.assert_close(energy, torch.tensor([expected]))


def test_f4_the_point_of_expansion_matters_with_the_square_of_its_distance() -> None:
    mean = torch.rand(64, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    variance = torch.full((64,), 0.1, dtype=torch.float64)

    def energy(offset: float) -> Tensor:
        value = lambda a: a.sin().sum(-1) - (a**2).sum(-1)  # noqa: E731
        return closed_form_energy(value, lambda a: a.cos() - 2 * a, mean, variance, 2.0, offset=offset)

    near, far = (energy(offset) - energy(0.0) for offset in (1e-3, 1e-2))
    assert 1e-7 < near.abs().max() < 1e-5
    torch.testing.assert_close(far / near, torch.full_like(near, 100.0), rtol=0.02, atol=0)


@pytest.mark.parametrize(("actions", "mean", "std"), [(1, 0.428, 0.576), (6, 0.809, 0.425)])
def test_rescaling_undoes_guidance_the_more_the_fewer_actions_there_are(actions: int, mean: float, std: float) -> None:
    guided = closed_form_guide(behaviour, linear_slope, posterior_variance, CONTINUOUS, 3.0, 1.0, rescale=True)
    assert law(guided, actions) == (pytest.approx(mean, abs=0.01), pytest.approx(std, abs=0.015))


@pytest.mark.parametrize("form", ["network", "direct"])
def test_f6_rescaling_keeps_the_length_of_every_prediction(form: str) -> None:
    x = torch.randn(128, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    t = torch.linspace(1e-3, 1.0, 128, dtype=torch.float64)

    def guided(scale: float, rescale: bool) -> Tensor:
        if form == "network":
            return energy_guide(behaviour, lambda x, t: (t[:, None] * x).sin().sum(-1), CONTINUOUS, scale, rescale)(
                x, t
            )
        return closed_form_guide(
            behaviour, quadratic_slope, posterior_variance, CONTINUOUS, 3.0, scale, rescale=rescale
        )(x, t)

    plain = behaviour(x, t)
    assert torch.equal(guided(0.0, False), plain)
    assert torch.equal(guided(0.0, True), plain)
    free, held = guided(2.0, False), guided(2.0, True)
    torch.testing.assert_close(held.norm(dim=-1), plain.norm(dim=-1), rtol=1e-6, atol=0)
    torch.testing.assert_close(held / held.norm(dim=-1, keepdim=True), free / free.norm(dim=-1, keepdim=True))
    assert (free - plain).norm() > 1e-2
    assert not any(found.requires_grad for found in (free, held))


def test_an_energy_guides_as_its_gradient_says() -> None:
    x, t = torch.randn(8, 2), torch.full((8,), 0.5)
    _, sigma = CONTINUOUS.levels(t)
    guided = energy_guide(behaviour, lambda x, t: x[:, 0] * 3 * t, CONTINUOUS, 2.0)(x, t)
    expected = behaviour(x, t) - torch.stack([2 * sigma * 1.5, torch.zeros(8)], 1)
    torch.testing.assert_close(guided, expected)


def test_guidance_works_where_generators_sample() -> None:
    """They run in inference mode."""
    guided = closed_form_guide(behaviour, quadratic_slope, posterior_variance, CONTINUOUS, 1.0, 1.0)
    with torch.inference_mode():
        inside = sample(guided, torch.zeros(3, 1), CONTINUOUS, "dpmpp_2m", 5)
    torch.testing.assert_close(inside.clone(), sample(guided, torch.zeros(3, 1), CONTINUOUS, "dpmpp_2m", 5))
    assert math.isfinite(float(inside.sum()))

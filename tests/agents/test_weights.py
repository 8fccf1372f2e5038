"""Weights by advantage: their limits, their shapes, and where they come from (section E.4, test E7)."""

from __future__ import annotations

import math

import pytest
import torch

from raydiff.agents.value_critics import linex_loss
from raydiff.agents.weights import (
    action_weight,
    expectile_weight,
    exponential_weight,
    linex_weight,
    smooth_expectile_weight,
)
from raydiff.config_learner import SWGConfig

ADVANTAGE = torch.linspace(-3, 3, 601, dtype=torch.float64)


@pytest.mark.parametrize("tau", [0.6, 0.7, 0.9])
def test_smooth_expectile_limits(tau: float) -> None:
    """Test E7: one half without advantage, monotone, within ``(1 - tau, tau)``, and hard when steep."""
    weight = smooth_expectile_weight(ADVANTAGE, tau, 3.0)
    assert smooth_expectile_weight(torch.zeros(1), tau, 3.0).item() == pytest.approx(0.5, abs=1e-7)
    assert (weight.diff() > 0).all()
    assert weight.min() > 1 - tau
    assert weight.max() < tau
    ends = smooth_expectile_weight(torch.tensor([-1e6, 1e6], dtype=torch.float64), tau, 3.0)
    assert ends.tolist() == pytest.approx([1 - tau, tau], abs=1e-12)
    away = ADVANTAGE[ADVANTAGE.abs() > 0.1]
    steep = smooth_expectile_weight(away, tau, 1e4)
    torch.testing.assert_close(steep, expectile_weight(away, tau))
    torch.testing.assert_close(weight + weight.flip(0), torch.ones_like(weight))


def test_smooth_expectile_is_the_published_mixture() -> None:
    step = 1 / (1 + torch.exp(-3.0 * ADVANTAGE))
    torch.testing.assert_close(smooth_expectile_weight(ADVANTAGE, 0.9, 3.0), step * 0.9 + (1 - step) * 0.1)


def test_hard_expectile_takes_two_values() -> None:
    weight = expectile_weight(torch.tensor([-2.0, -1e-6, 0.0, 1e-6, 2.0]), 0.7)
    torch.testing.assert_close(weight, torch.tensor([0.3, 0.3, 0.3, 0.7, 0.7]))


@pytest.mark.parametrize("alpha", [0.5, 1.0, 3.0])
def test_linex_is_the_gradient_over_the_advantage(alpha: float) -> None:
    """``|f'(u)| / |u|`` of ``f(u) = exp(alpha u) - alpha u``, with its limit at zero and no loss of digits near it."""
    weight = linex_weight(ADVANTAGE, alpha)
    far = ADVANTAGE.abs() > 1e-3
    slope = alpha * (torch.exp(alpha * ADVANTAGE) - 1)
    torch.testing.assert_close(weight[far], (slope.abs() / ADVANTAGE.abs())[far])
    assert linex_weight(torch.zeros(1), alpha).item() == pytest.approx(alpha**2)
    for tiny in (1e-12, 1e-6, -1e-6, 1e-4):  # in single precision
        expected = alpha**2 * (1 + alpha * tiny / 2)
        assert linex_weight(torch.tensor([tiny]), alpha).item() == pytest.approx(expected, rel=1e-6)
    assert (weight > 0).all()
    assert (weight.diff() > 0).all()


def test_linex_weight_belongs_to_the_linex_regression() -> None:
    """The weight times the advantage is the regression's own gradient, where its exponent is not clipped."""
    alpha, advantage = 0.5, torch.linspace(-2, 2, 41, dtype=torch.float64).requires_grad_()
    (gradient,) = torch.autograd.grad(linex_loss(advantage, alpha).sum(), advantage)
    torch.testing.assert_close(alpha * gradient, (linex_weight(advantage, alpha) * advantage).detach())
    beyond = torch.tensor([50.0], requires_grad=True)
    (clipped,) = torch.autograd.grad(linex_loss(beyond, alpha).sum(), beyond)
    assert clipped.item() == pytest.approx(5.0)


def test_exponential() -> None:
    torch.testing.assert_close(exponential_weight(ADVANTAGE, 3.0), torch.exp(3.0 * ADVANTAGE))


@pytest.mark.parametrize("name", ["expectile", "smooth_expectile", "exponential", "linex"])
def test_configured_weights_are_finite_and_positive(name: str) -> None:
    options = SWGConfig(weight=name)
    extreme = torch.tensor([-1e30, -1e4, -5.0, 0.0, 5.0, 1e4, 1e30])
    weight = action_weight(extreme, options)
    assert weight.dtype == torch.float32
    assert torch.isfinite(weight).all()
    assert (weight > 0).all()
    assert (weight.diff() >= 0).all()
    bounds = (options.weight_min, options.weight_max) if name in ("exponential", "linex") else (0.3, 0.7)
    assert (weight[0].item(), weight[-1].item()) == pytest.approx(bounds)


def test_configured_weights_use_their_settings() -> None:
    one = torch.ones(1)
    assert action_weight(one, SWGConfig(weight="expectile", expectile=0.9)).item() == pytest.approx(0.9)
    smooth = 0.9 / (1 + math.exp(-2)) + 0.1 / (1 + math.exp(2))
    assert action_weight(one, SWGConfig(expectile=0.9, sharpness=2.0)).item() == pytest.approx(smooth)
    exponential = SWGConfig(weight="exponential", exponential_temperature=2.0)
    assert action_weight(one, exponential).item() == pytest.approx(math.exp(2))
    assert action_weight(one, SWGConfig(weight="linex", linex_alpha=2.0)).item() == pytest.approx(2 * math.expm1(2))

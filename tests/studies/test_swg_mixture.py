"""The toy laws of self-weighted guidance: their closed forms against densities, samples and gradients."""

from __future__ import annotations

import math

import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from raydiff.agents.action_guidance import weight_guide
from raydiff.diffusion.vp import VP, sample
from raydiff.studies.swg_mixture import (
    EXTENT,
    FAR,
    TOYS,
    Mixture,
    eight_gaussians,
    rings,
    sliced_distance,
    total_variation,
    two_spirals,
)

LAWS = pytest.mark.parametrize("law", [make() for make in TOYS.values()], ids=list(TOYS))


def log_density(law: Mixture, beta: float, unit: float, x: Tensor, alpha: float, sigma: float) -> Tensor:
    """Of noisy pairs ``[B, 3]``, but for a constant: each Gaussian is one of pairs, with no spread in its weight."""
    weights = unit * law.weights(beta)
    spread = alpha**2 * law.deviation**2 + sigma**2
    point = (x[:, None, :2] - alpha * law.centres).square().sum(-1) / (2 * spread)
    weight = (x[:, 2:] - alpha * weights).square() / (2 * sigma**2)
    return (-point - weight).logsumexp(1)


@LAWS
@pytest.mark.parametrize("t", [1, 8, 20])
def test_the_perfect_prediction_is_the_score(law: Mixture, t: int) -> None:
    """``eps = -sigma`` times the gradient of the logarithm of the noisy density (section 0.2)."""
    vp, times = VP("cosine", 20), torch.full((32,), float(t), dtype=torch.float64)
    law = Mixture(law.centres.double(), law.energies.double(), law.modes, law.deviation)
    alpha, sigma = (level[0].item() for level in vp.levels(times))
    generator = torch.Generator().manual_seed(t)
    which = torch.randint(len(law.centres), (32,), generator=generator)
    clean = torch.cat([law.centres[which], 1.5 * law.weights(4.0)[which, None]], 1)
    x = (alpha * clean + sigma * torch.randn(32, 3, dtype=torch.float64, generator=generator)).requires_grad_()
    (score,) = torch.autograd.grad(log_density(law, 4.0, 1.5, x, alpha, sigma).sum(), x)
    torch.testing.assert_close(law.predict(4.0, vp, 1.5)(x, times).detach(), -sigma * score, rtol=1e-6, atol=1e-8)


@LAWS
def test_what_is_known_of_every_toy(law: Mixture) -> None:
    points, _ = law.draw(4000, torch.Generator().manual_seed(0))
    assert (points.abs() > EXTENT).float().mean() < 2e-3
    assert points.std().item() == pytest.approx(1, abs=0.15)
    assert law.energies.min() >= 0
    assert law.energies.max() <= 1
    assert law.weights(0.0).eq(1).all()
    data = law.shares(0.0)
    torch.testing.assert_close(data, law.modes.bincount() / len(law.modes))
    torch.testing.assert_close(law.shares(3.0, 2.0), law.shares(6.0))
    torch.testing.assert_close(law.shares(9.0, 0.0), data)


def test_shares_of_the_eight_gaussians_and_of_the_rings() -> None:
    torch.testing.assert_close(eight_gaussians().shares(3.0), (3 * torch.arange(8) / 7).softmax(0))
    torch.testing.assert_close(rings().shares(3.0), (3 * torch.tensor([2 / 3, 1 / 3, 1.0, 0.0])).softmax(0))


@LAWS
def test_draws_have_the_law(law: Mixture) -> None:
    points, which = law.draw(4000, torch.Generator().manual_seed(0), beta=2.0)
    counts, shares = law.modes[which].bincount(minlength=len(law.shares(2.0))), law.shares(2.0).double()
    assert chisquare(counts.numpy(), (shares / shares.sum() * 4000).numpy()).pvalue > 1e-3
    assert (points - law.centres[which]).std().item() == pytest.approx(law.deviation, rel=0.05)
    nearest, distance = law.nearest(points)
    torch.testing.assert_close(distance, (points - law.centres[nearest]).norm(dim=1) / law.deviation)
    assert (distance > FAR).float().mean() < 2e-3


def test_guided_by_perfect_predictions_the_sampler_has_the_law_of_the_weights() -> None:
    """At a scale of 1; and not at a scale of 3, where the law is none of a power of the weights (section E.2)."""
    vp, beta, n = VP("cosine", 100), 5.0, 1500

    def sampled(law: Mixture, scale: float) -> Tensor:
        floor = law.weights(beta).min().item() / 2
        generator = torch.Generator().manual_seed(0)
        guided = weight_guide(law.predict(beta, vp), vp, scale, floor)
        return sample(guided, torch.randn(n, 3, generator=generator), vp, "ddpm", 100, generator=generator)[:, :2]

    law, other = eight_gaussians(), two_spirals()
    assert total_variation(law, sampled(law, 1.0), law.shares(beta)) < 0.04
    assert total_variation(law, sampled(law, 0.0), law.shares(0.0)) < 0.04
    assert total_variation(other, sampled(other, 3.0), other.shares(beta, 3.0)) > 0.1
    assert total_variation(other, other.draw(n, torch.Generator(), beta, 3.0)[0], other.shares(beta, 3.0)) < 0.06


def test_total_variation() -> None:
    law = eight_gaussians()
    points = law.centres[[0, 0, 0, 1]]
    shares = torch.tensor([0.25, 0.25, 0.5, 0, 0, 0, 0, 0])
    assert total_variation(law, points, shares) == pytest.approx(0.5)


def test_sliced_distance() -> None:
    """Of a shift by ``v``: the mean of ``|v| |cos|`` over directions, ``2 |v| / pi``; of a set to itself, repeated: none."""
    points = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
    moved = (points + torch.tensor([0.3, -0.4])).repeat(3, 1)
    assert sliced_distance(points, moved) == pytest.approx(2 * 0.5 / math.pi, rel=1e-3)
    assert sliced_distance(points, points.repeat(2, 1)) == pytest.approx(0, abs=1e-6)

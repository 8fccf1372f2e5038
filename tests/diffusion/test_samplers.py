"""Sampler against exact denoisers, in float64 (sections A.3 and A.7: A2 to A5, A7)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from raydiff.diffusion.edm import karras_sigmas
from raydiff.diffusion.exact import AtomDenoiser, CovarianceDenoiser, GaussianDenoiser, MixtureDenoiser
from raydiff.diffusion.samplers import Churn, hold, nfe, sample_heun

PGD = Churn(80, 0.05, 50, 1.003)
DYDIFF = Churn(60, 0.370, 52.212, 1.002)
SIGMA_MAX = 80.0


def sigmas(steps):
    return karras_sigmas(steps, 0.002, SIGMA_MAX, 7.0)


def start(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return SIGMA_MAX * torch.randn(*shape, generator=generator, dtype=torch.float64), generator


def recursion_std(steps, std, churn, levels=None):
    """Output standard deviation on N(0, std^2): the map is affine, so the variance obeys a scalar recursion."""
    levels = sigmas(steps).tolist() if levels is None else levels
    variance = levels[0] ** 2
    for sigma, target in pairwise(levels):
        level = sigma * (1 + churn.gamma(sigma, steps))

        def rate(t):
            return (1 - std**2 / (std**2 + t**2)) / t

        euler = 1 + (target - level) * rate(level)
        step = euler if target == 0 else 1 + (target - level) / 2 * (rate(level) + rate(target) * euler)
        variance = step**2 * (variance + churn.noise**2 * (level**2 - sigma**2))
    return math.sqrt(variance)


def test_levels_end_in_zero_and_decrease():
    levels = sigmas(16)
    assert levels.shape == (17,)
    assert levels[0] == SIGMA_MAX
    assert levels[-1] == 0
    assert levels[-2] == pytest.approx(0.002, rel=1e-9)
    assert (levels.diff() < 0).all()
    with pytest.raises(ValueError, match="sigma_min"):
        karras_sigmas(4, 2.0, 1.0, 7.0)


@pytest.mark.parametrize(
    ("std", "final", "ratios"),
    [
        (1.0, 1.77e-4, [4.57, 4.27, 4.14, 4.10]),
        (0.5, 2.10e-4, [4.60, 4.29, 4.16, 4.18]),
        (2.0, 1.46e-4, [4.54, 4.25, 4.12, 4.07]),
    ],
)
def test_a2_second_order(std, final, ratios):
    """Halving the step divides the error by four, and by a little more while steps are coarse."""
    x = torch.tensor([[1.0], [-3.0]], dtype=torch.float64)
    exact = x * std / math.sqrt(std**2 + SIGMA_MAX**2)
    errors = []
    for steps in (16, 32, 64, 128, 256):
        out = sample_heun(GaussianDenoiser(0.0, std), x, sigmas(steps))
        errors.append(float((out / exact - 1).abs().max()))
    assert errors[-1] == pytest.approx(final, rel=0.01)
    assert [a / b for a, b in pairwise(errors)] == pytest.approx(ratios, abs=0.01)


@pytest.mark.parametrize(
    ("steps", "std", "churn", "anchor"),
    [(256, 1.0, PGD, 1.00629), (128, 1.0, PGD, 1.01148), (34, 0.5, DYDIFF, 0.5300)],
)
def test_a3_churned_variance(steps, std, churn, anchor):
    expected = recursion_std(steps, std, churn)
    assert expected == pytest.approx(anchor, abs=5e-5 if anchor > 1 else 1e-4)
    x, generator = start(0, 40_000, 1)
    out = sample_heun(GaussianDenoiser(0.0, std), x, sigmas(steps), churn=churn, generator=generator)
    tolerance = 3 / math.sqrt(2 * out.numel())
    assert float(out.var()) / expected**2 == pytest.approx(1, abs=2 * tolerance)
    assert float(out.std()) / expected == pytest.approx(1, abs=tolerance)


def test_anisotropic_gaussian():
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.8]], dtype=torch.float64)
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64)
    x, generator = start(1, 40_000, 2)
    churn = Churn(20, 0.05, 50, 1.0)
    out = sample_heun(CovarianceDenoiser(mean, covariance), x, sigmas(128), churn=churn, generator=generator)
    torch.testing.assert_close(out.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(out.T), covariance, atol=0.03, rtol=0)


def test_a4_mixture():
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    std = torch.tensor([0.3, 0.5], dtype=torch.float64)
    x, generator = start(2, 40_000, 1)
    churn = Churn(40, 0.05, 50, 1.0)
    out = sample_heun(MixtureDenoiser(means, std, weights), x, sigmas(128), churn=churn, generator=generator)
    # At 0.8 the two modes are 4 and 3.6 standard deviations away.
    right = out[:, 0] > 0.8
    share = float(right.double().mean())
    assert share == pytest.approx(0.3, abs=3 * math.sqrt(0.3 * 0.7 / len(out)) + 2e-4)
    assert float(out[right].std()) == pytest.approx(0.3, rel=0.02)
    assert float(out[~right].std()) == pytest.approx(0.5, rel=0.02)


def test_a5_atoms():
    generator = torch.Generator().manual_seed(3)
    atoms = torch.randn(5, 3, generator=generator, dtype=torch.float64)
    probabilities = torch.tensor([0.1, 0.15, 0.2, 0.25, 0.3], dtype=torch.float64)
    x, generator = start(4, 20_000, 3)
    churn = Churn(20, 0.05, 50, 1.0)
    out = sample_heun(AtomDenoiser(atoms, probabilities), x, sigmas(64), churn=churn, generator=generator)
    distance, nearest = torch.cdist(out, atoms).min(1)
    assert float(distance.max()) < 1e-3
    counts = torch.bincount(nearest, minlength=5).double()
    chi_square = float(((counts - len(out) * probabilities) ** 2 / (len(out) * probabilities)).sum())
    assert chi_square < 18.5  # p = 1e-3 with 4 degrees of freedom


@pytest.mark.parametrize("noised", [False, True])
def test_a7_replacement_is_exact(noised):
    x, generator = start(5, 64, 4, 3)
    mask = torch.zeros(4, 3, dtype=torch.bool)
    mask[0] = True
    values = torch.randn(64, 4, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(64, 4, 3, generator=generator, dtype=torch.float64) if noised else None
    seen = []

    def denoise(x, sigma):
        wanted = values if noise is None else values + sigma.item() * noise
        seen.append(torch.equal(x[:, mask], wanted[:, mask]))
        return x / (1 + sigma.square()).reshape(-1, 1, 1)

    out = sample_heun(denoise, x, sigmas(8), churn=PGD, generator=generator, replace=hold(mask, values, noise))
    assert torch.equal(out[:, mask], values[:, mask])
    assert not torch.equal(out[:, ~mask], values[:, ~mask])
    assert seen == [True] * nfe(8)


def test_calls_and_draws():
    calls = []

    def denoise(x, sigma):
        calls.append(float(sigma))
        return x / (1 + sigma.square()).reshape(-1, 1)

    x, generator = start(6, 3, 2)
    before = generator.get_state()
    sample_heun(denoise, x, sigmas(5), generator=generator)
    assert len(calls) == nfe(5) == 9
    assert torch.equal(generator.get_state(), before), "no draw without churn"
    sample_heun(denoise, x, sigmas(5), churn=PGD, generator=generator)
    assert not torch.equal(generator.get_state(), before)
    assert min(calls) > 0


def test_churn_window_and_cap():
    churn = Churn(5, 0.05, 50, 1.003)
    assert churn.gamma(80.0, 16) == 0
    assert churn.gamma(0.04, 16) == 0
    assert churn.gamma(1.0, 16) == pytest.approx(0.3125)
    assert churn.gamma(1.0, 4) == pytest.approx(math.sqrt(2) - 1)


def test_starts_from_an_intermediate_level():
    generator = torch.Generator().manual_seed(7)
    clean = torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    noisy = clean + 0.7 * torch.randn(40_000, 1, generator=generator, dtype=torch.float64)
    out = sample_heun(GaussianDenoiser(0.0, 1.0), noisy, karras_sigmas(32, 0.002, 0.7, 7.0))
    assert float(out.std()) == pytest.approx(1.0, abs=0.015)
    # The flow is deterministic: each sample keeps its quantile.
    torch.testing.assert_close(out, noisy / math.sqrt(1 + 0.49), atol=0.02, rtol=0)

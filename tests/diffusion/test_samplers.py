"""What only the stochastic Heun sampler has: churn, and the two flags that reproduce published code (section A.3)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from raydiff.diffusion.edm import karras_sigmas
from raydiff.diffusion.exact import CovarianceDenoiser, GaussianDenoiser
from raydiff.diffusion.samplers import Churn, hold, network_calls, solver_of

PGD = Churn(80, 0.05, 50, 1.003)
DYDIFF = Churn(60, 0.370, 52.212, 1.002)
SIGMA_MAX = 80.0

heun = solver_of("heun")


def sigmas(steps):
    return karras_sigmas(steps, 0.002, SIGMA_MAX, 7.0)


def start(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return SIGMA_MAX * torch.randn(*shape, generator=generator, dtype=torch.float64), generator


def recursion_std(steps, std, churn, from_unchurned=False):
    """Output standard deviation on N(0, std^2): the map is affine, so the variance obeys a scalar recursion (A.7).

    With ``from_unchurned`` the Euler step takes the slope at the churned sample but starts before the churn, so that
    the sample and the fresh noise have multipliers of their own.
    """
    variance = SIGMA_MAX**2
    for sigma, target in pairwise(sigmas(steps).tolist()):
        level = sigma * (1 + churn.gamma(sigma, steps))

        def rate(t):
            return (1 - std**2 / (std**2 + t**2)) / t

        half, slope = (target - level) / 2, (target - level) * rate(level)
        sample, noise = 1 + slope, slope if from_unchurned else 1 + slope
        if target > 0:
            sample, noise = (1 + half * (rate(level) + rate(target) * euler) for euler in (sample, noise))
        variance = sample**2 * variance + noise**2 * churn.noise**2 * (level**2 - sigma**2)
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
    ("steps", "std", "churn", "anchor"),
    [(256, 1.0, PGD, 1.00629), (128, 1.0, PGD, 1.01148), (34, 0.5, DYDIFF, 0.5300)],
)
def test_a3_churned_variance(steps, std, churn, anchor):
    expected = recursion_std(steps, std, churn)
    assert expected == pytest.approx(anchor, abs=5e-5 if anchor > 1 else 1e-4)
    x, generator = start(0, 40_000, 1)
    out = heun(GaussianDenoiser(0.0, std), x, sigmas(steps), churn=churn, generator=generator)
    tolerance = 3 / math.sqrt(2 * out.numel())
    assert float(out.var()) / expected**2 == pytest.approx(1, abs=2 * tolerance)
    assert float(out.std()) / expected == pytest.approx(1, abs=tolerance)


@pytest.mark.parametrize(
    ("steps", "coded", "correct"), [(256, 1.030, 1.006), (128, 1.061, 1.011), (64, 1.133, 1.021), (34, 1.309, 1.044)]
)
def test_euler_from_unchurned_widens_the_output(steps, coded, correct):
    """Section A.3, note 5: PGD's released step, on standard normal data."""
    assert recursion_std(steps, 1.0, PGD, from_unchurned=True) == pytest.approx(coded, abs=6e-4)
    assert recursion_std(steps, 1.0, PGD) == pytest.approx(correct, abs=6e-4)
    x, generator = start(1, 40_000, 1)
    out = heun(GaussianDenoiser(0.0, 1.0), x, sigmas(steps), churn=PGD, euler_from_unchurned=True, generator=generator)
    expected = recursion_std(steps, 1.0, PGD, from_unchurned=True)
    assert float(out.std()) / expected == pytest.approx(1, abs=3 / math.sqrt(2 * out.numel()))


def test_euler_from_unchurned_is_nothing_without_churn():
    x, _ = start(2, 16, 3)
    outs = [heun(GaussianDenoiser(0.0, 1.0), x, sigmas(6), euler_from_unchurned=flag) for flag in (False, True)]
    assert torch.equal(*outs)


def test_anisotropic_gaussian():
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.8]], dtype=torch.float64)
    mean = torch.tensor([0.5, -1.0], dtype=torch.float64)
    x, generator = start(1, 40_000, 2)
    churn = Churn(20, 0.05, 50, 1.0)
    out = heun(CovarianceDenoiser(mean, covariance), x, sigmas(128), churn=churn, generator=generator)
    torch.testing.assert_close(out.mean(0), mean, atol=0.02, rtol=0)
    torch.testing.assert_close(torch.cov(out.T), covariance, atol=0.03, rtol=0)


def test_conditions_with_and_without_the_fresh_noise():
    """DyDiff's code leaves the churn in the conditions of a step's first call (section D.4), and only there."""
    x, generator = start(5, 64, 2)
    mask, values = torch.tensor([True, False]), torch.full((64, 2), 0.3, dtype=torch.float64)
    churn, steps = Churn(60, 0.37, 52.212, 1.002), 8
    levels = sigmas(steps)

    def clean_calls(after_churn):
        clean = []

        def denoise(x, sigma):
            clean.append(torch.equal(x[:, 0], values[:, 0]))
            return x / (1 + sigma.square())

        out = heun(
            denoise,
            x,
            levels,
            churn=churn,
            generator=generator,
            replace=hold(mask, values),
            replace_after_churn=after_churn,
        )
        assert torch.equal(out[:, 0], values[:, 0])
        return clean

    assert clean_calls(True) == [True] * network_calls("heun", steps)
    churned = [churn.gamma(level, steps) > 0 for level in levels[:-1].tolist()]
    assert 0 < sum(churned) < steps
    assert clean_calls(False)[::2] == [not noisy for noisy in churned]
    assert all(clean_calls(False)[1::2])


def test_churn_draws_and_needs_a_generator():
    x, generator = start(6, 3, 2)
    before = generator.get_state()
    heun(GaussianDenoiser(0.0, 1.0), x, sigmas(5), generator=generator)
    assert torch.equal(generator.get_state(), before), "no draw without churn"
    heun(GaussianDenoiser(0.0, 1.0), x, sigmas(5), churn=PGD, generator=generator)
    assert not torch.equal(generator.get_state(), before)
    with pytest.raises(ValueError, match="needs a generator"):
        heun(GaussianDenoiser(0.0, 1.0), x, sigmas(5), churn=PGD)


def test_churn_window_and_cap():
    churn = Churn(5, 0.05, 50, 1.003)
    assert churn.gamma(80.0, 16) == 0
    assert churn.gamma(0.04, 16) == 0
    assert churn.gamma(1.0, 16) == pytest.approx(0.3125)
    assert churn.gamma(1.0, 4) == pytest.approx(math.sqrt(2) - 1)

"""Preconditioning and loss (A1) and the identities of section 0.2."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from raydiff.diffusion.edm import Denoiser, loss, loss_at
from raydiff.diffusion.exact import AtomDenoiser, CovarianceDenoiser, GaussianDenoiser, MixtureDenoiser
from raydiff.diffusion.identities import (
    denoised_from_score,
    edm_to_vp,
    guided_denoised,
    guided_noise,
    noise_from_denoised,
    score_from_denoised,
    vp_denoised_from_noise,
    vp_score_from_noise,
    vp_to_edm,
)


class Zero(nn.Module):
    def forward(self, x, c_noise):
        return torch.zeros_like(x)


class Recorder(nn.Module):
    def forward(self, x, c_noise):
        self.x, self.c_noise = x, c_noise
        return x


@pytest.mark.parametrize("sigma_data", [1.0, 0.5])
@pytest.mark.parametrize("sigma", [0.01, 0.5, 1.0, 20.0])
def test_a1_loss_of_zero_network_is_one(sigma_data, sigma):
    generator = torch.Generator().manual_seed(0)
    y = sigma_data * torch.randn(2_000, 8, 8, generator=generator, dtype=torch.float64)
    value = loss_at(Denoiser(Zero(), sigma_data), y, torch.full((2_000,), sigma, dtype=torch.float64), generator)
    assert float(value) == pytest.approx(1, abs=4 * math.sqrt(2 / y.numel()))


def test_a1_with_random_levels():
    generator = torch.Generator().manual_seed(1)
    y = torch.randn(4_000, 8, 8, generator=generator)
    assert float(loss(Denoiser(Zero()), y, generator, -1.2, 1.2)) == pytest.approx(1, abs=4 * math.sqrt(2 / y.numel()))


def test_one_level_per_trajectory():
    generator = torch.Generator().manual_seed(2)
    network = Recorder()
    loss(Denoiser(network), torch.zeros(500, 4, 3), generator, -1.2, 1.2)
    assert network.c_noise.shape == (500,)
    levels = network.c_noise * 4
    assert float(levels.mean()) == pytest.approx(-1.2, abs=0.2)
    assert float(levels.std()) == pytest.approx(1.2, abs=0.15)
    sigma = levels.exp()[:, None, None]
    noise = network.x * (1 + sigma**2).sqrt() / sigma
    assert float(noise.std()) == pytest.approx(1, abs=0.05)


def test_preconditioning_coefficients():
    x = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    sigma = torch.tensor([0.01, 1.0, 30.0], dtype=torch.float64)
    network = Recorder()
    out = Denoiser(network, 0.5)(x, sigma)
    level = sigma[:, None, None]
    total = level**2 + 0.25
    torch.testing.assert_close(network.x, x / total.sqrt())
    torch.testing.assert_close(network.c_noise, sigma.log() / 4)
    torch.testing.assert_close(out, 0.25 / total * x + level * 0.5 / total.sqrt() * (x / total.sqrt()))


def test_shared_level_equals_level_per_trajectory():
    x = torch.randn(6, 4, 5, generator=torch.Generator().manual_seed(4))
    denoiser = Denoiser(Recorder())
    assert torch.equal(denoiser(x, torch.full((6,), 2.0)), denoiser(x, torch.full((1,), 2.0)))


def gaussian_log_density(x, mean, variance):
    return (-((x - mean) ** 2) / (2 * variance)).sum(-1)


def test_score_is_the_gradient_of_the_log_density():
    x = torch.randn(9, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64, requires_grad=True)
    mean, std, sigma = 0.3, 0.8, torch.tensor([0.6], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(gaussian_log_density(x, mean, std**2 + 0.36).sum(), x)
    denoised = GaussianDenoiser(mean, std)(x, sigma)
    torch.testing.assert_close(score_from_denoised(x, denoised, 0.6), gradient)
    torch.testing.assert_close(denoised_from_score(x, gradient, 0.6), denoised)


@pytest.mark.parametrize("sigma", [0.05, 0.7, 12.0])
def test_exact_denoisers_against_autograd(sigma):
    """Tweedie's formula with the log-density written out, for every closed-form denoiser."""
    generator = torch.Generator().manual_seed(6)
    x = torch.randn(11, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    means = torch.randn(3, 2, generator=generator, dtype=torch.float64)
    weights = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    std = torch.tensor([0.3, 0.5, 1.1], dtype=torch.float64)
    level = torch.tensor([sigma], dtype=torch.float64)
    covariance = torch.tensor([[1.0, 0.3], [0.3, 0.8]], dtype=torch.float64)
    total = covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
    normal = torch.distributions.MultivariateNormal(means[0], total)
    squared = (x[:, None] - means).square().sum(-1)
    variance = std**2 + sigma**2
    mixture = (weights.log() - squared / (2 * variance) - variance.log()).logsumexp(1)
    cases = [
        (CovarianceDenoiser(means[0], covariance), normal.log_prob(x)),
        (MixtureDenoiser(means, std, weights), mixture),
        (AtomDenoiser(means, weights), (weights.log() - squared / (2 * sigma**2)).logsumexp(1)),
    ]
    for denoiser, log_density in cases:
        (gradient,) = torch.autograd.grad(log_density.sum(), x, retain_graph=True)
        torch.testing.assert_close(denoiser(x, level), denoised_from_score(x, gradient, sigma), atol=1e-9, rtol=1e-9)


def test_vp_and_edm_agree():
    """Gaussian data: the closed VP forms of section 0.2 against the EDM denoiser."""
    x = torch.randn(20, 1, generator=torch.Generator().manual_seed(7), dtype=torch.float64)
    mean, std, alpha = 0.4, 0.6, 0.8
    sigma_t = math.sqrt(1 - alpha**2)
    total = alpha**2 * std**2 + sigma_t**2
    noise = sigma_t * (x - alpha * mean) / total
    denoised = (alpha * std**2 * x + sigma_t**2 * mean) / total
    torch.testing.assert_close(vp_denoised_from_noise(x, noise, alpha, sigma_t), denoised)
    torch.testing.assert_close(vp_score_from_noise(noise, sigma_t), -(x - alpha * mean) / total)
    point, sigma = vp_to_edm(x, alpha, sigma_t)
    torch.testing.assert_close(GaussianDenoiser(mean, std)(point, torch.tensor([sigma], dtype=x.dtype)), denoised)
    torch.testing.assert_close(noise_from_denoised(point, denoised, sigma), noise)
    back, alpha_back, sigma_back = edm_to_vp(point, sigma)
    torch.testing.assert_close(back, x)
    assert (alpha_back, sigma_back) == pytest.approx((alpha, sigma_t))


def test_guided_forms_agree():
    generator = torch.Generator().manual_seed(8)
    x, denoised, guidance = (torch.randn(5, 2, generator=generator, dtype=torch.float64) for _ in range(3))
    sigma = 1.7
    guided = guided_denoised(denoised, guidance, sigma)
    unguided_score = score_from_denoised(x, denoised, sigma)
    torch.testing.assert_close(score_from_denoised(x, guided, sigma), unguided_score + guidance)
    # x_edm = x_vp / alpha, so a gradient with respect to x_vp is that with respect to x_edm divided by alpha.
    _, alpha, sigma_t = edm_to_vp(x, sigma)
    noise = guided_noise(noise_from_denoised(x, denoised, sigma), guidance / alpha, sigma_t)
    torch.testing.assert_close(noise, noise_from_denoised(x, guided, sigma))

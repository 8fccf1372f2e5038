"""Diffusion policies as targets of guidance, by their draws."""

from __future__ import annotations

import pytest
import torch
from guidance_cases import random_case

from raydiff.config import GuidanceConfig
from raydiff.diffusion.edm import karras_sigmas, per_trajectory
from raydiff.diffusion.samplers import solver_of
from raydiff.guidance.build import guidance_hooks
from raydiff.guidance.sampled import SampledPolicy

SPREAD = 0.25


def diffusion_policy(policy, steps=48):
    """The exact denoiser of ``N(mean(s), .25^2)``, run by a deterministic solver from the noise that it is given."""

    def draw(observation, noise):
        mean, _ = policy.distribution(observation)

        def denoise(x, sigma):
            level = per_trajectory(sigma, x).square()
            return mean + SPREAD**2 / (SPREAD**2 + level) * (x - mean)

        sigmas = karras_sigmas(steps, 0.002, 80, 7)
        return solver_of("dpmpp_2m")(denoise, 80 * noise, sigmas)

    return draw


def test_moments_are_those_of_the_policy():
    _, policy, _, rows = random_case("raw")
    sampled = SampledPolicy(diffusion_policy(policy), 2, samples=4_000)
    mean, variance = sampled.distribution(rows[..., :5])
    assert not sampled.deterministic
    assert mean.shape == variance.shape == (3, 4, 2)
    torch.testing.assert_close(mean, policy.distribution(rows[..., :5])[0], atol=0.02, rtol=0)
    torch.testing.assert_close(variance.sqrt(), torch.full_like(variance, SPREAD), atol=0.015, rtol=0)
    again, _ = sampled.distribution(rows[1:2, 2:3, :5])
    torch.testing.assert_close(again, mean[1:2, 2:3], atol=1e-12, rtol=0)


@pytest.mark.parametrize("mode", ["paper", "score", "score_exact"])
def test_guidance_leads_where_the_gaussian_itself_does(mode):
    normalizer, policy, x, denoised = random_case("atanh")
    policy.variance = torch.full_like(policy.variance, SPREAD**2)
    config = GuidanceConfig(mode=mode, strength=0.5)
    many = SampledPolicy(diffusion_policy(policy), 2, samples=4_000)
    outs = [guidance_hooks(normalizer, config, p, 16).guide(x, 0.2, denoised, 3, False)[1] for p in (policy, many)]
    pull = [(out - denoised)[..., 5:7] for out in outs]
    assert torch.linalg.vector_norm(pull[1] - pull[0]) < 0.1 * torch.linalg.vector_norm(pull[0])


def test_one_sample_is_a_deterministic_policy():
    normalizer, policy, x, denoised = random_case("raw")
    one = SampledPolicy(diffusion_policy(policy), 2)
    observation = denoised[..., :5] * normalizer.std[:5] + normalizer.mean[:5]
    mean, variance = one.distribution(observation)
    assert one.deterministic
    assert variance is None
    offset = mean - policy.distribution(observation)[0]
    # The same noise in all states, but for what is left of the mean at sigma 80.
    torch.testing.assert_close(offset, offset[:1, :1].expand_as(offset), atol=0.01, rtol=0)
    guided = guidance_hooks(normalizer, GuidanceConfig(), one, 16).guide(x, 0.5, denoised, 3, False)[1]
    action = guided[..., 5:7] * normalizer.std[5:7] + normalizer.mean[5:7]
    before = denoised[..., 5:7] * normalizer.std[5:7] + normalizer.mean[5:7]
    assert ((action - mean).abs() < (before - mean).abs()).all()


def test_too_few_samples_are_refused():
    with pytest.raises(ValueError, match="at least one sample"):
        SampledPolicy(lambda observation, noise: noise, 2, samples=0)

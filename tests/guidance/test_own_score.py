"""Guidance towards a policy by its own score (``guidance.diffusion_policy=own_score``), in closed form and float64."""

from __future__ import annotations

import math

import pytest
import torch
from guidance_cases import MODES, PLAIN, GaussianPolicy, constant_policy, random_case, run, statistics

from raydiff.config import GuidanceConfig
from raydiff.diffusion.edm import per_trajectory
from raydiff.guidance.api import OwnScore
from raydiff.guidance.policy import PolicyGuidance


class Scored(GaussianPolicy):
    """A Gaussian that knows its own score. It is asked with noise that is the same for all actions of a row."""

    rows = 0

    def blurred_score(self, observation, action, width):
        self.rows += action[..., 0].numel()
        mean, variance = super().distribution(observation)
        return (mean - action) / (
            variance + torch.as_tensor(width, dtype=action.dtype).expand(*action.shape[:-1], 1) ** 2
        )

    def distribution(self, observation):
        raise AssertionError("the own score is enough")


class TwoModes:
    """Half ``N(low, spread^2)``, half ``N(high, spread^2)``, one action, whatever the state."""

    deterministic = True

    def __init__(self, low, high, spread):
        self.modes, self.spread = torch.tensor([low, high], dtype=torch.float64), spread

    def distribution(self, observation):
        """What the deterministic path of a sampler finds: the middle."""
        return self.modes.mean().expand(*observation.shape[:-1], 1), None

    def blurred_score(self, observation, action, width):
        variance = self.spread**2 + torch.as_tensor(width, dtype=action.dtype) ** 2
        pull = (self.modes - action) / variance
        share = (-0.5 * pull.square() * variance).softmax(-1)
        return (share * pull).sum(-1, keepdim=True)


def scored(policy):
    return Scored(policy.bias, policy.variance, policy.gain)


def standard(x, sigma):
    """The denoiser of standard normal rows."""
    return x / (1 + per_trajectory(sigma, x).square())


def settings(mode="score_exact", own=True, **values):
    return GuidanceConfig(mode=mode, diffusion_policy="own_score" if own else "surrogate", **values)


@pytest.mark.parametrize("spreads", [(0.7, 0.7), (0.7, 0.4), (0.9, 0.2)])
@pytest.mark.parametrize("strength", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("sigma", [0.05, 0.6, 5.0])
def test_the_gaussian_s_own_score_is_its_closed_form(spreads, strength, sigma):
    """Also where the actions' spreads differ, of which a policy's noise knows nothing."""
    _, policy, x, denoised = random_case("raw")
    normalizer = statistics(5, 2, torch.tensor(spreads, dtype=torch.float64), action_mean=0.1)
    closed = PolicyGuidance(policy, normalizer, settings(own=False, strength=strength), 8)(x, sigma, denoised, 2, False)
    own = PolicyGuidance(scored(policy), normalizer, settings(strength=strength), 8)(x, sigma, denoised, 2, False)
    torch.testing.assert_close(own, closed, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sigma", [0.05, 0.6, 5.0])
def test_between_the_narrowest_and_the_widest_a_gaussian_s_score_is_exact(sigma):
    normalizer, policy, x, denoised = random_case("raw", actions=5)
    closed = PolicyGuidance(policy, normalizer, settings(own=False), 8)(x, sigma, denoised, 2, False)
    own = PolicyGuidance(scored(policy), normalizer, settings(), 8)(x, sigma, denoised, 2, False)
    assert normalizer.std[5:10].max() > 2 * normalizer.std[5:10].min()
    torch.testing.assert_close(own, closed, rtol=1e-9, atol=1e-9)


def test_with_tanh_the_pull_has_its_direction_and_bounds():
    normalizer, policy, x, denoised = random_case("atanh")
    denoised[..., 5:7] *= 3  # where tanh saturates
    closed = PolicyGuidance(policy, normalizer, settings(own=False), 8)(x, 0.4, denoised, 2, False)[1] - denoised
    own = PolicyGuidance(scored(policy), normalizer, settings(), 8)(x, 0.4, denoised, 2, False)[1] - denoised
    assert own.isfinite().all()
    assert own.abs().max() <= 4
    pulled = closed.abs() > 1e-3
    assert (own.sign() == closed.sign())[pulled].all()


@pytest.mark.parametrize("mode", ["paper", "paper_code", "score"])
def test_other_modes_blur_the_law_by_delta(mode):
    normalizer, policy, _, denoised = random_case("atanh")
    wide = GaussianPolicy(policy.bias, policy.variance + 0.3**2, policy.gain)
    closed, own = (
        PolicyGuidance(target, normalizer, settings(mode, target is not wide, delta=0.3), 8, denoise=standard)
        for target in (wide, scored(policy))
    )
    torch.testing.assert_close(own.gradient(denoised), closed.gradient(denoised), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(own.direction(denoised), closed.direction(denoised), rtol=1e-9, atol=1e-9)


def test_mode_score_is_off_where_it_would_be_stiff():
    normalizer, policy, x, denoised = random_case("raw")
    guide = PolicyGuidance(scored(policy), normalizer, settings("score", delta=0.2), 8)
    limit = 0.2 / normalizer.std[5:7].max().item()
    assert not torch.equal(guide(x, 0.9 * limit, denoised, 2, False)[1], denoised)
    limit = 0.2 / normalizer.std[5:7].min().item()
    assert torch.equal(guide(x, 1.1 * limit, denoised, 2, False)[1], denoised)


@pytest.mark.parametrize("strength", [0.5, 1.0, 2.0])
def test_samples_are_the_tilted_gaussian(strength):
    """B2: standard normal data and a policy N(1, 1)."""
    policy = scored(constant_policy())
    out = run(settings(strength=strength), standard, 96, 20_000, policy=policy, churn=PLAIN, solver="dpmpp_2m_sde")
    assert out.mean() == pytest.approx(strength / (1 + strength), abs=0.015)
    assert out.std() == pytest.approx(1 / math.sqrt(1 + strength), abs=0.015)


def test_samples_find_both_modes_of_the_policy_and_their_shares():
    """Strength 1 and standard normal data: p(a) pi(a) in closed form, which no Gaussian surrogate gives."""
    low, high, spread = -0.4, 0.9, 0.1
    policy = TwoModes(low, high, spread)
    assert isinstance(policy, OwnScore)
    out = run(settings(strength=1.0), standard, 96, 8_000, policy=policy, churn=PLAIN, solver="dpmpp_2m_sde").flatten()
    weights = torch.tensor([low, high], dtype=torch.float64).square().mul(-0.5 / (1 + spread**2)).softmax(0)
    upper = out[out > 0.25]
    assert len(upper) / len(out) == pytest.approx(weights[1].item(), abs=0.02)
    assert upper.mean() == pytest.approx(high / (1 + spread**2), abs=0.01)
    assert upper.std() == pytest.approx(spread / math.sqrt(1 + spread**2), abs=0.01)
    surrogate = run(settings(own=False, strength=1.0), standard, 48, 8_000, policy=policy, churn=PLAIN).flatten()
    assert (surrogate - 0.25).abs().mean() < 0.25  # round the middle, where the policy never is
    assert (out - 0.25).abs().min() > 0.1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("spread", "asked"), [(1.0, 1), (torch.tensor([1.0, 0.5], dtype=torch.float64), 2)])
def test_the_network_is_asked_once_in_each_row(mode, spread, asked):
    """Twice where the spreads of the actions differ, in the mode that depends on them."""
    policy = scored(constant_policy(actions=2))
    guide = PolicyGuidance(policy, statistics(1, 2, spread), settings(mode), 8, denoise=standard)
    x = torch.zeros(3, 4, 5, dtype=torch.float64)
    if mode == "paper_code":
        guide.shift(x, 0.1, 2)
    else:
        guide(x, 0.1, x, 2, False)
    assert policy.rows == 12 * (asked if mode == "score_exact" else 1)


def test_policies_without_a_score_of_their_own_keep_their_closed_form():
    normalizer, policy, x, denoised = random_case("raw")
    plain, own = (PolicyGuidance(policy, normalizer, settings(own=flag), 8) for flag in (False, True))
    assert torch.equal(plain(x, 0.5, denoised, 2, False)[1], own(x, 0.5, denoised, 2, False)[1])

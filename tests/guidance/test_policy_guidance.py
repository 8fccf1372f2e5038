"""Policy guidance in closed form (section B.8: B1, B7 to B9, and the formulas of B.3 and B.5), all in float64."""

from __future__ import annotations

import math

import pytest
import torch
from guidance_cases import MODES, GaussianPolicy, constant_policy, random_case, statistics

from raydiff.config import GuidanceConfig
from raydiff.diffusion.edm import karras_sigmas
from raydiff.guidance.policy import PolicyGuidance
from raydiff.guidance.schedule import paper_strengths, reachable_displacement

DISPLACING = ["paper", "paper_code"]


def guidance_of(policy, normalizer, config, steps, denoised=None, **options):
    """With a denoiser that gives ``denoised`` whatever it sees."""
    return PolicyGuidance(policy, normalizer, config, steps, denoise=lambda x, sigma: denoised, **options)


def displacement(guide, x, denoised, step):
    """What a displacing mode adds to the noisy sample."""
    if guide.config.mode == "paper_code":
        return guide.shift(x, 1.0, step) - x
    return guide(x, 1.0, denoised, step, False)[0] - x


def autograd_gradient(normalizer, policy, denoised, deviation=None):
    """``d/du`` of the summed log density of the policy at the actions, the observations held fixed."""
    first, last = normalizer.observation_size, normalizer.observation_size + normalizer.action_size
    action = denoised[..., first:last].clone().requires_grad_(True)
    mean, variance = policy.distribution(denoised[..., :first] * normalizer.std[:first] + normalizer.mean[:first])
    env = action * normalizer.std[first:last] + normalizer.mean[first:last]
    env = env.tanh() if normalizer.action_space == "atanh" else env
    spread = deviation if variance is None else variance.sqrt()
    density = torch.distributions.Normal(mean, spread).log_prob(env).sum()
    return torch.autograd.grad(density, action)[0]


@pytest.mark.parametrize("space", ["raw", "atanh"])
def test_b9_closed_form_gradient(space):
    normalizer, policy, _, denoised = random_case(space)
    config = GuidanceConfig(delta=0.3)
    closed = PolicyGuidance(policy, normalizer, config, 8).gradient(denoised)
    torch.testing.assert_close(closed, autograd_gradient(normalizer, policy, denoised), atol=1e-6, rtol=1e-6)
    mean_only = GaussianPolicy(policy.bias, None, policy.gain)
    closed = PolicyGuidance(mean_only, normalizer, config, 8).gradient(denoised)
    torch.testing.assert_close(closed, autograd_gradient(normalizer, mean_only, denoised, 0.3), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("space", ["raw", "atanh"])
@pytest.mark.parametrize("mode", MODES)
def test_b8_only_actions_are_displaced(mode, space):
    normalizer, policy, x, denoised = random_case(space)
    guide = guidance_of(policy, normalizer, GuidanceConfig(mode=mode), 8, denoised)
    kept = x.clone(), denoised.clone()
    sigma = 0.05
    shifted, guided = guide(x, sigma, denoised, 2, False)
    if mode == "paper_code":
        assert shifted is x
        assert guided is denoised
        shifted = guide.shift(x, sigma, 2)
    assert torch.equal(x, kept[0])
    assert torch.equal(denoised, kept[1])
    others = torch.ones(x.shape[-1], dtype=torch.bool)
    others[5:7] = False
    assert torch.equal(shifted[..., others], x[..., others])
    assert torch.equal(guided[..., others], denoised[..., others])
    changed, was = (shifted, x) if mode in DISPLACING else (guided, denoised)
    assert not torch.equal(changed[..., ~others], was[..., ~others])


@pytest.mark.parametrize("mode", DISPLACING)
def test_b7_displacement_norm(mode):
    normalizer, policy, x, denoised = random_case("atanh", batch=2)
    config, steps = GuidanceConfig(mode=mode, strength=0.7), 16
    guide = guidance_of(policy, normalizer, config, steps, denoised)
    for step in (0, 7, 14):
        shift = displacement(guide, x, denoised, step)
        expected = 0.7 * 256 / steps * (1 - step / steps + 0.3 * math.sin(math.pi * (step + 1) / steps))
        norms = torch.linalg.vector_norm(shift, dim=(1, 2))
        torch.testing.assert_close(norms, torch.full_like(norms, expected), atol=1e-6, rtol=1e-6)
    assert not displacement(guide, x, denoised, 15).any(), "no displacement at the last step"
    assert torch.equal(guide(x, 1.0, denoised, 0, True)[0], x), "none at the corrector"
    # The second trajectory's policy variance does not concern the first trajectory.
    scale = torch.tensor([1.0, 9.0], dtype=torch.float64).reshape(2, 1, 1)
    wide = GaussianPolicy(policy.bias, policy.variance, policy.gain)
    wide.distribution = lambda obs: (policy.distribution(obs)[0], policy.distribution(obs)[1] * scale)
    shift = displacement(guide, x, denoised, 3)
    other = displacement(guidance_of(wide, normalizer, config, steps, denoised), x, denoised, 3)
    torch.testing.assert_close(other, shift, atol=1e-6, rtol=1e-6)


def test_paper_keeps_the_slope_and_paper_code_denoises_again():
    normalizer, policy, x, denoised = random_case("raw")
    seen = []
    coded = PolicyGuidance(
        policy,
        normalizer,
        GuidanceConfig(mode="paper_code"),
        8,
        denoise=lambda x, sigma: (seen.append((x, float(sigma))), denoised)[1],
    )
    moved = coded.shift(x, 0.7, 2)
    assert len(seen) == 1
    assert seen[0] == (x, 0.7)
    paper = PolicyGuidance(policy, normalizer, GuidanceConfig(mode="paper"), 8)
    shifted, guided = paper(x, 0.7, denoised, 2, False)
    assert torch.equal(shifted, moved)
    torch.testing.assert_close(shifted - guided, x - denoised, atol=1e-12, rtol=0)
    with pytest.raises(ValueError, match="paper_code needs the denoiser"):
        PolicyGuidance(policy, normalizer, GuidanceConfig(mode="paper_code"), 8)


@pytest.mark.parametrize("mode", MODES)
def test_zero_gradient_changes_nothing(mode):
    normalizer = statistics(1, 1)
    rows = torch.ones(2, 3, 4, dtype=torch.float64)
    guide = guidance_of(constant_policy(), normalizer, GuidanceConfig(mode=mode), 8, rows)
    shifted, guided = guide(guide.shift(rows, 1.0, 0), 1.0, rows, 0, False)
    assert torch.equal(shifted, rows)
    assert torch.equal(guided, rows)


@pytest.mark.parametrize("space", ["raw", "atanh"])
def test_score_exact_formula(space):
    """Against the formula of section B.5 in its own terms, limits included."""
    normalizer, policy, x, denoised = random_case(space)
    denoised[0, 0, 5:7] = torch.tensor([9.0, -9.0], dtype=torch.float64)  # a saturated action
    strength, sigma = 2.0, 0.7
    guide = PolicyGuidance(policy, normalizer, GuidanceConfig(strength=strength), 8)
    shifted, guided = guide(x, sigma, denoised, 0, True)
    assert torch.equal(shifted, x)
    std, mean = normalizer.std[5:7], normalizer.mean[5:7]
    target, variance = policy.distribution(denoised[..., :5] * normalizer.std[:5] + normalizer.mean[:5])
    action = denoised[..., 5:7] * std + mean
    slope = std.expand_as(action)
    if space == "atanh":
        slope = std * (1 - action.tanh() ** 2)
        residual = ((target - action.tanh()) / slope.clamp_min(1e-8)).clamp(-4, 4)
    else:
        residual = (target - action) / slope
    scaled = (variance / slope.square().clamp_min(1e-8)).clamp(1e-3, 1e3)
    posterior = sigma**2 / (1 + sigma**2)
    score = strength * (posterior / sigma**2) * residual / (scaled + strength * posterior)
    torch.testing.assert_close(guided[..., 5:7], denoised[..., 5:7] + sigma**2 * score, atol=1e-12, rtol=1e-12)
    assert guided.isfinite().all()


@pytest.mark.parametrize("chain_rule", [True, False])
@pytest.mark.parametrize("space", ["raw", "atanh"])
@pytest.mark.parametrize("corrector", [False, True])
def test_score_formula(space, chain_rule, corrector):
    """``sigma^2 lambda J grad log pi`` where ``sigma^2`` is at most the policy's variance in normalised units."""
    normalizer, policy, x, denoised = random_case(space)
    config, sigma = GuidanceConfig(mode="score", strength=1.5, chain_rule=chain_rule), 0.5
    _, guided = PolicyGuidance(policy, normalizer, config, 8)(x, sigma, denoised, 7, corrector)
    score = 1.5 * autograd_gradient(normalizer, policy, denoised) / (1 + sigma**2 if chain_rule else 1)
    std, slope = normalizer.std[5:7], torch.tensor(1.0, dtype=torch.float64)
    if space == "atanh":
        slope = 1 - (denoised[..., 5:7] * std + normalizer.mean[5:7]).tanh() ** 2
    near = sigma**2 <= (policy.variance / (std * slope) ** 2).expand_as(score)
    assert near.any()
    assert not near.all()
    expected = torch.where(near, sigma**2 * score, 0.0)
    torch.testing.assert_close(guided[..., 5:7] - denoised[..., 5:7], expected, atol=1e-12, rtol=1e-12)


def test_the_published_schedule():
    steps = 8
    strengths = paper_strengths(2.0, 0.3, steps)
    expected = [64 * (1 - n / steps + 0.3 * math.sin(math.pi * (n + 1) / steps)) for n in range(steps - 1)] + [0.0]
    assert strengths == pytest.approx(expected)
    # A run that starts in the middle has the strengths of the second half of a run of twice as many steps.
    assert paper_strengths(2.0, 0.3, 8, 0.5) == pytest.approx(paper_strengths(2.0, 0.3, 16)[8:])


@pytest.mark.parametrize(("steps", "reach"), [(64, 14.1), (128, 28.1), (256, 56.0), (512, 111.9)])
def test_reachable_displacement(steps, reach):
    """The total displacement of section B.2 without the rescaling by 256 / N, which makes it nearly constant."""
    sigmas = karras_sigmas(steps, 0.002, 80, 7)
    assert reachable_displacement(paper_strengths(steps / 256, 0.3, steps), sigmas) == pytest.approx(reach, abs=0.06)
    assert reachable_displacement(paper_strengths(1.0, 0.3, steps), sigmas) == pytest.approx(56.0, abs=0.5)

"""Guidance in closed form (section B.8: B1, B3, B7 to B9) and its anchors (B2, B5, B6, B10), all in float64."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from raydiff.config import GuidanceConfig
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.diffusion.edm import karras_sigmas, per_trajectory
from raydiff.diffusion.exact import GaussianDenoiser, MixtureDenoiser
from raydiff.diffusion.guidance import PolicyGuidance, paper_strengths, reachable_displacement
from raydiff.diffusion.samplers import Churn, sample_heun

PGD = Churn(80, 0.05, 50, 1.003)


class GaussianPolicy:
    """Mean ``observation @ gain + bias`` and a constant variance, or a deterministic policy without one."""

    def __init__(self, bias, variance, gain=None):
        self.bias, self.variance, self.gain = bias, variance, gain
        self.deterministic = variance is None

    def distribution(self, observation):
        mean = self.bias.expand(*observation.shape[:-1], len(self.bias))
        if self.gain is not None:
            mean = mean + observation @ self.gain
        return mean, None if self.variance is None else self.variance.expand_as(mean)


def constant_policy(mean=1.0, variance=1.0, actions=1):
    full = lambda value: torch.full((actions,), value, dtype=torch.float64)  # noqa: E731
    return GaussianPolicy(full(mean), None if variance is None else full(variance))


def statistics(observations, actions, action_std=1.0, space="raw"):
    columns = observations + actions + 2
    mean, std = torch.zeros(columns, dtype=torch.float64), torch.ones(columns, dtype=torch.float64)
    std[observations : observations + actions] = action_std
    return TrajectoryNormalizer(mean, std, observations, actions, space)


def random_case(space, seed=0, batch=3, length=4, observations=5, actions=2):
    """Statistics, denoised rows and a state-dependent policy with a variance for each action."""
    generator = torch.Generator().manual_seed(seed)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float64)  # noqa: E731
    columns = observations + actions + 2
    normalizer = TrajectoryNormalizer(draw(columns) * 0.3, draw(columns).abs() + 0.3, observations, actions, space)
    policy = GaussianPolicy(draw(actions) * 0.2, draw(actions).square() + 0.05, draw(observations, actions) * 0.1)
    return normalizer, policy, draw(batch, length, columns), draw(batch, length, columns)


def run(config, denoise, steps, batch, *, length=1, actions=1, policy=None, churn=PGD, normalizer=None, **options):
    normalizer = normalizer or statistics(1, actions)
    guide = PolicyGuidance(policy or constant_policy(actions=actions), normalizer, config, steps, **options)
    generator = torch.Generator().manual_seed(7)
    x = 80 * torch.randn(batch, length, actions + 3, generator=generator, dtype=torch.float64)
    sigmas = karras_sigmas(steps, 0.002, 80, 7)
    out = sample_heun(denoise, x, sigmas, churn=churn, guide=guide, generator=generator)
    return out[..., 1 : 1 + actions]


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
@pytest.mark.parametrize("mode", ["paper", "score_exact"])
def test_b8_only_actions_are_displaced(mode, space):
    normalizer, policy, x, denoised = random_case(space)
    guide = PolicyGuidance(policy, normalizer, GuidanceConfig(mode=mode), 8)
    kept = x.clone(), denoised.clone()
    shifted, guided = guide(x, 0.7, denoised, 2, False)
    assert torch.equal(x, kept[0])
    assert torch.equal(denoised, kept[1])
    others = torch.ones(x.shape[-1], dtype=torch.bool)
    others[5:7] = False
    assert torch.equal(shifted[..., others], x[..., others])
    assert torch.equal(guided[..., others], denoised[..., others])
    assert not torch.equal(guided[..., ~others], denoised[..., ~others])


@pytest.mark.parametrize("mode", ["paper", "score_exact"])
def test_b1_no_strength_is_unguided_bit_for_bit(mode):
    normalizer, policy, _, _ = random_case("atanh")
    guide = PolicyGuidance(policy, normalizer, GuidanceConfig(mode=mode, strength=0.0), 8)
    outs = []
    for hook in (None, guide):
        generator = torch.Generator().manual_seed(1)
        x = 80 * torch.randn(16, 4, 9, generator=generator)
        sigmas = karras_sigmas(8, 0.002, 80, 7)
        denoise = GaussianDenoiser(0.0, 1.0)
        outs.append(sample_heun(denoise, x, sigmas, churn=PGD, guide=hook, generator=generator))
    assert torch.equal(*outs)


def test_b7_displacement_norm():
    normalizer, policy, x, denoised = random_case("atanh", batch=2)
    config, steps = GuidanceConfig(mode="paper", strength=0.7), 16
    guide = PolicyGuidance(policy, normalizer, config, steps)
    for step in (0, 7, 14):
        shift = guide(x, 1.0, denoised, step, False)[0] - x
        expected = 0.7 * 256 / steps * (1 - step / steps + 0.3 * math.sin(math.pi * (step + 1) / steps))
        norms = torch.linalg.vector_norm(shift, dim=(1, 2))
        torch.testing.assert_close(norms, torch.full_like(norms, expected), atol=1e-6, rtol=1e-6)
    assert torch.equal(guide(x, 1.0, denoised, 15, False)[0], x), "no displacement at the last step"
    assert torch.equal(guide(x, 1.0, denoised, 0, True)[0], x), "none at the corrector"
    # The second trajectory's policy variance does not concern the first trajectory.
    scale = torch.tensor([1.0, 9.0], dtype=torch.float64).reshape(2, 1, 1)
    wide = GaussianPolicy(policy.bias, policy.variance, policy.gain)
    wide.distribution = lambda obs: (policy.distribution(obs)[0], policy.distribution(obs)[1] * scale)
    shift = guide(x, 1.0, denoised, 3, False)[0] - x
    other = PolicyGuidance(wide, normalizer, config, steps)(x, 1.0, denoised, 3, False)[0] - x
    torch.testing.assert_close(other, shift, atol=1e-6, rtol=1e-6)


def test_zero_gradient_gives_no_displacement():
    normalizer = statistics(1, 1)
    rows = torch.ones(2, 3, 4, dtype=torch.float64)
    guide = PolicyGuidance(constant_policy(), normalizer, GuidanceConfig(mode="paper"), 8)
    assert torch.equal(guide(rows, 1.0, rows, 0, False)[0], rows)


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


def guided_recursion(x, generator, steps, strength, churn):
    """The same sampler on N(0, 1) with a N(1, 1) policy as a scalar affine map, drawing the same noise."""
    sigmas = karras_sigmas(steps, 0.002, 80, 7).tolist()

    def slope(t):
        c, s = 1 / (1 + t * t), t * t / (1 + t * t)
        pull = strength * s / (1 + strength * s)
        return (1 - c * (1 - pull)) / t, -pull / t

    for sigma, target in pairwise(sigmas):
        level = sigma * (1 + churn.gamma(sigma, steps))
        if level > sigma:
            noise = torch.randn(x.shape, generator=generator, dtype=x.dtype)
            x = x + churn.noise * math.sqrt(level**2 - sigma**2) * noise
        rate, drift = slope(level)
        gap = target - level
        if target == 0:
            x = (1 + gap * rate) * x + gap * drift
            continue
        rate_ahead, drift_ahead = slope(target)
        gain = 1 + gap / 2 * (rate + rate_ahead * (1 + gap * rate))
        x = gain * x + gap / 2 * (drift + drift_ahead + rate_ahead * gap * drift)
    return x


@pytest.mark.parametrize("churn", [Churn(), PGD])
@pytest.mark.parametrize("strength", [0.5, 2.0])
def test_b3_affine_recursion(churn, strength):
    config = GuidanceConfig(strength=strength)
    out = run(config, GaussianDenoiser(0.0, 1.0), 32, 500, churn=churn)
    generator = torch.Generator().manual_seed(7)
    x = 80 * torch.randn(500, 1, 4, generator=generator, dtype=torch.float64)
    expected = guided_recursion(x, generator, 32, strength, churn)[..., 1:2]
    assert float(out.mean() - expected.mean()) == pytest.approx(0, abs=1e-6)
    assert float(out.std() - expected.std()) == pytest.approx(0, abs=1e-6)
    torch.testing.assert_close(out, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("strength", "mean", "std"), [(0.5, 0.333, 0.8165), (1.0, 0.5, 0.7071), (2.0, 0.667, 0.5774), (4.0, 0.8, 0.4472)]
)
@pytest.mark.parametrize("churn", [Churn(), PGD])
def test_b2_score_exact_is_exact_on_gaussians(strength, mean, std, churn):
    out = run(GuidanceConfig(strength=strength), GaussianDenoiser(0.0, 1.0), 128, 20_000, churn=churn)
    assert float(out.mean()) == pytest.approx(mean, abs=0.015)
    assert float(out.std()) == pytest.approx(std, abs=0.015)


def paper(strength, steps, reevaluate=False, batch=400):
    denoise = GaussianDenoiser(0.0, 1.0)
    config = GuidanceConfig(mode="paper", strength=strength)
    out = run(config, denoise, steps, batch, length=16, actions=6, reevaluate=denoise if reevaluate else None)
    return float(out.mean()), float(out.std(0).mean())


@pytest.mark.parametrize("reevaluate", [False, True])
@pytest.mark.parametrize(("strength", "mean", "std"), [(0.5, 0.843, 0.213), (1.0, 1.0, 0.0005), (2.0, 1.0, 0.0005)])
def test_b5_paper_anchors(strength, mean, std, reevaluate):
    got = paper(strength, 256, reevaluate)
    assert got == pytest.approx((mean, std), abs=0.02)


B6 = [(512, 0.454, 0.61), (256, 0.443, 0.62), (128, 0.489, 0.58), (64, 0.571, 0.51)]


@pytest.mark.parametrize(("steps", "mean", "std"), B6)
def test_b6_rescaling_reevaluated(steps, mean, std):
    """The anchors come from a sampler that denoises the displaced sample again."""
    assert paper(0.25, steps, reevaluate=True) == pytest.approx((mean, std), abs=0.03)


@pytest.mark.parametrize(("steps", "mean", "std"), [*B6[:3], (64, 0.607, 0.488)])
def test_b6_rescaling(steps, mean, std):
    """With the slope kept, the anchors hold down to 128 steps; at 64 the pull is stronger (an independent scalar
    simulation of that form gives .607 and .488)."""
    assert paper(0.25, steps) == pytest.approx((mean, std), abs=0.03 if steps > 64 else 0.015)


def test_b3_schedule():
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


class MixtureActions:
    """Each action from two Gaussians at +-1 (std .2), standardised; the other columns standard normal."""

    spread = math.sqrt(1.04)

    def __init__(self, actions):
        self.columns = slice(1, 1 + actions)
        means = torch.tensor([[1.0], [-1.0]], dtype=torch.float64) / self.spread
        half = torch.tensor([0.5, 0.5], dtype=torch.float64)
        self.mixture = MixtureDenoiser(means, torch.full((2,), 0.2, dtype=torch.float64) / self.spread, half)

    def __call__(self, x, sigma):
        denoised = x / (1 + per_trajectory(sigma, x).square())
        actions = x[..., self.columns]
        denoised[..., self.columns] = self.mixture(actions.reshape(-1, 1), sigma).reshape(actions.shape)
        return denoised


def mixture_sample(mode, strength, steps, batch, length=1, actions=1):
    normalizer = statistics(1, actions, action_std=MixtureActions.spread)
    out = run(
        GuidanceConfig(mode=mode, strength=strength),
        MixtureActions(actions),
        steps,
        batch,
        length=length,
        actions=actions,
        policy=constant_policy(1.0, 0.25, actions),
        normalizer=normalizer,
        churn=Churn(80, 0.05, 50, 1.0),
    )
    return out.flatten() * MixtureActions.spread


@pytest.mark.parametrize(("strength", "share"), [(0.25, 0.757), (0.5, 0.876), (1.0, 0.963)])
def test_b10_mixture(strength, share):
    """score_exact underweights the choice between modes, and is exact inside each."""
    action = mixture_sample("score_exact", strength, 256, 30_000)
    right = action > 0
    assert float(right.double().mean()) == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / 20_000))
    variance = 1 / (1 / 0.04 + strength / 0.25)
    assert float(action[right].mean()) == pytest.approx(variance * (1 / 0.04 + strength / 0.25), abs=0.003)
    assert float(action[right].std()) == pytest.approx(math.sqrt(variance), abs=0.003)


@pytest.mark.parametrize("mode", ["paper", "score_exact"])
def test_b4_likelihood_rises_with_strength(mode):
    """Up to the point where mode paper has collapsed onto the policy's mode: from there on strength only stirs."""
    errors = []
    for strength in (0.0, 0.25, 0.5, 1.0, 2.0):
        errors.append(float(((mixture_sample(mode, strength, 64, 100, 16, 6) - 1) ** 2).mean()))
    assert all(later < earlier or later < 1e-3 for earlier, later in pairwise(errors)), errors
    assert errors[0] > 2
    assert errors[-1] < 0.06

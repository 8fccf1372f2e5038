"""What guided samplers draw where the answer is known (section B.8: B1 to B6 and B10)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from guidance_cases import (
    MODES,
    PGD,
    PLAIN,
    SOLVERS,
    MixtureActions,
    constant_policy,
    published_heun,
    pure_noise,
    random_case,
    run,
    sample,
    statistics,
)

from raydiff.config import GuidanceConfig
from raydiff.diffusion.edm import karras_sigmas
from raydiff.diffusion.exact import GaussianDenoiser
from raydiff.diffusion.samplers import Churn, network_calls
from raydiff.guidance.api import Hooks
from raydiff.guidance.build import guidance_hooks
from raydiff.guidance.policy import PolicyGuidance

STANDARD = GaussianDenoiser(0.0, 1.0)


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("mode", MODES)
def test_b1_no_strength_is_unguided_bit_for_bit(mode, solver):
    normalizer, policy, _, _ = random_case("atanh")
    config = GuidanceConfig(mode=mode, strength=0.0, euler_from_unchurned=False)
    guide = PolicyGuidance(policy, normalizer, config, 8, denoise=STANDARD)
    hooks = Hooks(guide, guide.shift if mode == "paper_code" else None, False, 0, mode, 0.0)
    assert guidance_hooks(normalizer, config, policy, 8, denoise=STANDARD) is None
    outs = []
    for given in (None, hooks):
        generator = torch.Generator().manual_seed(1)
        x = 80 * torch.randn(16, 4, 9, generator=generator)
        outs.append(sample(solver, STANDARD, x, 8, PGD, given, generator))
    assert torch.equal(*outs)


def affine_steps(slope, steps, churn):
    """Heun's steps as scalar maps ``gain * (x + spread * noise) + offset``, for ``dx/dsigma = rate x + drift``."""
    for sigma, target in pairwise(karras_sigmas(steps, 0.002, 80, 7).tolist()):
        level = sigma * (1 + churn.gamma(sigma, steps))
        spread, gap = churn.noise * math.sqrt(level**2 - sigma**2), target - level
        rate, drift = slope(level)
        if target == 0:
            yield 1 + gap * rate, spread, gap * drift
            continue
        ahead, drift_ahead = slope(target)
        gain = 1 + gap / 2 * (rate + ahead * (1 + gap * rate))
        yield gain, spread, gap / 2 * (drift + drift_ahead + ahead * gap * drift)


def moments(slope, steps, churn):
    mean, variance = 0.0, 80.0**2
    for gain, spread, offset in affine_steps(slope, steps, churn):
        mean, variance = gain * mean + offset, gain**2 * (variance + spread**2)
    return mean, math.sqrt(variance)


def exact_pull(strength):
    return lambda t: strength * t**2 / (1 + t**2 + strength * t**2)


def score_pull(strength, chain_rule, switched=True):
    return lambda t: strength * t**2 / (1 + t**2 if chain_rule else 1) if t <= 1 or not switched else 0.0


def towards_one(pull):
    """Slope for N(0, 1) data whose denoised sample moves by the part ``pull(sigma)`` of its way to 1."""
    return lambda t: ((1 - (1 - pull(t)) / (1 + t**2)) / t, -pull(t) / t)


AFFINE = [
    (dict(mode="score_exact"), exact_pull),
    (dict(mode="score"), lambda strength: score_pull(strength, True)),
    (dict(mode="score", chain_rule=False), lambda strength: score_pull(strength, False)),
]


@pytest.mark.parametrize("churn", [Churn(), PGD])
@pytest.mark.parametrize("strength", [0.5, 2.0])
@pytest.mark.parametrize(("mode", "pull"), AFFINE)
def test_b3_affine_recursion(churn, strength, mode, pull):
    """The same noise through a scalar recursion; data N(0, 1), policy N(1, 1)."""
    out = run(GuidanceConfig(strength=strength, **mode), STANDARD, 32, 500, churn=churn)
    generator = torch.Generator().manual_seed(7)
    x = pure_noise(generator, 500, 1, 4)
    for gain, spread, offset in affine_steps(towards_one(pull(strength)), 32, churn):
        noise = torch.randn(x.shape, generator=generator, dtype=x.dtype) if spread else 0.0
        x = gain * (x + spread * noise) + offset
    torch.testing.assert_close(out, x[..., 1:2], atol=1e-6, rtol=1e-6)


def test_score_terms_left_on_at_all_levels_are_not_the_tilted_density():
    """The recursion against section B.2, whose figures are of 4,000 draws (standard error .01); the tilted density has
    mean .5 and deviation .7071. Then what the switch makes of it (docs/algorithms.md, B.5)."""
    both = lambda pull, churn: pytest.approx(moments(towards_one(pull), 256, churn), abs=0.02)  # noqa: E731
    assert both(score_pull(1.0, False, switched=False), Churn()) == (4.39, 0.0125)
    assert both(score_pull(1.0, True, switched=False), Churn()) == (0.708, 0.606)
    assert both(score_pull(1.0, True, switched=False), PGD) == (0.544, 0.689)
    assert both(exact_pull(1.0), Churn()) == (0.485, 0.706)
    assert both(exact_pull(1.0), PGD) == (0.503, 0.705)
    assert both(score_pull(1.0, True), Churn()) == (0.253, 0.782)
    assert both(score_pull(1.0, True), PGD) == (0.530, 0.696)


@pytest.mark.parametrize("mode", MODES)
def test_the_solver_with_all_hooks_is_the_written_out_sampler(mode):
    """``paper_code`` with its shift before the churn and its own Euler step, and the other modes; three network calls
    a step for ``paper_code``, of which the last step saves two."""
    normalizer, policy, _, _ = random_case("atanh")
    calls = []

    def denoise(x, sigma):
        calls.append(float(sigma))
        return STANDARD(x, sigma)

    outs = []
    for sampler in ("solver", "reference"):
        calls.clear()
        hooks = guidance_hooks(normalizer, GuidanceConfig(mode=mode, strength=0.05), policy, 16, denoise=denoise)
        assert hooks.name == mode
        assert hooks.euler_from_unchurned == (mode == "paper_code")
        generator = torch.Generator().manual_seed(1)
        x = 80 * torch.randn(16, 4, 9, generator=generator, dtype=torch.float64)
        if sampler == "solver":
            outs.append(sample("heun", denoise, x, 16, PGD, hooks, generator))
        else:
            outs.append(published_heun(denoise, x, karras_sigmas(16, 0.002, 80, 7), PGD, hooks, generator))
        assert len(calls) == network_calls("heun", 16) + hooks.calls(16)
        assert len(calls) == (46 if mode == "paper_code" else 31)
    torch.testing.assert_close(*outs, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize(
    ("strength", "mean", "std"), [(0.5, 0.333, 0.8165), (1.0, 0.5, 0.7071), (2.0, 0.667, 0.5774), (4.0, 0.8, 0.4472)]
)
@pytest.mark.parametrize("solver", SOLVERS)
def test_b2_score_exact_is_exact_on_gaussians(strength, mean, std, solver):
    config = GuidanceConfig(strength=strength)
    out = run(config, STANDARD, 128, 2_500, actions=8, churn=PGD, solver=solver)
    assert float(out.mean()) == pytest.approx(mean, abs=0.015)
    assert float(out.std()) == pytest.approx(std, abs=0.015)


def displaced(mode, strength, steps):
    """Mean and deviation of 96 action entries under a displacing mode; data N(0, 1), policy N(1, 1)."""
    config = GuidanceConfig(mode=mode, strength=strength, euler_from_unchurned=False)
    out = run(config, STANDARD, steps, 400, length=16, actions=6)
    return float(out.mean()), float(out.std(0).mean())


@pytest.mark.parametrize("mode", ["paper", "paper_code"])
@pytest.mark.parametrize(("strength", "mean", "std"), [(0.5, 0.843, 0.213), (1.0, 1.0, 0.0005), (2.0, 1.0, 0.0005)])
def test_b5_displacement_anchors(strength, mean, std, mode):
    assert displaced(mode, strength, 256) == pytest.approx((mean, std), abs=0.02)


B6 = [(512, 0.454, 0.61), (256, 0.443, 0.62), (128, 0.489, 0.58), (64, 0.571, 0.51)]


@pytest.mark.parametrize(("steps", "mean", "std"), B6)
def test_b6_rescaling_as_coded(steps, mean, std):
    """The anchors come from a sampler that denoises the displaced sample again, as the published code does."""
    assert displaced("paper_code", 0.25, steps) == pytest.approx((mean, std), abs=0.03)


@pytest.mark.parametrize(("steps", "mean", "std"), [*B6[:3], (64, 0.607, 0.488)])
def test_b6_rescaling(steps, mean, std):
    """With the slope kept, the anchors hold down to 128 steps; at 64 the pull is stronger (an independent scalar
    simulation of that form gives .607 and .488)."""
    assert displaced("paper", 0.25, steps) == pytest.approx((mean, std), abs=0.03 if steps > 64 else 0.015)


@pytest.mark.parametrize(("steps", "std"), [(128, 1.061), (64, 1.133)])
def test_the_published_euler_step_widens_the_output(steps, std):
    """Section A.3, note 5: as coded the samples are too wide even where nothing is guided."""
    config = GuidanceConfig(mode="paper_code", strength=0.0)
    out = run(config, STANDARD, steps, 2_500, actions=8)
    assert float(out.std()) == pytest.approx(std, abs=0.015)


def mixture_sample(mode, strength, steps, batch, length=1, actions=1, solver="heun"):
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
        churn=PLAIN,
        solver=solver,
    )
    return out.flatten() * MixtureActions.spread


@pytest.mark.parametrize(("strength", "share"), [(0.25, 0.757), (0.5, 0.876), (1.0, 0.963)])
def test_b10_mixture(strength, share):
    """score_exact underweights the choice between modes, and is exact inside each."""
    action = mixture_sample("score_exact", strength, 256, 3_750, actions=8)
    right = action > 0
    assert float(right.double().mean()) == pytest.approx(share, abs=3 * math.sqrt(share * (1 - share) / 20_000))
    variance = 1 / (1 / 0.04 + strength / 0.25)
    assert float(action[right].mean()) == pytest.approx(1.0, abs=0.003)
    assert float(action[right].std()) == pytest.approx(math.sqrt(variance), abs=0.003)


@pytest.mark.parametrize(
    ("mode", "solver"), [*((mode, "heun") for mode in MODES), *(("score_exact", name) for name in SOLVERS[1:])]
)
def test_b4_likelihood_rises_with_strength(mode, solver):
    """Up to the point where displacing modes have collapsed onto the policy's mode: from there on strength only
    stirs."""
    errors = []
    for strength in (0.0, 0.25, 0.5, 1.0, 2.0):
        errors.append(float(((mixture_sample(mode, strength, 64, 100, 16, 6, solver) - 1) ** 2).mean()))
    assert all(later < earlier or later < 1e-3 for earlier, later in pairwise(errors)), errors
    assert errors[0] > 2
    assert errors[-1] < 0.5 * errors[0]
    if mode != "score":
        assert errors[-1] < (0.06 if solver == "heun" else 0.1)  # fresh noise also moves samples between the modes

"""From a configuration to hooks: what is built, what it is called, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from guidance_cases import GaussianPolicy, ValuedPolicy, constant_policy, random_case, statistics

from raydiff.agents.policy import Policy
from raydiff.agents.registry import build_agent
from raydiff.config import GuidanceConfig
from raydiff.config_learner import LearnerConfig
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.guidance.build import guidance_hooks, needs_critic

NORMALIZER = statistics(1, 1)


@pytest.mark.parametrize(
    ("settings", "name", "strength"),
    [
        (dict(mode="score_exact", strength=2.0), "score_exact", 2.0),
        (dict(mode="score", strength=2.0), "score", 2.0),
        (dict(mode="paper", strength=0.25), "paper", 4.0),
        (dict(mode="paper_code", strength=0.25), "paper_code", 4.0),
        (dict(kind="value", strength=0.25), "value", 4.0),
        (dict(kind="value", strength=0.25, normalize=False), "value", 0.25),
        (dict(kind="analytic_energy", strength=1.0), "analytic_energy", 1.0),
    ],
)
def test_names_strengths_and_calls(settings, name, strength):
    """Published strengths are those of 256 steps: at 16 steps they count 16 times, in the last half of 16 twice less."""
    config, policy = GuidanceConfig(**settings), ValuedPolicy(torch.ones(1, dtype=torch.float64))
    hooks = guidance_hooks(NORMALIZER, config, policy, 16, denoise=lambda x, sigma: x)
    assert (hooks.name, hooks.strength) == (name, strength)
    coded = name == "paper_code"
    assert (hooks.shift is not None, hooks.guide is None, hooks.euler_from_unchurned) == (coded, coded, coded)
    assert hooks.calls(16) == (15 if coded else 0)
    late = guidance_hooks(NORMALIZER, config, policy, 16, start=0.5, denoise=lambda x, sigma: x)
    assert late.strength == (strength / 2 if strength == 4.0 else strength)


def test_nothing_to_do_is_none():
    policy = constant_policy()
    for config in (GuidanceConfig(kind="none"), GuidanceConfig(strength=0.0)):
        assert guidance_hooks(NORMALIZER, config, policy, 16) is None
    for kind in ("policy", "value", "analytic_energy"):
        assert guidance_hooks(NORMALIZER, GuidanceConfig(kind=kind), None, 16) is None


def test_the_published_euler_step_is_there_unguided_too():
    config = GuidanceConfig(mode="paper_code")
    hooks = guidance_hooks(NORMALIZER, config, None, 16)
    assert (hooks.guide, hooks.shift, hooks.euler_from_unchurned) == (None, None, True)
    assert (hooks.name, hooks.strength, hooks.calls(16)) == ("none", 0.0, 0)
    plain = GuidanceConfig(mode="paper_code", euler_from_unchurned=False)
    assert guidance_hooks(NORMALIZER, plain, None, 16) is None
    hooks = guidance_hooks(NORMALIZER, plain, constant_policy(), 16, denoise=lambda x, sigma: x)
    assert not hooks.euler_from_unchurned


@pytest.mark.parametrize("kind", ["value", "analytic_energy"])
def test_a_policy_without_critic_is_refused(kind):
    config = GuidanceConfig(kind=kind)
    assert needs_critic(config)
    agent = build_agent(LearnerConfig(hidden=(8,)), 1, 1, np.zeros(1), np.ones(1), 0)
    for policy in (constant_policy(), Policy.from_blob(agent.policy_blob(0))):
        with pytest.raises(ValueError, match=rf"guidance\.kind={kind} follows a critic"):
            guidance_hooks(NORMALIZER, config, policy, 16)


@pytest.mark.parametrize("algorithm", ["td3_bc", "iql"])
@pytest.mark.parametrize("kind", ["value", "analytic_energy"])
def test_published_critics_guide_in_inference_mode(kind, algorithm):
    """As generators do it: float32, inference mode, a policy from its blob. Value rises, by the critic's own word."""
    double = random_case("raw", batch=32)
    normalizer = TrajectoryNormalizer(double[0].mean.float(), double[0].std.float(), 5, 2, "raw")
    x, denoised = double[2].float(), double[3].float() * 0.3
    config = GuidanceConfig(kind=kind, normalize=False, strength=1.0, beta=5.0)
    learner = LearnerConfig(algorithm=algorithm, hidden=(32, 32))
    agent = build_agent(learner, 5, 2, np.zeros(5), np.ones(5), 0, publish_critic=needs_critic(config))
    policy = Policy.from_blob(agent.policy_blob(0))
    with torch.inference_mode():
        guide = guidance_hooks(normalizer, config, policy, 16).guide
        guided = guide(x * 1.0, 0.2, denoised * 1.0, 0, False)[1]
        before, after = (
            policy.value(rows[..., :5], rows[..., 5:7].clamp(-1, 1))
            for rows in (denoised * normalizer.std + normalizer.mean, guided * normalizer.std + normalizer.mean)
        )
    assert guided.dtype == torch.float32
    assert guided.isfinite().all()
    assert (after > before).float().mean() > 0.9
    policy_only = guidance_hooks(normalizer, GuidanceConfig(), policy, 16).guide
    assert isinstance(policy, Policy)
    assert not torch.equal(policy_only(x, 0.2, denoised, 0, False)[1], guided)


def test_deterministic_and_gaussian_policies_agree_at_equal_width():
    """A deterministic policy stands for a Gaussian of standard deviation ``delta`` (B.4)."""
    normalizer, policy, x, denoised = random_case("atanh")
    wide = GaussianPolicy(policy.bias, torch.full_like(policy.bias, 0.3**2), policy.gain)
    sharp = GaussianPolicy(policy.bias, None, policy.gain)
    for mode in ("paper", "score", "score_exact"):
        config = GuidanceConfig(mode=mode, delta=0.3)
        outs = [guidance_hooks(normalizer, config, p, 16).guide(x, 0.3, denoised, 3, False) for p in (wide, sharp)]
        for first, second in zip(*outs, strict=True):
            torch.testing.assert_close(first, second, atol=1e-12, rtol=1e-12)

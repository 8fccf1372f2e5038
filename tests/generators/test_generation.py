"""Generation and refresh: reproducible bytes, units, guidance and the limits of refresh."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
import torch

from raydiff.config import DenoiserConfig, GuidanceConfig, NetworkConfig, RefinerConfig, SamplerConfig
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.edm import Denoiser
from raydiff.diffusion.networks import build_network
from raydiff.generators.pgd import TrajectoryGenerator
from raydiff.generators.refine import Refresher, schedule_progress
from raydiff.types import Trajectories

S, A, L = 3, 2, 3
SAMPLER = SamplerConfig(steps=8, churn=5, sigma_min=0.002, sigma_max=80.0)


def make_bundle(space="raw", output=0.0):
    """A denoiser that is exact for standard normal data where ``output`` is 0: its network's output is zero."""
    torch.manual_seed(0)
    config = DenoiserConfig(network=NetworkConfig(width=16, depth=1), length=L, action_space=space)
    denoiser = Denoiser(build_network(config.network, L, S + A + 2)).eval().requires_grad_(False)
    if output:
        torch.nn.init.normal_(denoiser.network.output.weight, std=output)
    rows = np.random.default_rng(0).normal(0.1, 0.3, (500, S + A + 2)).astype(np.float32)
    rows[:, -1] = 0
    normalizer = TrajectoryNormalizer.fit(rows, S, A, space)
    return DenoiserBundle(denoiser, normalizer, L, S, A, "test", config)


class LinearPolicy:
    def __init__(self, deterministic=True, level=0.5):
        self.deterministic, self.level = deterministic, level

    def distribution(self, observation):
        mean = (observation[..., :A] * 0.5 + self.level).tanh()
        return mean, None if self.deterministic else torch.full_like(mean, 0.05)


def digest(rows):
    return hashlib.sha256(np.ascontiguousarray(rows).tobytes()).hexdigest()


def generate(guidance=None, policy=None, key=(1, 2, 3), n=64, bundle=None):
    bundle = bundle or make_bundle(output=0.3)
    return TrajectoryGenerator(bundle, SAMPLER, guidance or GuidanceConfig(), "cpu").generate(policy, n, key)


def test_generates_in_environment_units():
    made = generate()
    assert made.trajectories.rows.shape == (64, L, S + A + 2)
    assert made.trajectories.rows.dtype == np.float32
    assert np.abs(made.trajectories.action).max() <= 1
    assert set(np.unique(made.trajectories.terminal)) <= {0.0, 1.0}
    assert (made.nfe, made.guidance, made.strength, made.agreement) == (15, "none", 0.0, None)


def test_same_key_same_bytes_and_no_other_source_of_randomness():
    first = generate(policy=LinearPolicy())
    torch.manual_seed(99)
    np.random.seed(99)
    assert digest(generate(policy=LinearPolicy()).trajectories.rows) == digest(first.trajectories.rows)
    keys = [(1, 2, 4), (1, 23), (12, 3)]
    others = {digest(generate(policy=LinearPolicy(), key=key).trajectories.rows) for key in keys}
    assert len(others | {digest(first.trajectories.rows)}) == 4


CHILD = """
import importlib.util, sys, torch
torch.set_num_threads(int(sys.argv[2]))
spec = importlib.util.spec_from_file_location("generation", sys.argv[1])
module = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
print(module.digest(module.generate(policy=module.LinearPolicy()).trajectories.rows))
"""


def test_same_key_same_bytes_in_a_fresh_process():
    threads = str(torch.get_num_threads())
    child = subprocess.run(
        [sys.executable, "-c", CHILD, __file__, threads], capture_output=True, text=True, check=True, timeout=120
    )
    assert child.stdout.strip() == digest(generate(policy=LinearPolicy()).trajectories.rows)


@pytest.mark.parametrize("space", ["raw", "atanh"])
@pytest.mark.parametrize("deterministic", [True, False])
@pytest.mark.parametrize("mode", ["paper", "score_exact"])
def test_guidance_brings_actions_nearer_to_the_policy(mode, deterministic, space):
    policy, bundle = LinearPolicy(deterministic), make_bundle(space)
    guidance = GuidanceConfig(mode=mode, strength=0.05 if mode == "paper" else 2.0)
    guided = generate(guidance, policy, n=256, bundle=bundle)
    plain = generate(GuidanceConfig(kind="none"), policy, n=256, bundle=bundle)
    assert guided.guidance == mode
    assert guided.strength == pytest.approx(0.05 * 256 / 8 if mode == "paper" else 2.0)
    assert plain.guidance == "none"
    assert guided.agreement.deviation < 0.7 * plain.agreement.deviation


def test_unguided_ways_agree_bit_for_bit():
    """No policy, guidance none and strength 0 are the same generation."""
    policy = LinearPolicy()
    expected = digest(generate().trajectories.rows)
    off = GuidanceConfig(kind="none"), GuidanceConfig(strength=0), GuidanceConfig(mode="paper", strength=0)
    for guidance in off:
        assert digest(generate(guidance, policy).trajectories.rows) == expected


def test_deviation_counts_valid_transitions_only():
    policy = LinearPolicy()
    made = generate(GuidanceConfig(kind="none"), policy)
    steps = made.trajectories.transitions()
    mean = policy.distribution(torch.from_numpy(steps.observation))[0].numpy()
    assert made.agreement.deviation == pytest.approx(float(((steps.action - mean) ** 2).mean()), rel=1e-5)


def stored(bundle, n=4_000, seed=1):
    """Trajectories as the bundle's exact data: standard normal in its units, terminals at 0."""
    x = torch.randn(n, L, S + A + 2, generator=torch.Generator().manual_seed(seed))
    return Trajectories(bundle.normalizer.decode(x).numpy(), S, A)


def refreshed(bundle, trajectories, sigma, policy=None, guidance=None, key=(5,), steps=12):
    refiner = RefinerConfig(sigma=sigma, steps=steps)
    return Refresher(bundle, SAMPLER, guidance or GuidanceConfig(), refiner).refine(trajectories, policy, key)


@pytest.mark.parametrize("space", ["raw", "atanh"])
def test_refresh_at_no_noise_returns_the_input(space):
    bundle = make_bundle(space)
    before = stored(bundle)
    assert refreshed(bundle, before, 0.002, LinearPolicy()).trajectories is before
    made = refreshed(bundle, before, 0.003)
    # Inside +-0.999 in the atanh space; beyond it, the encoding itself clips.
    kept = np.abs(before.action).max((1, 2)) < (0.99 if space == "atanh" else 1.1)
    np.testing.assert_allclose(made.trajectories.rows[kept][..., :-1], before.rows[kept][..., :-1], atol=0.02)


def test_refresh_at_sigma_max_is_generating_anew():
    bundle = make_bundle()
    guidance, policy = GuidanceConfig(strength=2.0), LinearPolicy(False)
    far = Trajectories(stored(bundle).rows * np.float32(0.2), S, A)
    made = refreshed(bundle, far, SAMPLER.sigma_max, policy, guidance, steps=SAMPLER.steps)
    anew = generate(guidance, policy, n=4_000, bundle=bundle)
    assert made.nfe == anew.nfe
    first, second = made.trajectories, anew.trajectories
    np.testing.assert_allclose(first.action.mean((0, 1)), second.action.mean((0, 1)), atol=0.03)
    np.testing.assert_allclose(first.rows.std((0, 1)), second.rows.std((0, 1)), rtol=0.05, atol=1e-6)
    before, after = far.observation[:, 0, 0], made.trajectories.observation[:, 0, 0]
    assert abs(np.corrcoef(before, after)[0, 1]) < 0.08, "nothing of the input is left"


def test_refresh_keeps_the_distribution_and_part_of_the_sample():
    """Exact denoiser, no guidance: the marginal stays and the correlation with the input is 1 / sqrt(1 + sigma^2)."""
    bundle = make_bundle()
    before = stored(bundle)
    made = refreshed(bundle, before, 1.0, steps=24)
    assert made.nfe == 47
    np.testing.assert_allclose(made.trajectories.observation.std((0, 1)), before.observation.std((0, 1)), rtol=0.04)
    correlation = np.corrcoef(before.observation.ravel(), made.trajectories.observation.ravel())[0, 1]
    assert 0.55 < correlation < 0.73


@pytest.mark.parametrize("mode", ["paper", "score_exact"])
def test_refresh_follows_the_current_policy(mode):
    bundle, policy = make_bundle(), LinearPolicy(False)
    before = stored(bundle, 500)
    guidance = GuidanceConfig(mode=mode, strength=0.05 if mode == "paper" else 2.0)
    guided = refreshed(bundle, before, 1.0, policy, guidance)
    plain = refreshed(bundle, before, 1.0, policy, GuidanceConfig(kind="none"))
    assert guided.agreement.deviation < 0.8 * plain.agreement.deviation
    again = refreshed(bundle, before, 1.0, policy, guidance)
    assert digest(again.trajectories.rows) == digest(guided.trajectories.rows)


def test_refresh_above_sigma_max_is_refused():
    bundle = make_bundle()
    with pytest.raises(ValueError, match=r"refiner\.sigma=81"):
        refreshed(bundle, stored(bundle, 4), 81.0)


def test_schedule_progress():
    assert schedule_progress(80.0, SAMPLER) == 0
    assert schedule_progress(0.002, SAMPLER) == pytest.approx(1)
    assert schedule_progress(1.0, SAMPLER) == pytest.approx(0.597, abs=0.001)

"""Automatic strength (section B.7) on Gaussian data, where the fit at every strength is known, and on made-up answers."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from raydiff.config import DenoiserConfig, GuidanceConfig, NetworkConfig, SamplerConfig
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.edm import Denoiser
from raydiff.diffusion.networks import build_network
from raydiff.generators.pgd import TrajectoryGenerator
from raydiff.guidance.strength import StrengthController, Target, find_strength
from raydiff.types import Agreement

ACTIONS, SPREAD = 2, 0.15
LIMITED = dict(max_strength=16.0, strength=0.1)


class ConstantPolicy:
    """N(.1, variance) in every state; a variance of None makes it deterministic."""

    def __init__(self, variance, mean=0.1):
        self.mean, self.variance, self.deterministic = mean, variance, variance is None

    def distribution(self, observation):
        mean = torch.full((*observation.shape[:-1], ACTIONS), self.mean)
        return mean, None if self.deterministic else torch.full_like(mean, self.variance)


def gaussian_generator(config, steps=48):
    """The trajectory generator on a denoiser that is exact for actions N(0, .15^2): its network's output is zero."""
    settings = DenoiserConfig(network=NetworkConfig(width=8, depth=1), length=3)
    denoiser = Denoiser(build_network(settings.network, 3, ACTIONS + 3)).eval().requires_grad_(False)
    std = torch.tensor([1.0, SPREAD, SPREAD, 1.0, 1.0])
    normalizer = TrajectoryNormalizer(torch.zeros(5), std, 1, ACTIONS, "raw")
    bundle = DenoiserBundle(denoiser, normalizer, 3, 1, ACTIONS, "exact", settings)
    return TrajectoryGenerator(bundle, SamplerConfig(solver="dpmpp_2m", steps=steps), config, "cpu")


def squared_distance(strength, variance, mean=0.1):
    """``E (a - mean)^2`` under ``N(0, s^2) N(mean, variance)^strength``."""
    narrow = 1 / (1 / SPREAD**2 + strength / variance)
    return narrow + (narrow * strength / variance * mean - mean) ** 2


def agreement_at(strength, variance):
    """What a block of that strength reports, without its randomness."""
    squared = squared_distance(strength, variance)
    constant = math.log(2 * math.pi * variance)
    likelihood, own = (-ACTIONS / 2 * (constant + ratio) for ratio in (squared / variance, 1.0))
    return Agreement(squared, likelihood, own)


def answer(deviation=0.04, likelihood=0.0, own=0.0):
    return Agreement(deviation, likelihood, own)


def solution(variance, wanted):
    return brentq(lambda strength: squared_distance(strength, variance) - wanted, 0.0, 1e4)


# ----------------------------------------------------------------------------------------------------- the search


@pytest.mark.parametrize(("variance", "delta"), [(0.01, 0.2), (0.015, 0.2), (None, 0.1), (None, 0.12)])
def test_search_finds_the_known_strength(variance, delta):
    """A Gaussian policy's own likelihood is reached where ``E (a - mean)^2`` is its variance; a deterministic one's
    squared deviation is ``delta^2``."""
    config = GuidanceConfig(delta=delta, **LIMITED)
    wanted = delta**2 if variance is None else variance
    exact = solution(wanted, wanted)
    found = find_strength(gaussian_generator(config), ConstantPolicy(variance), config, (5,), probe=2_000)
    assert found.reached
    assert squared_distance(found.strength, wanted) == pytest.approx(wanted, rel=0.06)
    assert found.strength == pytest.approx(exact, rel=0.15)
    assert len(found.trace) <= 16
    best = min(found.trace, key=lambda probe: abs(probe.gap))
    assert best.strength == found.strength


def test_search_is_the_same_every_time_and_uses_common_numbers():
    config = GuidanceConfig(**LIMITED)
    first, again = (find_strength(gaussian_generator(config), ConstantPolicy(0.01), config, (5,)) for _ in range(2))
    assert first == again
    ordered = sorted(first.trace, key=lambda probe: probe.strength)
    gaps = [probe.gap for probe in ordered]
    assert gaps == sorted(gaps, reverse=True), "with common numbers the fit is monotone in the strength"
    assert find_strength(gaussian_generator(config), ConstantPolicy(0.01), config, (6,)) != first


def test_search_says_when_the_target_is_out_of_reach():
    config = GuidanceConfig(max_strength=0.25, target=10.0)
    found = find_strength(gaussian_generator(config, 8), ConstantPolicy(0.01), config, (5,))
    assert not found.reached
    assert found.strength == 0.25
    assert found.trace[-1].gap > 0.1
    # Actions that are near enough without guidance need none.
    config = GuidanceConfig(max_strength=0.25, target=-20.0)
    found = find_strength(gaussian_generator(config, 8), ConstantPolicy(0.01), config, (5,))
    assert (found.strength, found.reached, len(found.trace)) == (0.0, False, 1)


def test_search_survives_a_mode_that_stirs_beyond_its_best():
    """Mode paper: from some strength on, actions leave the policy again, so that the largest is far off."""
    config = GuidanceConfig(mode="paper", delta=0.1, **LIMITED)
    generator = gaussian_generator(config, 12)
    far = generator.generate(ConstantPolicy(None), 128, (5,), config.max_strength).agreement
    assert far.deviation > 0.02
    found = find_strength(generator, ConstantPolicy(None), config, (5,))
    assert found.reached
    assert found.strength < 0.1


# ------------------------------------------------------------------------------------------------- the controller


@pytest.mark.parametrize(("variance", "delta"), [(0.01, 0.2), (0.004, 0.2), (None, 0.1)])
@pytest.mark.parametrize("start", [0.01, 2.0, 50.0])
def test_controller_ends_at_the_target_by_real_blocks(variance, delta, start):
    config = GuidanceConfig(delta=delta, max_strength=16.0, strength=start)
    generator, policy = gaussian_generator(config), ConstantPolicy(variance)
    controller = StrengthController(config, ACTIONS, policy.deterministic)
    for block in range(24):
        made = generator.generate(policy, 256, (block,), controller.strength)
        controller.measured(controller.strength, made.agreement)
    record = controller.record()
    assert record["reached"]
    assert not record["unreachable"]
    wanted = delta**2 if variance is None else variance
    gap = Target(config, ACTIONS, policy.deterministic).gap(agreement_at(controller.strength, wanted))
    assert abs(gap) < 0.1


@pytest.mark.parametrize("delay", [1, 2, 6])
@pytest.mark.parametrize("variance", [0.004, 0.01, 0.015])
def test_late_answers_do_not_make_it_swing(variance, delay):
    """Every block answers ``delay`` blocks after it was commanded; the strength settles, and never beyond twice what it
    settles at."""
    controller = StrengthController(GuidanceConfig(**LIMITED), ACTIONS, False)
    exact, under_way, seen = solution(variance, variance), [], []
    for _ in range(40 * delay):
        under_way.append(controller.strength)
        seen.append(controller.strength)
        if len(under_way) == delay:
            strength = under_way.pop(0)
            controller.measured(strength, agreement_at(strength, variance))
    assert controller.strength == pytest.approx(exact, rel=0.02)
    assert max(seen) < 2 * exact


def test_one_answer_in_figures():
    """``log lambda += rate (target - l) / A``; for a deterministic policy of ``log(deviation / delta^2)``; at most a
    factor of e at once, and within the limits."""
    gaussian = StrengthController(GuidanceConfig(strength=2.0, rate=0.5), 4, False)
    gaussian.measured(2.0, answer(likelihood=-3.2, own=-2.0))
    assert gaussian.strength == pytest.approx(2 * math.exp(0.5 * 1.2 / 4))
    fixed = StrengthController(GuidanceConfig(strength=2.0, rate=0.5, target=-4.0), 4, False)
    fixed.measured(2.0, answer(likelihood=-3.2, own=-2.0))
    assert fixed.strength == pytest.approx(2 * math.exp(-0.5 * 0.8 / 4))
    deterministic = StrengthController(GuidanceConfig(strength=2.0, rate=0.5), 4, True)
    deterministic.measured(2.0, answer(deviation=0.06))
    assert deterministic.strength == pytest.approx(2 * math.sqrt(1.5))
    jump = StrengthController(GuidanceConfig(strength=2.0, max_strength=16.0), 4, False)
    jump.measured(2.0, answer(likelihood=-1e6))
    assert jump.strength == pytest.approx(2 * math.e)
    jump.measured(jump.strength, answer(likelihood=float("nan")))
    assert jump.strength == pytest.approx(2 * math.e), "an answer that is not a number changes nothing"
    for strength in (100.0, 1e-9):
        bounded = StrengthController(GuidanceConfig(strength=strength, max_strength=16.0), 4, False)
        assert bounded.strength == (16.0 if strength > 16 else 0.016)


def test_answers_to_a_strength_long_left_do_not_bring_it_back():
    controller = StrengthController(GuidanceConfig(strength=0.1, max_strength=16.0), ACTIONS, False)
    for _ in range(12):
        controller.measured(controller.strength, agreement_at(controller.strength, 0.004))
    before = controller.strength
    controller.measured(0.1, agreement_at(0.1, 0.004))
    assert controller.strength == before
    several = StrengthController(GuidanceConfig(strength=0.1, max_strength=16.0), ACTIONS, False)
    for _ in range(5):
        several.measured(0.1, agreement_at(0.1, 0.004))
    assert several.strength <= 0.1 * math.e * 1.0001, "five answers to one strength are one step"


def test_unreachable_is_logged_with_the_best():
    controller = StrengthController(GuidanceConfig(strength=1.0, max_strength=4.0, target=50.0), ACTIONS, False)
    for _ in range(10):
        controller.measured(controller.strength, agreement_at(controller.strength, 0.01))
    record = controller.record()
    assert (record["strength"], record["reached"], record["unreachable"]) == (4.0, False, True)
    assert (record["best"], record["target"]) == (4.0, 50.0)
    assert record["best_gap"] == pytest.approx((50 - agreement_at(4.0, 0.01).log_likelihood) / ACTIONS)
    assert json.loads(json.dumps(record)) == record
    assert not {"kind", "update"} & record.keys()


def test_it_turns_back_where_more_strength_fits_worse():
    """A fit that is best, and not good enough, at strength 1, and grows bad beyond it."""
    controller, seen = StrengthController(GuidanceConfig(strength=0.1, max_strength=1000.0), ACTIONS, True), []
    for _ in range(60):
        strength = controller.strength
        seen.append(strength)
        controller.measured(strength, answer(deviation=0.08 * math.exp(abs(math.log(strength)))))
    assert max(seen) < 8
    assert 0.4 < np.exp(np.mean(np.log(seen[-20:]))) < 2.5
    assert controller.record()["unreachable"]


def test_audits_limit_the_strength():
    config = GuidanceConfig(strength=4.0, max_strength=16.0, max_error=1.5)
    controller = StrengthController(config, ACTIONS, False)
    controller.audited(4.0, 0.14, 0.1)
    assert (controller.strength, controller.limit) == (4.0, 16.0)
    controller.audited(4.0, 0.16, 0.1)
    assert controller.strength == controller.limit == pytest.approx(3.2)
    for _ in range(5):
        controller.measured(controller.strength, agreement_at(0.01, 0.004))
    assert controller.strength == pytest.approx(3.2), "it does not rise beyond the limit"
    controller.audited(0.5, 0.1, 0.1)
    assert controller.limit == pytest.approx(3.2), "a block far below the limit says nothing about it"
    controller.audited(3.2, 0.1, 0.1)
    assert 3.2 < controller.limit < 4.0
    for _ in range(200):
        controller.audited(controller.limit, 1e6, 0.1)
    assert controller.strength == controller.limit == pytest.approx(0.016)
    for error, unguided in ((float("nan"), 0.1), (1.0, 0.0)):
        before = controller.limit
        controller.audited(controller.limit, error, unguided)
        assert controller.limit == before

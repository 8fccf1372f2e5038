from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from raydiff.agents.policy import Policy
from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.dynamics.reward import RewardModel
from raydiff.roles.generator import Generator
from raydiff.roles.models import Models
from raydiff.seeds import key_seed
from raydiff.types import PolicyBlob, Trajectories

Build = Callable[..., Config]
MakePolicy = Callable[[int, int], PolicyBlob]
SIZES = 11, 3  # hopper


def generator(config: Config, models: Models, name: str = "generator/0", reward: bool = True) -> Generator:
    return Generator(config, models if reward else replace(models, reward=None), name, "guided")


def test_shard_fixes_the_bytes_whoever_makes_it(
    role_config: Build, role_models: Models, make_policy: MakePolicy
) -> None:
    policy, keep_all = make_policy(0, 40), {"generator.sigma_limit": 1e6}
    first, _ = generator(role_config(**keep_all), role_models).generate(policy, 16, shard=7, block=1, guided=True)
    other = generator(role_config(**keep_all), role_models, "generator/5")
    other.generate(make_policy(3, 39), 16, shard=2, block=8, guided=True)
    again, _ = other.generate(policy, 16, shard=7, block=9, guided=True)
    np.testing.assert_array_equal(first, again)
    another, _ = other.generate(policy, 16, shard=8, block=9, guided=True)
    assert (another != again).any()
    seeded, _ = generator(role_config(seed=1, **keep_all), role_models).generate(policy, 16, 7, 1, True)
    assert (seeded != again).any()


def test_a_new_policy_is_taken_at_once(role_config: Build, role_models: Models, make_policy: MakePolicy) -> None:
    role = generator(role_config(), role_models)
    role.generate(make_policy(0, 40), 16, 7, 1, True)
    rows, report = role.generate(make_policy(1, 50), 16, 7, 2, True)
    fresh, _ = generator(role_config(), role_models).generate(make_policy(1, 50), 16, 7, 2, True)
    np.testing.assert_array_equal(rows, fresh)
    assert report.provenance.policy_version == 50


def test_provenance_says_where_a_block_came_from(
    role_config: Build, role_models: Models, make_policy: MakePolicy
) -> None:
    config = role_config()
    rows, report = generator(config, role_models).generate(make_policy(0, 40), 16, shard=7, block=3, guided=True)
    origin = report.provenance
    assert (origin.block, origin.shard, origin.parent_block) == (3, 7, None)
    assert (origin.generator, origin.learner_id, origin.policy_version) == ("generator/0", "guided", 40)
    assert origin.seed == key_seed(config.seed, "guided", "shard", 7)
    assert origin.denoiser == role_models.bundle.hash
    assert (origin.guidance, origin.strength, origin.nfe) == ("score_exact", 2.0, 2 * config.sampler.steps - 1)
    assert 0 < origin.time["start"] <= origin.time["end"]
    assert rows.dtype == np.float32
    assert rows.flags.c_contiguous
    assert report.trajectories == len(rows)
    assert report.trajectories + sum(report.dropped.values()) == 16
    assert report.agreement is not None
    assert report.agreement.deviation > 0


def test_guidance_pulls_towards_the_policy(role_config: Build, role_models: Models, make_policy: MakePolicy) -> None:
    policy = make_policy(0, 40)
    actor = Policy.from_blob(policy)
    role = generator(role_config(**{"guidance.strength": 20.0, "generator.sigma_limit": 1e6}), role_models)

    def distance(guided: bool) -> float:
        steps = Trajectories(role.generate(policy, 64, 7, 1, guided)[0], *SIZES).transitions()
        return float(((steps.action - actor.act(steps.observation)) ** 2).mean())

    assert distance(True) < 0.7 * distance(False)
    origin = role.generate(policy, 16, 7, 1, False)[1].provenance
    assert (origin.guidance, origin.strength) == ("none", 0.0)


def test_terminals_end_trajectories(
    role_config: Build, role_dataset: Dataset, role_models: Models, make_policy: MakePolicy
) -> None:
    assert role_dataset.terminal.any()
    rows, report = generator(role_config(**{"generator.sigma_limit": 1e6}), role_models).generate(
        make_policy(0, 0), 400, 7, 1, False
    )
    made = Trajectories(rows, *SIZES)
    counted = 0
    for trajectory in made.terminal:
        for value in trajectory[:-1]:
            counted += 1
            if value > 0.5:
                break
    steps = made.transitions()
    assert report.transitions == counted == len(steps)
    assert 0 < len(steps) < 400 * 2  # some ended early
    assert (steps.terminal > 0.5).any()


def test_rewards_are_those_of_the_model(role_config: Build, role_models: Models, make_policy: MakePolicy) -> None:
    policy = make_policy(0, 40)
    rows, report = generator(role_config(), role_models).generate(policy, 16, 7, 1, True)
    plain, _ = generator(role_config(), role_models, reward=False).generate(policy, 16, 7, 1, True)
    reward = np.arange(rows.shape[2]) == rows.shape[2] - 2
    np.testing.assert_array_equal(rows[:, :, ~reward], plain[:, :, ~reward])
    assert (rows[:, :-1, reward] != plain[:, :-1, reward]).any()
    assert role_models.reward is not None
    steps = Trajectories(rows, *SIZES).transitions()
    expected = RewardModel.from_state(role_models.reward).predict(
        steps.observation, steps.action, steps.next_observation
    )
    np.testing.assert_allclose(steps.reward, np.asarray(expected).ravel(), rtol=1e-5, atol=1e-5)
    assert report.reward_mean == pytest.approx(float(steps.reward.mean()), rel=1e-4)


def test_refined_block_names_its_parent(role_config: Build, role_models: Models, make_policy: MakePolicy) -> None:
    config = role_config()
    rows, _ = generator(config, role_models).generate(make_policy(0, 0), 16, 7, 1, False)
    kept = rows.copy()
    role = generator(config, role_models, "refiner/0")
    refined, report = role.refine(rows, make_policy(1, 90), shard=9, block=2, parent=1)
    again, _ = generator(config, role_models).refine(rows, make_policy(1, 90), shard=9, block=5, parent=1)
    np.testing.assert_array_equal(refined, again)
    np.testing.assert_array_equal(rows, kept)
    origin = report.provenance
    assert (origin.block, origin.parent_block, origin.shard) == (2, 1, 9)
    assert (origin.generator, origin.policy_version) == ("refiner/0", 90)
    assert origin.nfe == 2 * config.refiner.steps - 1
    assert origin.guidance == "score_exact"
    assert refined.shape[1:] == rows.shape[1:]


def test_refining_from_no_noise_changes_nothing(
    role_config: Build, role_models: Models, make_policy: MakePolicy
) -> None:
    config = role_config(**{"refiner.sigma": 0.002})
    rows, _ = generator(config, role_models, reward=False).generate(make_policy(0, 0), 16, 7, 1, False)
    refined, report = generator(config, role_models, "refiner/0", reward=False).refine(rows, make_policy(1, 9), 9, 2, 1)
    np.testing.assert_array_equal(refined, rows)
    assert report.provenance.nfe == 0


def test_damaged_policy_is_refused(role_config: Build, role_models: Models, make_policy: MakePolicy) -> None:
    policy = make_policy(0, 40)
    damaged = replace(policy, weights=policy.weights + 1)
    with pytest.raises(ValueError, match="checksum"):
        generator(role_config(), role_models).generate(damaged, 4, 1, 1, True)


def test_what_lies_far_outside_the_data_is_dropped_and_counted(
    role_config: Build, role_models: Models, make_policy: MakePolicy
) -> None:
    config = role_config(**{"generator.sigma_limit": 0.01})
    rows, report = generator(config, role_models).generate(make_policy(0, 0), 16, 7, 1, False)
    assert rows.shape == (0, 3, 16)
    assert report.dropped == {"out_of_range": 16}
    assert (report.trajectories, report.transitions, report.reward_mean) == (0, 0, 0.0)


def test_each_seed_gets_the_block_of_its_own_run(
    role_config: Build, role_models: Models, make_policy: MakePolicy
) -> None:
    """Made, and brought up to date, for the policy of each; parts differ in length where trajectories are dropped."""
    policies, newer = [make_policy(0, 40), make_policy(1, 40)], [make_policy(2, 50), make_policy(3, 50)]
    limits = {"generator.sigma_limit": 4.0}
    role = generator(role_config(seed=5, **{"learner.seeds": 2}, **limits), role_models)
    rows, reports = role.generate_all(policies, 16, 7, 1, True)
    sizes = [report.trajectories for report in reports]
    again, refreshed = role.refine_all(rows, sizes, newer, 9, 2, 1)
    start = end = 0
    for member, seed in enumerate((5, 6)):
        own = generator(role_config(seed=seed, **limits), role_models)
        alone, report = own.generate(policies[member], 16, 7, 1, True)
        np.testing.assert_array_equal(rows[start : start + sizes[member]], alone)
        assert replace(reports[member].provenance, time={}) == replace(report.provenance, time={})
        assert reports[member].agreement == report.agreement
        better, newest = own.refine(alone, newer[member], 9, 2, 1)
        np.testing.assert_array_equal(again[end : end + refreshed[member].trajectories], better)
        assert refreshed[member].provenance.policy_version == newest.provenance.policy_version == 50
        start, end = start + sizes[member], end + refreshed[member].trajectories
    assert (start, end) == (len(rows), len(again))

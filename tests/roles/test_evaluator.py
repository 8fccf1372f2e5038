from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.evaluation.scores import normalized_score
from raydiff.roles.evaluator import Evaluator
from raydiff.types import PolicyBlob

Build = Callable[..., Config]
MakePolicy = Callable[[int, int], PolicyBlob]


def evaluator(config: Config, dataset: Dataset) -> Evaluator:
    return Evaluator(config, np.maximum(dataset.observation.var(0), 1e-6))


def real_block(dataset: Dataset, length: int = 3) -> np.ndarray:
    """Real rows as a block ``[n, L, C]``: pieces of episodes, none across an end."""
    rows = np.concatenate(
        [dataset.observation, dataset.action, dataset.reward[:, None], dataset.terminal[:, None]], 1, dtype=np.float32
    )
    pieces = [
        rows[start : start + length]
        for first, stop in dataset.episode_slices("raydiff")
        for start in range(first, stop - length + 1, length)
    ]
    return np.stack(pieces)


def test_same_seeds_same_returns(role_config: Build, role_dataset: Dataset, make_policy: MakePolicy) -> None:
    policy = make_policy(0, 40)
    first = evaluator(role_config(), role_dataset).evaluate(policy, final=False)
    role = evaluator(role_config(), role_dataset)
    role.evaluate(make_policy(1, 41), final=False)
    again = role.evaluate(policy, final=False)
    assert first.returns == again.returns
    assert first.normalized == again.normalized
    assert first.version == 40
    other = evaluator(role_config(**{"evaluation.seed": 5}), role_dataset).evaluate(policy, final=False)
    assert other.returns != first.returns


def test_final_evaluation_has_its_own_number_of_episodes(
    role_config: Build, role_dataset: Dataset, make_policy: MakePolicy
) -> None:
    role = evaluator(role_config(), role_dataset)
    during, final = role.evaluate(make_policy(0, 40), False), role.evaluate(make_policy(0, 40), True)
    assert (len(during.returns), len(final.returns), final.raw.episodes) == (2, 3, 3)
    assert (during.final, final.final) == (False, True)
    assert final.returns[:2] == during.returns  # the same first seeds
    assert final.raw.mean == pytest.approx(np.mean(final.returns))
    assert final.normalized.mean == pytest.approx(float(np.mean(normalized_score("hopper", np.array(final.returns)))))
    assert final.start <= final.end


def test_real_transitions_pass_the_audit(role_config: Build, role_dataset: Dataset) -> None:
    role = evaluator(role_config(**{"evaluation.audit": 100}), role_dataset)
    report = role.audit(real_block(role_dataset), block=3, refreshed=False)
    assert (report.block, report.refreshed) == (3, False)
    assert report.result.count + round(100 * (report.result.not_invertible + report.result.unstable)) == 100
    assert report.result.count >= 90
    assert report.result.dynamics_error.trimmed_mean < 1e-3 * report.result.persistence_error.trimmed_mean
    assert report.result.reward_error < 1e-3


def test_noise_fails_the_audit(role_config: Build, role_dataset: Dataset) -> None:
    rows = real_block(role_dataset)
    size = role_dataset.observation_size
    rows[:, 1:, :size] += np.random.default_rng(0).normal(size=rows[:, 1:, :size].shape) * rows[..., :size].std((0, 1))
    report = evaluator(role_config(**{"evaluation.audit": 100}), role_dataset).audit(rows, 3, True)
    assert report.refreshed
    assert report.result.dynamics_error.median > 0.1


def test_audit_picks_by_the_number_of_the_block(role_config: Build, role_dataset: Dataset) -> None:
    role = evaluator(role_config(**{"evaluation.audit": 10}), role_dataset)
    rows = real_block(role_dataset)
    errors = [role.audit(rows, block, False).result.persistence_error.mean for block in (1, 1, 2)]
    assert errors[0] == errors[1] != errors[2]

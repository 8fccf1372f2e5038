"""Real and synthetic rewards reach the agent as ``reward_scale * r + reward_shift``, and nobody else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.data.rewards import resolve_rewards
from raydiff.roles.learner import Learner

Build = Callable[..., Config]


def rewards_of(role: Learner) -> tuple[np.ndarray, np.ndarray]:
    """Those of the real and of the synthetic table."""
    mixture = role.mixtures[0]
    assert mixture.synthetic is not None
    tables = mixture.real, mixture.synthetic
    return tuple(table.split(table.records).reward.numpy() for table in tables)  # type: ignore[return-value]


def test_both_tables_hold_the_rewards_of_the_learner(role_config: Build, role_dataset: Dataset) -> None:
    steps = role_dataset.transitions("raydiff")
    rows = np.zeros((16, 3, role_dataset.observation_size + role_dataset.action_size + 2), np.float32)
    rows[..., -2] = np.arange(48, dtype=np.float32).reshape(16, 3)
    made = rows[:, :-1, -2].ravel()
    role = Learner(role_config(**{"data.reward_scale": 4, "data.reward_shift": -2}), steps, "learner")
    role.ingest(rows, 0, policy_version=0)
    real, synthetic = rewards_of(role)
    np.testing.assert_allclose(real, 4 * steps.reward - 2, rtol=1e-6)
    np.testing.assert_allclose(synthetic[: len(made)], 4 * made - 2, rtol=1e-6)
    np.testing.assert_array_equal(rows[:, :-1, -2].ravel(), made)


def test_a_normalization_must_have_been_resolved(role_config: Build, role_dataset: Dataset) -> None:
    config = role_config(**{"data.reward_normalization": "return_range", "generator.count": 0})
    steps = role_dataset.transitions("raydiff")
    with pytest.raises(ValueError, match="not resolved"):
        Learner(config, steps, "learner")
    role = Learner(resolve_rewards(config, role_dataset), steps, "learner")
    returns = role_dataset.episode_returns()
    real = role.mixtures[0].real
    np.testing.assert_allclose(
        real.split(real.records).reward.numpy(), steps.reward / (returns.max() - returns.min()), rtol=1e-5
    )

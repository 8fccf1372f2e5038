"""Validation and reward relabelling of generated trajectories."""

from __future__ import annotations

import numpy as np
import pytest

from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.generators.relabel import relabel_rewards
from raydiff.generators.validate import validate
from raydiff.types import Trajectories

S, A, L = 3, 2, 4


def trajectories(n=10):
    rows = np.random.default_rng(0).normal(0, 0.3, (n, L, S + A + 2)).astype(np.float32)
    rows[..., -1] = 0
    return Trajectories(rows, S, A)


@pytest.mark.parametrize("space", ["raw", "atanh"])
def test_validate_drops_with_reasons(space):
    clean = trajectories()
    normalizer = TrajectoryNormalizer.fit(clean.rows.reshape(-1, S + A + 2), S, A, space)
    kept, dropped = validate(clean, normalizer, 6.0)
    assert kept is clean
    assert dropped == {}
    rows = clean.rows.copy()
    rows[2, 1, 0] = np.nan
    rows[3, 0, -2] = np.inf
    rows[5, 3, 1] = normalizer.mean[1] + 7 * normalizer.std[1]
    rows[6, 3, 1] = normalizer.mean[1] + 5 * normalizer.std[1]
    kept, dropped = validate(Trajectories(rows, S, A), normalizer, 6.0)
    assert dropped == {"not_finite": 2, "out_of_range": 1}
    np.testing.assert_array_equal(kept.rows, rows[[0, 1, 4, 6, 7, 8, 9]])
    none, dropped = validate(Trajectories(np.full_like(rows, np.nan), S, A), normalizer, 6.0)
    assert (len(none), dropped) == (0, {"not_finite": 10})


def test_validate_looks_at_transitions_only():
    """Rewards far from 0, so that the zeros of a closing row and of rows behind a terminal are far from the data."""
    rows = trajectories().rows
    rows[..., -2] += 1_000
    normalizer = TrajectoryNormalizer.fit(rows.reshape(-1, S + A + 2), S, A, "raw")
    rows[:, -1, S:] = 0.0
    rows[0, 1, -1] = 1.0  # a terminal in row 1, whose successor is row 2
    rows[0, 2, S:] = rows[0, 3] = 0.0
    kept, dropped = validate(Trajectories(rows, S, A), normalizer, 6.0)
    assert (len(kept), dropped) == (10, {})
    rows[0, 3, 0] = rows[1, 3, -1] = 99.0
    assert validate(Trajectories(rows, S, A), normalizer, 6.0)[1] == {}
    rows[0, 2, 0] = rows[2, 3, 0] = rows[3, 1, -2] = 99.0
    rows[4, 3, -1] = np.nan
    kept, dropped = validate(Trajectories(rows, S, A), normalizer, 6.0)
    assert dropped == {"not_finite": 1, "out_of_range": 3}
    np.testing.assert_array_equal(kept.rows, rows[[1, 5, 6, 7, 8, 9]])


def test_relabel_uses_each_transition_once():
    before = trajectories()
    original = before.rows.copy()

    def predict(observation, action, next_observation):
        assert observation.shape == next_observation.shape == (30, S)
        assert action.shape == (30, A)
        return observation[:, 0] + 2 * action[:, 1] - 3 * next_observation[:, 2]

    after = relabel_rewards(before, predict)
    np.testing.assert_array_equal(before.rows, original)
    expected = before.observation[:, :-1, 0] + 2 * before.action[:, :-1, 1] - 3 * before.observation[:, 1:, 2]
    np.testing.assert_allclose(after.reward[:, :-1], expected, rtol=1e-6)
    np.testing.assert_array_equal(after.reward[:, -1], before.reward[:, -1])
    others = [0, 1, 2, 3, 4, 6]
    np.testing.assert_array_equal(after.rows[..., others], original[..., others])

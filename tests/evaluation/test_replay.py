"""Multi-step replay: tests I6, I7 and I8 of section I.3, and what becomes of trajectories that cannot be replayed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raydiff.data.collect import collect
from raydiff.data.d4rl import read_d4rl
from raydiff.evaluation.audit_data import AuditData, longest_stretch
from raydiff.evaluation.replay import ErrorByStep, replay, resimulated
from raydiff.evaluation.simulator import MujocoSimulator, Step
from raydiff.types import Trajectories, Transitions

DAMPING, TIME_STEP = 1.0, 0.1


class DampedPoint:
    """A unit mass on a line, semi-implicit Euler: ``v' = v + dt (a - c v)``, ``x' = x + dt v'`` (test I8).

    States with ``x > limit`` cannot be set; beyond ``v > breaking`` the simulation breaks down.
    """

    def __init__(self, limit: float = np.inf, breaking: float = np.inf) -> None:
        self.limit, self.breaking = limit, breaking
        self.state = np.zeros(2)

    def set_state(self, observation: np.ndarray) -> bool:
        self.state = observation.astype(np.float64)
        return bool(self.state[0] <= self.limit)

    def step(self, action: np.ndarray) -> Step | None:
        x, v = self.state
        v = v + TIME_STEP * (float(action[0]) - DAMPING * v)
        self.state = np.array([x + TIME_STEP * v, v])
        return Step(self.state, 0.0, False) if v <= self.breaking else None


def points(n: int, horizon: int, seed: int = 0) -> Trajectories:
    """True trajectories ``[n, H + 1, 5]`` of the point from random states and actions, by matrix powers."""
    draw = np.random.default_rng(seed)
    matrix = np.array([[1, TIME_STEP * (1 - TIME_STEP * DAMPING)], [0, 1 - TIME_STEP * DAMPING]])
    force = np.array([TIME_STEP**2, TIME_STEP])
    rows = np.zeros((n, horizon + 1, 5))
    rows[:, 0, :2] = draw.normal(size=(n, 2))
    rows[:, :horizon, 2] = draw.uniform(-1, 1, size=(n, horizon))
    for t in range(horizon):
        rows[:, t + 1, :2] = rows[:, t, :2] @ matrix.T + rows[:, t, 2:3] * force
    return Trajectories(rows.astype(np.float32), 2, 1)


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory: pytest.TempPathFactory) -> Transitions:
    path = collect("HalfCheetah-v4", "random", 1500, 0, tmp_path_factory.mktemp("replay") / "cheetah.hdf5")
    return read_d4rl(path).transitions("raydiff")


@pytest.fixture(scope="module")
def windows(cheetah: Transitions) -> AuditData:
    return AuditData.of_transitions(cheetah, horizon=6, most=100, seed=0)


def test_point_mass_true_data_have_no_error() -> None:
    data = points(50, 10)
    result = replay(DampedPoint(), data, np.ones(2))
    assert result.count == 50
    assert (result.counts == 50).all()
    assert result.raw.mean.max() <= 1e-12


def test_point_mass_error_of_one_false_action_is_the_closed_form() -> None:
    """An offset d of one action moves v by dt d and x by dt^2 d, and then decays by 1 - c dt a step."""
    data, offset, at = points(20, 8), 0.25, 3
    rows = data.rows.copy()
    rows[:, at, 2] += offset
    variance = np.array([4.0, 0.5])
    result = replay(DampedPoint(), Trajectories(rows, 2, 1), variance)
    decay = (1 - DAMPING * TIME_STEP) ** np.arange(8 - at)
    velocity = TIME_STEP * offset * decay
    position = TIME_STEP * np.cumsum(velocity)
    assert result.raw.mean[:at].max() <= 1e-12
    np.testing.assert_allclose(result.raw.mean[at:], (velocity**2 + position**2) / 2, rtol=1e-3)
    expected = (velocity**2 / 0.5 + position**2 / 4.0) / 2
    for error in (result.normalized.mean, result.normalized.median, result.normalized.trimmed_mean):
        np.testing.assert_allclose(error[at:], expected, rtol=1e-3)


def test_what_cannot_be_set_breaks_down_or_is_not_finite_is_counted() -> None:
    data = points(10, 4)
    rows = data.rows.copy()
    rows[:, 0, :2] = 0.0
    rows[0, 0, 0] = 5.0  # cannot be set
    rows[1, 2, 0] = np.nan
    rows[2, 1, 2] = 1e6  # breaks down at the second step
    result = replay(DampedPoint(limit=4.0, breaking=100.0), Trajectories(rows, 2, 1), np.ones(2))
    assert (result.count, result.not_invertible, result.unstable) == (7, 0.2, 0.1)
    assert np.isfinite(result.raw.mean).all()


def test_only_valid_steps_are_compared_and_looked_at() -> None:
    data = points(4, 5)
    rows = data.rows.copy()
    rows[:, 3:, :2] = np.nan  # behind the second step, where nothing exists
    valid = np.zeros((4, 5), dtype=bool)
    valid[:, :2] = True
    result = replay(DampedPoint(), Trajectories(rows, 2, 1), np.ones(2), valid)
    assert result.count == 4
    assert result.counts.tolist() == [4, 4, 0, 0, 0]
    assert result.raw.mean[:2].max() <= 1e-12
    assert np.isnan(result.raw.mean[2:]).all()


def test_statistics_by_step() -> None:
    errors = np.ones((100, 2))
    errors[:5, 1] = 1e9
    errors[50:, 0] = np.nan
    found = ErrorByStep.of(errors)
    assert found.median.tolist() == found.trimmed_mean.tolist() == [1.0, 1.0]
    assert found.mean[0] == 1.0
    assert found.mean[1] > 1e7


def test_fresh_simulation_is_true(windows: AuditData) -> None:
    """I6: the simulator's own trajectories, from the real states and actions."""
    simulator, variance = MujocoSimulator("HalfCheetah-v4"), np.ones(17)
    fresh = resimulated(simulator, windows.trajectories, windows.valid)
    np.testing.assert_array_equal(fresh.action, windows.trajectories.action)
    np.testing.assert_array_equal(fresh.observation[:, 0], windows.trajectories.observation[:, 0])
    result = replay(simulator, fresh, variance, windows.valid)
    assert result.count == len(fresh) == 100
    assert result.raw.mean.max() <= 1e-8


def test_real_windows_are_true(windows: AuditData) -> None:
    result = replay(MujocoSimulator("HalfCheetah-v4"), windows.trajectories, np.ones(17), windows.valid)
    assert (result.count, result.not_invertible, result.unstable) == (100, 0.0, 0.0)
    assert 0.0 < result.raw.mean.max() <= 1e-8


def test_one_false_action_is_found_from_there_on(windows: AuditData) -> None:
    """I7: an offset of 1e-3 in the action of step t shows in the states after it, and in none before."""
    simulator, ones = MujocoSimulator("HalfCheetah-v4"), np.ones(17)
    floor = replay(simulator, windows.trajectories, ones, windows.valid)
    for at in (0, 2):
        rows = windows.trajectories.rows.copy()
        rows[:, at, 17] -= np.where(rows[:, at, 17] < 0, -1e-3, 1e-3)
        moved = replay(simulator, Trajectories(rows, 17, 6), ones, windows.valid)
        np.testing.assert_array_equal(moved.raw.mean[:at], floor.raw.mean[:at])
        assert (moved.raw.median[at:] > 100 * floor.raw.median[at:]).all()
        assert moved.raw.mean[at:].min() > 1e-8


def test_stretches_are_cut_into_trajectories_that_chain(cheetah: Transitions) -> None:
    """1500 rows are an episode of 1000 and half of another."""
    assert longest_stretch(cheetah) == 1000
    data = AuditData.of_transitions(cheetah, horizon=16, most=10_000, seed=0)
    assert data.known.all()
    assert data.valid.sum() == len(cheetah)
    assert sorted(np.unique(data.valid.sum(axis=1))) == sorted({16, 1000 % 16, 500 % 16})
    observation = data.trajectories.observation
    whole = data.valid.all(axis=1)
    order = np.lexsort(cheetah.observation.T)
    found = np.lexsort(observation[:, :-1][data.valid].T)
    np.testing.assert_array_equal(observation[:, :-1][data.valid][found], cheetah.observation[order])
    np.testing.assert_array_equal(observation[:, 1:][data.valid][found], cheetah.next_observation[order])
    few = AuditData.of_transitions(cheetah, horizon=16, most=7, seed=3)
    assert len(few.trajectories) == 7
    assert whole.sum() == 62 + 31


def test_the_masked_successor_of_a_terminal_step_is_not_taken_for_one(tmp_path: Path) -> None:
    stored = read_d4rl(collect("hopper", "random", 1000, 0, tmp_path / "hopper.hdf5"))
    every = stored.transitions("raydiff")
    assert AuditData.of_transitions(every, horizon=100, most=10, seed=0).known.all()
    dataset = replace(stored, next_observation=None)  # as D4RL's first files are
    ends = int(dataset.terminal.sum())
    assert ends > 10
    for semantics in ("raydiff", "d4rl_qlearning"):
        transitions = dataset.transitions(semantics)
        data = AuditData.of_transitions(transitions, horizon=100, most=10_000, seed=0)
        np.testing.assert_array_equal(data.known, transitions.terminal < 0.5)
        result = replay(MujocoSimulator("hopper"), data.trajectories, np.ones(11), data.valid)
        assert result.count > 10
        assert result.raw.median[0] < 1e-12  # no step leads from one episode to the next
        assert result.raw.mean[0] < 1e-8

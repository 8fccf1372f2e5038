"""One-step audits (test I6 of section I.3), on data that is collected here."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from raydiff.data.collect import collect
from raydiff.data.d4rl import read_d4rl
from raydiff.errors import UserError
from raydiff.evaluation.audit import Auditor, ErrorSummary, TerminalAgreement, auditable, legal_share
from raydiff.evaluation.audit_data import take
from raydiff.types import Trajectories, Transitions


def _real(environment: str, folder: Path, count: int = 1500, level: str = "random") -> tuple[Transitions, np.ndarray]:
    path = collect(environment, level, count, 0, folder / f"{environment}.hdf5")
    transitions = read_d4rl(path).transitions("raydiff")
    return transitions, transitions.observation.var(axis=0)


@pytest.fixture(scope="module")
def cheetah(tmp_path_factory: pytest.TempPathFactory) -> tuple[Transitions, np.ndarray]:
    return _real("HalfCheetah-v4", tmp_path_factory.mktemp("audit"))


def test_fresh_simulation_is_true(cheetah: tuple[Transitions, np.ndarray]) -> None:
    result = Auditor("HalfCheetah-v4").audit(*cheetah)
    assert result.count == 1500
    assert result.not_invertible == result.unstable == 0.0
    assert result.dynamics_error.mean <= 1e-8
    assert result.dynamics_error.mean > 0.0  # float32 rounding: the comparison did take place
    assert result.reward_error <= 1e-5
    assert result.persistence_error.mean > 0.01
    assert result.ratio <= 1e-6


@pytest.mark.parametrize(("environment", "velocities"), [("hopper", 6), ("Hopper-v5", 6), ("walker2d", 9)])
def test_other_environments_are_true_where_invertible(environment: str, velocities: int, tmp_path: Path) -> None:
    transitions, variance = _real(environment, tmp_path)
    result = Auditor(environment).audit(transitions, variance)
    limited = (np.abs(transitions.observation[:, -velocities:]) >= 10 - 1e-6).any(axis=1)
    assert result.count == (~limited).sum() > 100
    assert result.not_invertible == pytest.approx(limited.mean())
    assert result.dynamics_error.mean <= 1e-8
    assert result.reward_error <= 1e-5


@pytest.mark.parametrize(
    ("environment", "level"),
    [("maze2d-umaze-v1", "waypoint"), ("maze2d-medium-dense-v1", "waypoint-noisy"), ("maze2d-large-v1", "waypoint")],
)
def test_mazes_are_true_everywhere(environment: str, level: str, tmp_path: Path) -> None:
    transitions, variance = _real(environment, tmp_path, level=level)
    result = Auditor(environment).audit(transitions, variance)
    assert result.count == len(transitions) > 1400
    assert result.not_invertible == result.unstable == 0.0
    assert result.dynamics_error.mean <= 1e-9
    assert result.reward_error <= 1e-6
    assert result.ratio <= 1e-6
    moved = replace(transitions, next_observation=transitions.next_observation + np.float32([0.1, 0, 0, 0]))
    expected = 0.01 / variance[0] / 4
    assert Auditor(environment).audit(moved, variance).dynamics_error.mean == pytest.approx(expected, rel=1e-3)


def test_states_inside_walls_and_beyond_the_speed_limit_are_judged_too(tmp_path: Path) -> None:
    transitions, variance = _real("maze2d-umaze-v1", tmp_path, count=500, level="waypoint")
    observation = transitions.observation.copy()
    observation[:10] = [0.2, 1.0, 0.0, 0.0]  # inside the outer wall, which pushes the ball out
    observation[10:20, 2:] = 20.0
    result = Auditor("maze2d-umaze").audit(replace(transitions, observation=observation), variance)
    assert (result.count, result.not_invertible, result.unstable) == (len(transitions), 0.0, 0.0)
    assert result.dynamics_error.mean > 1e-3 > result.dynamics_error.median


def test_ants_are_true(tmp_path: Path) -> None:
    for environment in ("ant-v2", "Ant-v4", "Ant-v5", "antmaze-umaze-v2"):
        transitions, variance = _real(environment, tmp_path, count=300)
        result = Auditor(environment).audit(transitions, variance)
        assert result.count == len(transitions) >= 290
        assert result.dynamics_error.trimmed_mean <= 1e-6
        assert result.ratio <= 1e-5


def test_what_cannot_be_replayed_is_said() -> None:
    assert all(auditable(name) for name in ("maze2d-large-dense-v1", "halfcheetah", "Hopper-v5", "antmaze-umaze"))
    assert not auditable("Pendulum-v1")
    with pytest.raises(UserError, match=r"Pendulum-v1.*audit\.count=0"):
        Auditor("Pendulum-v1")


def test_legal_share_counts_whole_trajectories() -> None:
    rows = np.zeros((4, 3, 8), dtype=np.float32)
    rows[..., :2] = 1.0
    rows[0, 1, :2] = [1.0, 0.2]  # one row inside a wall
    rows[1, 2, :2] = [1.29, 1.29]
    assert legal_share("maze2d-umaze-v1", Trajectories(rows, 4, 2)) == 0.75
    assert legal_share("maze2d-umaze-v1", Trajectories(rows[1:], 4, 2)) == 1.0
    assert legal_share("maze2d-umaze-v1", Trajectories(rows[:0], 4, 2)) is None
    assert legal_share("halfcheetah", Trajectories(rows, 4, 2)) is None


def test_false_action_and_false_reward_are_found(cheetah: tuple[Transitions, np.ndarray]) -> None:
    transitions, variance = cheetah
    auditor = Auditor("HalfCheetah-v4")
    inside = np.clip(transitions.action, -0.99, 0.99)
    moved = inside.copy()
    moved[:, 0] += 1e-3
    floor = auditor.audit(transitions, variance).dynamics_error
    result = auditor.audit(replace(transitions, action=np.where(inside == transitions.action, moved, inside)), variance)
    assert result.dynamics_error.median > 100 * floor.median
    shifted = auditor.audit(replace(transitions, reward=transitions.reward + np.float32(0.5)), variance)
    assert shifted.reward_error == pytest.approx(0.5, abs=1e-4)
    assert shifted.dynamics_error == floor


def test_persistence_is_the_error_of_no_change(cheetah: tuple[Transitions, np.ndarray]) -> None:
    transitions, variance = cheetah
    still = replace(transitions, next_observation=transitions.observation)
    result = Auditor("HalfCheetah-v4").audit(still, variance)
    assert result.dynamics_error == result.persistence_error
    assert result.ratio == 1.0


def test_clipped_hopper_velocity_is_left_out_and_counted(tmp_path: Path) -> None:
    transitions, variance = _real("hopper", tmp_path, count=100)
    observation = transitions.observation.copy()
    observation[:25, 7] = 10.0
    observation[25:30, 9] = -10.0
    result = Auditor("hopper").audit(replace(transitions, observation=observation), variance)
    assert result.count == 70
    assert result.not_invertible == pytest.approx(0.3)
    cut = take(transitions, np.arange(30, len(transitions)))
    assert result.dynamics_error == Auditor("hopper").audit(cut, variance).dynamics_error


def test_impossible_states_are_counted_silently(
    cheetah: tuple[Transitions, np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    transitions, variance = cheetah
    observation = transitions.observation[:10].copy()
    observation[0, 8:] = 1e6
    observation[1, 0] = np.nan
    few = replace(take(transitions, np.arange(10)), observation=observation)
    result = Auditor("HalfCheetah-v4").audit(few, variance)
    assert (result.count, result.unstable, result.not_invertible) == (8, 0.1, 0.1)
    assert result.dynamics_error.mean <= 1e-8
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_nothing_to_audit_is_undefined_and_not_zero() -> None:
    nothing = Transitions(*(np.zeros((0, *shape), dtype=np.float32) for shape in ((17,), (6,), (), (17,), ())))
    result = Auditor("HalfCheetah-v4").audit(nothing, np.ones(17)).as_dict()
    assert result["count"] == 0
    assert result["ratio"] is None
    assert result["dynamics_error"] == {"mean": None, "median": None, "trimmed_mean": None}
    json.dumps(result, allow_nan=False)


def test_summary_trims_the_largest() -> None:
    errors = np.concatenate([np.ones(95), np.full(5, 1e9)])
    summary = ErrorSummary.of(errors)
    assert (summary.median, summary.trimmed_mean) == (1.0, 1.0)
    assert summary.mean > 1e7


def test_terminals_agree_with_the_simulator_of_hopper(tmp_path: Path) -> None:
    transitions, variance = _real("hopper", tmp_path, count=2000)
    ends = transitions.terminal > 0.5
    assert ends.sum() > 20
    known = ~ends  # as if the file lacked the successors of terminal steps, which D4RL's do
    result = Auditor("hopper").audit(transitions, variance, known)
    agreed = result.terminal
    assert (agreed.claimed, agreed.simulated, agreed.both) == (ends.sum(), ends.sum(), ends.sum())
    assert (agreed.precision, agreed.recall) == (1.0, 1.0)
    assert result.count == known.sum()
    assert result.dynamics_error.mean <= 1e-8

    flags = transitions.terminal.copy()
    flags[np.flatnonzero(ends)[:5]] = 0.0  # five ends are missed
    flags[np.flatnonzero(~ends)[:15]] = 1.0  # fifteen are made up
    lied = Auditor("hopper").audit(replace(transitions, terminal=flags), variance).terminal
    assert lied.both == ends.sum() - 5
    assert lied.precision == pytest.approx((ends.sum() - 5) / (ends.sum() + 10))
    assert lied.recall == pytest.approx((ends.sum() - 5) / ends.sum())


def test_agreement_on_nothing_is_undefined() -> None:
    agreed = TerminalAgreement.of(np.zeros(4, dtype=bool), np.zeros(4, dtype=bool))
    assert (agreed.precision, agreed.recall) == (None, None)


def test_raw_error_is_in_squared_units(cheetah: tuple[Transitions, np.ndarray]) -> None:
    transitions, variance = cheetah
    moved = replace(transitions, next_observation=transitions.next_observation + np.float32(0.1))
    result = Auditor("HalfCheetah-v4").audit(moved, variance)
    assert result.raw_error.mean == pytest.approx(0.01, rel=1e-3)
    assert result.dynamics_error.mean == pytest.approx(float((0.01 / variance).mean()), rel=1e-3)


def test_legality_looks_only_at_rows_that_exist() -> None:
    rows = np.ones((2, 3, 8), dtype=np.float32)
    rows[:, 2, 0] = 0.2  # both end inside a wall
    trajectories = Trajectories(rows, 4, 2)
    valid = np.array([[True, True], [True, False]])
    assert legal_share("maze2d-umaze-v1", trajectories, valid) == 0.5

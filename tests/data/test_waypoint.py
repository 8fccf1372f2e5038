from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from raydiff.data.waypoint import WaypointController, collect_waypoint
from raydiff.envs.maze2d import MAZES, Maze2dEnv, make
from raydiff.errors import UserError
from raydiff.seeds import key_seed


@pytest.fixture(scope="module")
def umaze() -> dict[str, np.ndarray]:
    return collect_waypoint("maze2d-umaze-v1", 20_000, 0)


def test_schema_is_that_of_d4rls_maze_files(umaze: dict[str, np.ndarray]) -> None:
    assert {name: (array.shape[1:], array.dtype.str) for name, array in umaze.items()} == {
        "observations": ((4,), "<f4"),
        "actions": ((2,), "<f4"),
        "rewards": ((), "<f4"),
        "terminals": ((), "|b1"),
        "timeouts": ((), "|b1"),
        "infos/goal": ((2,), "<f4"),
        "infos/qpos": ((2,), "<f4"),
        "infos/qvel": ((2,), "<f4"),
    }
    assert all(len(array) == 20_000 for array in umaze.values())
    assert not umaze["terminals"].any()
    assert np.abs(umaze["actions"]).max() == 1.0
    np.testing.assert_array_equal(umaze["observations"], np.hstack([umaze["infos/qpos"], umaze["infos/qvel"]]))


@pytest.mark.parametrize(("name", "noisy"), [("umaze", False), ("medium", True), ("large", False)])
def test_every_row_but_the_flagged_ones_is_a_true_transition(name: str, noisy: bool) -> None:
    data = collect_waypoint(f"maze2d-{name}-v1", 5000, 1, noisy)
    env = make(f"maze2d-{name}-v1").unwrapped
    assert isinstance(env, Maze2dEnv)
    flagged = data["timeouts"]
    assert 10 < flagged.sum() < 200
    for t in range(4999):
        if flagged[t]:
            np.testing.assert_array_equal(data["observations"][t + 1], data["observations"][t])
        else:
            env.set_state(data["observations"][t])
            np.testing.assert_allclose(env.step(data["actions"][t])[0], data["observations"][t + 1], atol=5e-5)
    assert MAZES[name].is_legal(data["observations"][:, :2]).all()


def test_targets_change_behind_flags_alone_and_are_reached_there(umaze: dict[str, np.ndarray]) -> None:
    flagged, goal = umaze["timeouts"], umaze["infos/goal"]
    changed = (goal[1:] != goal[:-1]).any(axis=1)
    np.testing.assert_array_equal(changed, flagged[:-1])
    cell = np.rint(goal)
    assert np.abs(goal - cell).max() <= 0.1
    drawn = np.unique(cell, axis=0)
    assert {tuple(c) for c in drawn} == {tuple(c) for c in MAZES["umaze"].cells}
    # D4RL's controller goes to the cell's whole numbers, not to the target's noise.
    away = np.linalg.norm(umaze["observations"][flagged, :2] - cell[flagged], axis=1)
    assert away.max() < 0.1


def test_a_target_that_is_not_reached_is_given_up_after_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MAZES, "umaze", replace(MAZES["umaze"], limit=40))
    data = collect_waypoint("maze2d-umaze-v1", 3000, 0)
    rows = np.flatnonzero(data["timeouts"])
    lengths = np.diff(np.concatenate([[-1], rows]))
    assert lengths.max() == 41  # D4RL looks at its clock before the step
    away = np.linalg.norm(data["observations"][rows, :2] - np.rint(data["infos/goal"][rows]), axis=1)
    assert (away[lengths < 41] < 0.1).all()
    assert (away[lengths == 41] > 0.1).mean() > 0.9
    assert lengths.min() == 1  # the same cell was drawn twice


def test_rewards_belong_to_the_row_and_to_the_fixed_goal(umaze: dict[str, np.ndarray]) -> None:
    distance = np.linalg.norm(umaze["observations"][:, :2].astype(np.float64) - [1.0, 1.0], axis=1)
    np.testing.assert_array_equal(umaze["rewards"], (distance <= 0.5).astype(np.float32))
    assert 0.03 < umaze["rewards"].mean() < 0.2
    dense = collect_waypoint("maze2d-umaze-dense-v1", 20_000, 0)
    np.testing.assert_array_equal(dense["observations"], umaze["observations"])
    np.testing.assert_allclose(dense["rewards"], np.exp(-distance), rtol=1e-6)


def test_noise_moves_actions_by_half_before_the_clip() -> None:
    data = collect_waypoint("maze2d-medium-v1", 5000, 2, noisy=True)
    controller = WaypointController(MAZES["medium"], np.random.default_rng(key_seed(2, "waypoints")))
    wanted = []
    for observation, goal in zip(data["observations"].tolist(), data["infos/goal"].tolist(), strict=True):
        wanted.append(controller.act(tuple(observation[:2]), tuple(observation[2:]), tuple(goal))[0])
    full = np.abs(wanted) == 1.0
    short = (1.0 - data["actions"] * np.array(wanted))[full]
    assert len(short) > 2000
    assert (short == 0).mean() == pytest.approx(0.5, abs=0.04)
    assert short[short > 0].mean() == pytest.approx(0.5 * np.sqrt(2 / np.pi), rel=0.05)  # a half-normal's mean


def test_the_same_seed_gives_the_same_bytes(umaze: dict[str, np.ndarray]) -> None:
    again, other = collect_waypoint("maze2d-umaze-v1", 20_000, 0), collect_waypoint("maze2d-umaze-v1", 2000, 1)
    assert all(again[name].tobytes() == umaze[name].tobytes() for name in umaze)
    assert (other["observations"] != umaze["observations"][:2000]).any(axis=1).all()
    shorter = collect_waypoint("maze2d-umaze-v1", 3000, 0)
    assert all(shorter[name].tobytes() == umaze[name][:3000].tobytes() for name in umaze)


def test_progress_and_bad_requests() -> None:
    calls: list[tuple[int, int]] = []
    collect_waypoint("maze2d-umaze-v1", 12_000, 0, progress=lambda *call: calls.append(call))
    assert calls == [(10_000, 12_000), (12_000, 12_000)]
    with pytest.raises(UserError, match="at least one"):
        collect_waypoint("maze2d-umaze-v1", 0, 0)
    with pytest.raises(UserError, match="not a maze"):
        collect_waypoint("HalfCheetah-v4", 10, 0)


def _returns(name: str, keep_path: bool, episodes: int) -> np.ndarray:
    """Returns of the noiseless controller on its way to the fixed goal, as D4RL's reference scores are measured."""
    env = make(f"maze2d-{name}-v1").unwrapped
    maze, rng = MAZES[name], np.random.default_rng(0)
    controller = WaypointController(maze, rng)
    goal = (float(maze.goal[0]), float(maze.goal[1]))
    returns = np.zeros(episodes)
    for episode in range(episodes):
        if not keep_path:
            controller = WaypointController(maze, rng)
        observation = env.reset(seed=episode)[0]
        for _ in range(maze.limit):
            x, y, vx, vy = observation.tolist()
            action, _ = controller.act((x, y), (vx, vy), goal)
            observation, reward, _, _, _ = env.step(np.array(action))
            returns[episode] += float(reward)
    return returns


@pytest.mark.parametrize(("name", "published"), [("umaze", 161.86), ("medium", 277.39), ("large", 273.99)])
def test_the_controller_earns_d4rls_published_reference(name: str, published: float) -> None:
    """D4RL's script keeps one controller, which never plans again because the goal never moves."""
    returns = _returns(name, keep_path=True, episodes=100)
    error = returns.std(ddof=1) / np.sqrt(100)
    assert abs(returns.mean() - published) < 2.6 * np.sqrt(2) * error  # both are means of 100 episodes


def test_a_controller_that_plans_every_episode_earns_more() -> None:
    returns = _returns("umaze", keep_path=False, episodes=100)
    assert returns.mean() == pytest.approx(222.6, abs=16)  # three standard errors
    assert (returns > 100).all()


def test_the_controller_agrees_with_d4rls_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D4RL_SUPPRESS_IMPORT_ERROR", "1")
    theirs_module = pytest.importorskip("d4rl.pointmaze.waypoint_controller")
    for name in MAZES:
        maze = MAZES[name]
        data = collect_waypoint(f"maze2d-{name}-v1", 3000, 3, noisy=True)
        drawn = np.random.default_rng(7)
        monkeypatch.setattr(theirs_module.np.random, "uniform", lambda size, drawn=drawn: drawn.uniform(size=size))
        theirs = theirs_module.WaypointController("\\".join(maze.layout))
        ours = WaypointController(maze, np.random.default_rng(7))
        flags = 0
        for observation, goal in zip(data["observations"].astype(np.float64), data["infos/goal"], strict=True):
            expected, solved = theirs.get_action(observation[:2], observation[2:], goal)
            action, reached = ours.act(tuple(observation[:2].tolist()), tuple(observation[2:].tolist()), tuple(goal))
            np.testing.assert_allclose(action, expected, rtol=0, atol=1e-12)
            assert reached == solved
            flags += reached
        assert flags >= 5

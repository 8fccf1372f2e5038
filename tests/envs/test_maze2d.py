from __future__ import annotations

import warnings

import gymnasium
import mujoco
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from raydiff.envs.maze2d import IDS, MAZES, Maze, Maze2dEnv, make, maze_of, step_limit
from raydiff.errors import UserError

POINT_MAZES = {"umaze": "PointMaze_UMaze-v3", "medium": "PointMaze_Medium-v3", "large": "PointMaze_Large-v3"}


def _maze_env(name: str) -> Maze2dEnv:
    env = make(name).unwrapped
    assert isinstance(env, Maze2dEnv)
    return env


def _pushes(count: int, seed: int) -> np.ndarray:
    """Actions that are held long enough to drive the ball into walls, some of them beyond the bounds."""
    return np.repeat(np.random.default_rng(seed).uniform(-1.5, 1.5, size=(count // 40 + 1, 2)), 40, axis=0)[:count]


@pytest.mark.parametrize(
    ("name", "limit", "goal", "cells"),
    [("umaze", 300, (1, 1), 7), ("medium", 600, (6, 6), 26), ("large", 800, (7, 9), 46)],
)
def test_layouts_are_those_of_d4rl(name: str, limit: int, goal: tuple[int, int], cells: int) -> None:
    maze = MAZES[name]
    assert (maze.limit, step_limit(f"maze2d-{name}-v1")) == (limit, limit)
    assert tuple(maze.goal) == goal
    assert len(maze.cells) == (~maze.walls).sum() == cells
    assert tuple(maze.cells[-1]) == goal
    edge = np.concatenate([maze.walls[0], maze.walls[-1], maze.walls[:, 0], maze.walls[:, -1]])
    assert edge.all()


def test_layouts_and_physics_are_bitwise_those_of_d4rls_own_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("D4RL_SUPPRESS_IMPORT_ERROR", "1")
    model_of = pytest.importorskip("d4rl.pointmaze.maze_model")
    for name, layout in (("umaze", model_of.U_MAZE), ("medium", model_of.MEDIUM_MAZE), ("large", model_of.LARGE_MAZE)):
        assert "\\".join(MAZES[name].layout) == layout
        with model_of.point_maze(layout).asfile() as file:
            model = mujoco.MjModel.from_xml_path(file.name)
        data = mujoco.MjData(model)
        env = _maze_env(f"maze2d-{name}-v1")
        observation = env.reset(seed=1)[0]
        data.qpos[:], data.qvel[:] = observation[:2], observation[2:]
        touching = 0
        for action in _pushes(3000, seed=2):
            observation = env.step(action)[0]
            data.qvel[:] = np.clip(data.qvel, -5, 5)
            mujoco.mj_forward(model, data)  # as D4RL's set_state does
            data.ctrl[:] = np.clip(action, -1, 1)
            mujoco.mj_step(model, data)
            touching += env.data.ncon > 0
            np.testing.assert_array_equal(observation, [*data.qpos, *data.qvel])
        assert touching > 500


@pytest.mark.parametrize("name", MAZES)
def test_physics_are_those_of_point_maze_under_the_map(name: str) -> None:
    """The published map: row = (H - 1) / 2 - y and col = x + (W - 1) / 2, less 0.2 each."""
    robotics = pytest.importorskip("gymnasium_robotics")
    gymnasium.register_envs(robotics)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = gymnasium.make(POINT_MAZES[name], disable_env_checker=True).unwrapped
    height, width = MAZES[name].walls.shape
    env = _maze_env(f"maze2d-{name}-v1")
    state = env.reset(seed=3)[0]
    other.reset(seed=0)

    def put(state: np.ndarray) -> None:
        x, y, vx, vy = state
        other.point_env.set_state(
            np.array([y + 0.2 - (width - 1) / 2, (height - 1) / 2 - x - 0.2]), np.array([vy, -vx])
        )

    put(state)
    fast = 0
    for action in _pushes(2000, seed=4):
        x, y, vx, vy = other.step(np.array([action[1], -action[0]]))[0]["observation"]
        expected = [(height - 1) / 2 - y - 0.2, x + (width - 1) / 2 - 0.2, -vy, vx]
        state = env.step(action)[0]
        np.testing.assert_allclose(state, expected, rtol=0, atol=1e-7)  # the contact solver stops near 1e-10
        fast += np.abs(state[2:]).max() > 5.0
    assert fast > 10  # The clip of velocities was put to the test.
    other.close()


def test_walls_begin_before_their_cells_numbers() -> None:
    env = _maze_env("maze2d-umaze-v1")
    # The ball, of radius 0.1, comes to rest where the walls of rows and columns 0 and 4 and of cell (2, 2) stop it.
    for start, push, stop in (
        ((1.0, 1.0), (-1, 0), 0.3 + 0.1),
        ((1.0, 1.0), (0, -1), 0.3 + 0.1),
        ((1.0, 1.0), (1, 0), 2 - 0.7 - 0.1),
        ((3.0, 3.0), (1, 0), 4 - 0.7 - 0.1),
        ((1.0, 2.8), (0, 1), 4 - 0.7 - 0.1),
        ((2.0, 2.8), (0, -1), 2 + 0.3 + 0.1),
    ):
        env.set_state(np.array([*start, 0.0, 0.0]))
        for _ in range(300):
            observation = env.step(np.array(push, dtype=np.float32))[0]
        axis = 0 if push[0] else 1
        assert observation[axis] == pytest.approx(stop, abs=0.01)
        assert observation[1 - axis] == start[1 - axis]
        assert np.abs(observation[2:]).max() < 1e-6


def test_legal_positions_agree_with_the_simulators_own_collisions() -> None:
    maze = MAZES["medium"]
    env = _maze_env("maze2d-medium-v1")
    points = np.random.default_rng(0).uniform(-1.0, 8.5, size=(1500, 2))
    expected = []
    for point in points:
        env.set_state(np.array([*point, 0.0, 0.0]))
        mujoco.mj_forward(env.model, env.data)
        # Deeper than its radius, so that the ball's centre is inside a box; outside the maze there is no box at all.
        outside = (point < -0.7).any() or (point > 7.3).any()
        expected.append(not outside and not any(contact.dist < -0.1 for contact in env.data.contact))
    np.testing.assert_array_equal(maze.is_legal(points), expected)
    assert 0.2 < np.mean(expected) < 0.8


def test_legal_positions_of_any_shape_and_of_nothing_finite() -> None:
    maze = MAZES["umaze"]
    points = np.array([[[1.0, 1.0], [0.0, 1.0]], [[np.nan, 1.0], [1.0, np.inf]], [[-1e300, 1.0], [1e300, 1.0]]])
    assert maze.is_legal(points).tolist() == [[True, False], [False, False], [False, False]]
    edges = np.array([[0.299, 1.0], [0.301, 1.0], [1.299, 1.0], [1.301, 1.0]])
    assert maze.is_legal(edges).tolist() == [False, True, True, False]
    assert maze.is_legal(edges.astype(np.float32)).tolist() == [False, True, True, False]
    assert bool(maze.is_legal(np.array([3.0, 3.0])))


def test_rewards_at_known_distances() -> None:
    maze = MAZES["umaze"]
    points = np.array([[1.0, 1.0], [1.0, 1.5], [1.0, 1.5001], [1.3, 1.4], [3.0, 1.0]])
    np.testing.assert_array_equal(maze.reward(points, dense=False), [1, 1, 0, 1, 0])
    np.testing.assert_allclose(maze.reward(points, dense=True), np.exp([0, -0.5, -0.5001, -0.5, -2.0]), rtol=1e-12)


@pytest.mark.parametrize("name", IDS)
def test_the_environments_reward_is_that_of_the_state_reached(name: str) -> None:
    env = _maze_env(name)
    maze, dense = maze_of(name), name.endswith("-dense-v1")
    env.reset(seed=0)
    env.set_state(np.array([maze.goal[0], maze.goal[1] - 0.498, 0.0, -2.0]))  # moving out of the goal
    rewards = []
    for action in _pushes(120, seed=0):
        observation, reward, terminated, truncated, info = env.step(action)
        assert isinstance(reward, float)
        assert reward == pytest.approx(float(maze.reward(observation[:2], dense)), rel=1e-12)
        assert (terminated, truncated, info) == (False, False, {})
        rewards.append(reward)
    assert rewards[0] == 0.0 if not dense else rewards[0] == pytest.approx(np.exp(-0.518), abs=0.01)


@pytest.mark.parametrize(("name", "limit"), [("umaze", 300), ("medium", 600), ("large-dense", 800)])
def test_episodes_end_by_the_limit_alone(name: str, limit: int) -> None:
    env = make(f"maze2d-{name}-v1")
    maze = maze_of(f"maze2d-{name}-v1")
    env.reset(seed=0)
    env.unwrapped.set_state(np.array([*maze.goal, 0.0, 0.0]))  # type: ignore[attr-defined]
    ends = []
    for _ in range(limit):
        _, _, terminated, truncated, _ = env.step(np.zeros(2, dtype=np.float32))
        assert not terminated
        ends.append(truncated)
    assert ends == [False] * (limit - 1) + [True]


def test_starts_are_spread_over_free_cells_as_in_d4rl() -> None:
    env = _maze_env("maze2d-medium-v1")
    maze = env.maze
    env.reset(seed=0)
    starts = np.stack([env.reset()[0] for _ in range(5000)])
    cell = np.rint(starts[:, :2])
    assert np.abs(starts[:, :2] - cell).max() <= 0.1
    assert (starts[:, :2] - cell).std(axis=0) == pytest.approx([0.2 / np.sqrt(12)] * 2, rel=0.05)
    assert starts[:, 2:].std(axis=0) == pytest.approx([0.1, 0.1], rel=0.05)
    counts = {tuple(c): int((cell == c).all(axis=1).sum()) for c in maze.cells}
    assert sum(counts.values()) == 5000
    expected = 5000 / len(maze.cells)
    assert sum((count - expected) ** 2 / expected for count in counts.values()) < 55  # chi-square, 25 degrees, 0.9995


def test_seeds_decide_and_states_return_exactly() -> None:
    env, twin = _maze_env("maze2d-large-v1"), _maze_env("maze2d-large-v1")
    first, again, other = env.reset(seed=5)[0], twin.reset(seed=5)[0], twin.reset(seed=6)[0]
    np.testing.assert_array_equal(first, again)
    assert (first != other).all()
    for action in _pushes(400, seed=1):
        twin.set_state(first)
        np.testing.assert_array_equal(np.concatenate([twin.data.qpos, twin.data.qvel]), first)
        replayed = twin.step(action)[0]
        twin.set_state(first)
        np.testing.assert_array_equal(twin.step(action)[0], replayed)
        first = env.step(action)[0]
        np.testing.assert_allclose(replayed, first, rtol=0, atol=1e-8)  # but for the solver's warm start


def test_gymnasiums_own_checker_is_content() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # It advises a rendering mode and symmetric bounds of observations.
        check_env(_maze_env("maze2d-umaze-dense-v1"), skip_render_check=True)


def test_other_names_are_refused() -> None:
    for call in (make, maze_of, step_limit):
        with pytest.raises(UserError, match="maze2d-umaze-v1, maze2d-umaze-dense-v1"):
            call("maze2d-huge-v1")
    assert isinstance(MAZES["umaze"], Maze)

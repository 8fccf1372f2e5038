from __future__ import annotations

import sys
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import mujoco
import numpy as np
import pytest

from raydiff.envs import antmaze
from raydiff.errors import UserError


def simulator(name: str = "antmaze-umaze-v2") -> antmaze.AntMaze:
    env = antmaze.make(name).unwrapped
    assert isinstance(env, antmaze.AntMaze)
    return env


def place(env: antmaze.AntMaze, xy: np.ndarray) -> None:
    """The ant at rest in its initial pose at a position, as deep in the floor as it stands."""
    qpos = env.init_qpos.copy()
    qpos[:2] = xy
    env.set_state(qpos, np.zeros(14))


@pytest.mark.parametrize("name", antmaze.IDS)
def test_sizes_bounds_and_limit(name: str) -> None:
    env = antmaze.make(name)
    observation, _ = env.reset(seed=0)
    assert observation.shape == env.observation_space.shape == (29,)
    assert env.action_space.low.tolist() == [-1] * 8
    assert env.action_space.high.tolist() == [1] * 8
    assert antmaze.step_limit(name) == (700 if "umaze" in name else 1000)
    assert env.get_wrapper_attr("_max_episode_steps") == antmaze.step_limit(name)


def test_unknown_ids_are_refused_with_the_known_ones() -> None:
    for name in ("antmaze-umaze-v1", "antmaze-giant-v2", "umaze"):
        with pytest.raises(UserError, match="antmaze-large-play-v2"):
            antmaze.make(name)
        with pytest.raises(UserError):
            antmaze.step_limit(name)


def test_an_episode_is_cut_at_the_limit() -> None:
    env = antmaze.make("antmaze-umaze-v2")
    env.reset(seed=0)
    for step in range(700):
        _, reward, terminated, truncated, _ = env.step(np.zeros(8))
        assert (reward, terminated, truncated) == (0, False, step == 699)


def test_observations_are_absolute_positions_then_velocities() -> None:
    env = simulator()
    observation, _ = env.reset(seed=3)
    for _ in range(3):
        np.testing.assert_array_equal(observation, np.concatenate([env.data.qpos, env.data.qvel]))
        np.testing.assert_allclose(np.linalg.norm(observation[3:7]), 1, atol=1e-12)
        observation = env.step(np.full(8, 0.5))[0]


def test_episodes_start_near_the_origin_and_the_goal_lies_in_d4rl_s_square() -> None:
    for name, corner in (("umaze", (0, 8)), ("medium-diverse", (20, 20)), ("large-play", (32, 24))):
        env = simulator(f"antmaze-{name}-v2")
        offsets = []
        for seed in range(100):
            observation, _ = env.reset(seed=seed)
            assert np.abs(observation[:2]).max() <= 0.1
            assert 0.65 <= observation[2] <= 0.85
            offsets.append(env.goal - np.array(corner))
        offsets = np.array(offsets)
        # The sum of a uniform draw up to 1 and one up to 0.5, along each axis.
        assert offsets.min() >= 0
        assert offsets.max() <= 1.5
        np.testing.assert_allclose(offsets.mean(axis=0), 0.75, atol=0.1)
        assert offsets.std() > 0.25


def test_reward_and_end_exactly_within_the_radius_of_the_goal() -> None:
    env = simulator()
    env.reset(seed=0)
    rewards = []
    for distance in np.linspace(0.4, 0.6, 21):
        place(env, env.goal - (distance, 0))
        observation, reward, terminated, truncated, _ = env.step(np.zeros(8))
        moved = np.linalg.norm(observation[:2] - env.goal)
        assert abs(moved - distance) < 0.05
        assert (reward, terminated, truncated) == (float(moved <= 0.5), moved <= 0.5, False)
        rewards.append(reward)
    assert 5 < sum(rewards) < 16


def test_a_fallen_ant_goes_on() -> None:
    env = simulator()
    env.reset(seed=0)
    qpos = env.init_qpos.copy()
    qpos[3:7] = (0, 1, 0, 0)
    env.set_state(qpos, np.zeros(14))
    for _ in range(20):
        observation, _, terminated, _, _ = env.step(np.zeros(8))
        assert not terminated
    assert abs(observation[3]) < 0.1


@pytest.mark.parametrize("name", ["antmaze-umaze-v2", "antmaze-medium-play-v2", "antmaze-large-play-v2"])
def test_cells_are_four_metres_wide_and_walls_are_where_the_map_says(name: str) -> None:
    env = simulator(name)
    geom = np.zeros(1, dtype=np.int32)
    down = np.array([0.0, 0.0, -1.0])
    for row, line in enumerate(env.maze):
        for column, mark in enumerate(line):
            centre = 4.0 * np.array([column - 1, row - 1])
            for corner in (-1.9, 0.0, 1.9):
                above = np.array([*(centre + corner), 5.0])
                mujoco.mj_forward(env.model, env.data)
                distance = mujoco.mj_ray(env.model, env.data, above, down, None, 1, 1, geom, None)
                if mark == "#":
                    assert distance == pytest.approx(3.0)
                elif mark != "R":
                    assert distance == pytest.approx(5.0)


def test_an_ant_pushed_into_a_wall_stays_out_of_it() -> None:
    env = simulator()
    env.reset(seed=0)
    for _ in range(30):
        env.data.qvel[:2] = (0.0, 5.0)  # the cell above the start in the map's next row is a wall
        observation = env.step(np.zeros(8))[0]
    assert 0 < observation[1] < 2.0
    assert (env.data.warning.number == 0).all()


def test_equal_seeds_give_equal_episodes_and_others_do_not() -> None:
    def episode(seed: int) -> np.ndarray:
        env = simulator()
        rows = [env.reset(seed=seed)[0]]
        actions = np.random.default_rng(5).uniform(-1, 1, (20, 8))
        rows += [env.step(action)[0] for action in actions]
        rows.append(env.reset()[0])  # the next episode is seeded too
        return np.concatenate([np.concatenate(rows), env.goal])

    np.testing.assert_array_equal(episode(1), episode(1))
    assert (episode(1) != episode(2)).any()


def test_actions_beyond_the_bounds_are_clipped() -> None:
    env = simulator()
    results = []
    for scale in (1, 7):
        env.reset(seed=0)
        results.append(env.step(np.array([1, -1] * 4) * scale)[0])
    np.testing.assert_array_equal(*results)


def test_torques_time_step_and_contacts_are_d4rl_s() -> None:
    env = simulator()
    env.reset(seed=0)
    env.step(np.linspace(-1, 1, 8))
    np.testing.assert_allclose(env.data.actuator_force * env.model.actuator_gear[:, 0], 30 * np.linspace(-1, 1, 8))
    assert env.dt == pytest.approx(0.1)
    np.testing.assert_allclose(env.model.geom_solimp[:, :3], [[0.8, 0.8, 0.01]] * env.model.ngeom)
    assert env.model.body("torso").subtreemass == pytest.approx(0.911, abs=5e-4)


def test_making_and_stepping_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    env = antmaze.make("antmaze-umaze-v2")
    env.reset(seed=0)
    env.step(np.zeros(8))
    assert capfd.readouterr() == ("", "")
    assert len(recwarn) == 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(find_spec("d4rl") is None, reason="the d4rl package is not installed")
@pytest.mark.parametrize(
    ("name", "theirs"), [("umaze", "U_MAZE_TEST"), ("medium", "BIG_MAZE_TEST"), ("large", "HARDEST_MAZE_TEST")]
)
@pytest.mark.filterwarnings("ignore")
def test_the_simulated_world_is_the_one_that_d4rl_builds(name: str, theirs: str) -> None:
    package = find_spec("d4rl")
    assert package is not None
    assert package.origin is not None
    d4rl = _d4rl_model(Path(package.origin).parent / "locomotion", theirs)
    env = antmaze.AntMaze(name)
    actions = np.random.default_rng(0).uniform(-1, 1, (60, 8))
    data = [mujoco.MjData(model) for model in (d4rl, env.model)]
    for action in actions:
        for model, state, scale in zip((d4rl, env.model), data, (30, 1), strict=True):
            state.ctrl[:] = scale * action
            mujoco.mj_step(model, state, nstep=5)
        np.testing.assert_array_equal(data[0].qpos, data[1].qpos)
    for field in ("geom_pos", "geom_size", "geom_type", "geom_contype", "geom_conaffinity", "geom_solimp", "body_mass"):
        np.testing.assert_array_equal(getattr(d4rl, field), getattr(env.model, field))


def _d4rl_model(folder: Path, maze: str) -> mujoco.MjModel:
    """What D4RL's own ``MazeEnv`` writes for its simulator, on the MuJoCo at hand."""
    module: Any = _module(folder / "maze_env.py")

    class Locomotion:
        FILE = str(folder / "assets" / "ant.xml")

        def __init__(self, *_: object, file_path: str, **__: object) -> None:
            self.file_path = file_path

    maze_env = type("D4RLMaze", (module.MazeEnv, Locomotion), {"LOCOMOTION_ENV": Locomotion})
    path = Path(maze_env(getattr(module, maze), 4.0).file_path)
    try:
        return mujoco.MjModel.from_xml_string(path.read_text().replace('material=""', ""))
    finally:
        path.unlink()


def _module(path: Path) -> ModuleType:
    """A module on its own: the package around it wants mujoco-py."""
    spec = spec_from_file_location("d4rl_maze_env", path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import mujoco
import numpy as np
import pytest

from raydiff.envs import kitchen
from raydiff.errors import UserError

JOINTS = {
    "bottom burner": ("knob_Joint_2", "bottom_left_burner"),
    "light switch": ("light_switch", "light_joint"),
    "slide cabinet": ("slide_cabinet",),
    "microwave": ("microwave",),
    "kettle": ("kettle",),
}


@pytest.fixture(scope="module")
def complete() -> kitchen.Kitchen:
    return _simulator("kitchen-complete-v0")


@pytest.fixture(scope="module")
def mixed() -> kitchen.Kitchen:
    return _simulator("kitchen-mixed-v0")


def _simulator(name: str) -> kitchen.Kitchen:
    env = kitchen.make(name).unwrapped
    assert isinstance(env, kitchen.Kitchen)
    return env


def _do(env: kitchen.Kitchen, task: str) -> None:
    """Bring the joints of a subtask to its goal, found by their names."""
    where, values = kitchen.GOALS[task]
    joints = [env.data.joint(name).qpos for name in JOINTS[task]]
    assert sum(len(qpos) for qpos in joints) == len(values) == where.stop - where.start
    done = 0
    for qpos in joints:
        qpos[:] = values[done : done + len(qpos)]
        done += len(qpos)


@pytest.mark.parametrize("name", kitchen.IDS)
def test_sizes_bounds_and_limit(name: str) -> None:
    env = kitchen.make(name)
    observation, _ = env.reset(seed=0)
    assert observation.shape == env.observation_space.shape == (60,)
    assert env.action_space.low.tolist() == [-1] * 9
    assert env.action_space.high.tolist() == [1] * 9
    assert kitchen.step_limit(name) == 280
    assert env.get_wrapper_attr("_max_episode_steps") == 280


def test_unknown_ids_are_refused_with_the_known_ones() -> None:
    for name in ("kitchen-v0", "kitchen-new-v0", "FrankaKitchen-v1"):
        with pytest.raises(UserError, match="kitchen-partial-v0"):
            kitchen.make(name)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kitchen, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install 'gymnasium-robotics"):
        kitchen.make("kitchen-mixed-v0")


def test_an_episode_is_cut_at_the_limit() -> None:
    env = kitchen.make("kitchen-mixed-v0")
    env.reset(seed=0)
    for step in range(280):
        _, reward, terminated, truncated, _ = env.step(np.zeros(9))
        assert (reward, terminated, truncated) == (0, False, step == 279)


def test_observations_are_robot_objects_and_goals(complete: kitchen.Kitchen, mixed: kitchen.Kitchen) -> None:
    for env in (complete, mixed):
        observation, _ = env.reset(seed=0)
        for _ in range(3):
            assert np.abs(observation[:9] - env.data.qpos[:9]).max() <= 0.01
            assert np.abs(observation[9:30] - env.data.qpos[9:]).max() <= 0.01
            observation = env.step(np.full(9, 0.3))[0]
    goal = {i: value for i, value in enumerate(complete.reset(seed=1)[0][30:]) if value}
    kettle = {23: -0.23, 24: 0.75, 25: 1.62, 26: 0.99, 29: -0.06}
    assert goal == {17: -0.69, 18: -0.05, 19: 0.37, 22: -0.75} | kettle
    goal = {i: value for i, value in enumerate(mixed.reset(seed=1)[0][30:]) if value}
    assert goal == {11: -0.88, 12: -0.01, 17: -0.69, 18: -0.05, 22: -0.75} | kettle


def test_observation_noise_has_d4rl_s_size(mixed: kitchen.Kitchen) -> None:
    noise = np.array([mixed.reset(seed=seed)[0][:30] - mixed.data.qpos for seed in range(200)])
    # Amplitudes of the robot's configuration times 0.1: arm, buttons, hinged doors, kettle's height.
    for joint, amplitude in ((0, 0.01), (8, 0.01), (11, 5e-5), (19, 5e-4), (22, 0.01), (25, 5e-4), (29, 5e-4)):
        assert 0.9 * amplitude < np.abs(noise[:, joint]).max() <= amplitude
        assert abs(noise[:, joint].mean()) < 0.2 * amplitude


def test_episodes_start_in_d4rl_s_pose(mixed: kitchen.Kitchen) -> None:
    mixed.reset(seed=0)
    np.testing.assert_allclose(mixed.data.qpos[:3], [0.148388023, -1.76848573, 1.84390296])
    np.testing.assert_allclose(mixed.data.joint("kettle").qpos[:3], [-0.26939744, 0.350383255, 1.61944683])
    np.testing.assert_allclose(np.linalg.norm(mixed.data.joint("kettle").qpos[3:]), 1)
    assert not mixed.data.qvel.any()


@pytest.mark.parametrize("name", kitchen.IDS)
def test_every_subtask_counts_once_and_the_last_one_ends_the_episode(name: str) -> None:
    env = _simulator(name)
    env.reset(seed=0)
    assert env.step(np.zeros(9))[1] == 0
    returns = 0.0
    for i, task in enumerate(kitchen.TASKS[name]):
        _do(env, task)
        _, reward, terminated, truncated, _ = env.step(np.zeros(9))
        assert (reward, terminated, truncated) == (1, i == 3, False)
        returns += reward
        if i < 3:
            assert env.step(np.zeros(9))[1] == 0
    assert returns == 4
    env.reset()
    _do(env, "microwave")
    assert env.step(np.zeros(9))[1] == 1


def test_subtasks_done_together_count_together_and_others_do_not(mixed: kitchen.Kitchen) -> None:
    mixed.reset(seed=0)
    for task in ("microwave", "light switch", "slide cabinet"):
        _do(mixed, task)
    _, reward, terminated, _, _ = mixed.step(np.zeros(9))
    assert (reward, terminated) == (2, False)


def test_a_subtask_is_done_within_0_3(mixed: kitchen.Kitchen) -> None:
    for door, expected in ((-0.40, 0), (-0.50, 1)):
        mixed.reset(seed=0)
        mixed.data.joint("microwave").qpos[:] = door
        observation, reward, _, _, _ = mixed.step(np.zeros(9))
        assert (abs(observation[22] + 0.75) < 0.3) == bool(expected)
        assert reward == expected


def test_actions_are_joint_speeds(mixed: kitchen.Kitchen) -> None:
    for sign in (-1, 1):
        mixed.reset(seed=0)
        observed = mixed._observed[:9].copy()
        action = np.zeros(9)
        action[0] = 3 * sign  # clipped to one
        mixed.step(action)
        np.testing.assert_allclose(mixed.data.ctrl[0], observed[0] + sign * 2 * 0.08)
        np.testing.assert_allclose(mixed.data.ctrl[1:7], observed[1:7])
        assert (mixed.data.ctrl[7:9] <= 0.04).all()  # the fingers' bound
        assert np.sign(mixed.data.qpos[0] - 0.148388023) == sign


def test_equal_seeds_give_equal_episodes_and_others_do_not(mixed: kitchen.Kitchen) -> None:
    def episode(seed: int) -> np.ndarray:
        rows = [mixed.reset(seed=seed)[0]]
        rows += [mixed.step(action)[0] for action in np.random.default_rng(5).uniform(-1, 1, (5, 9))]
        return np.concatenate([*rows, mixed.reset()[0]])

    np.testing.assert_array_equal(episode(1), episode(1))
    assert (episode(1) != episode(2)).any()


def test_only_the_pedestal_is_made_permeable(mixed: kitchen.Kitchen) -> None:
    original = mujoco.MjModel.from_xml_path(mixed.fullpath)
    changed = np.flatnonzero(original.geom_contype != mixed.model.geom_contype)
    assert len(changed) == 1
    np.testing.assert_allclose(mixed.model.geom_size[changed[0], :2], [0.12, 0.9])
    assert (np.flatnonzero(original.geom_conaffinity != mixed.model.geom_conaffinity) == changed).all()


def test_making_and_stepping_is_silent(tmp_path: Path) -> None:
    code = (
        "import numpy as np; from raydiff.envs import kitchen\n"
        "env = kitchen.make('kitchen-mixed-v0'); env.reset(seed=0); env.step(np.zeros(9))"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []

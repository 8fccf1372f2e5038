from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from raydiff.data.dataset import Dataset
from raydiff.envs import adroit
from raydiff.envs.registry import EnvironmentSpec
from raydiff.errors import UserError

SIZES = {"pen-v1": (45, 24), "door-v1": (39, 28), "hammer-v1": (46, 26), "relocate-v1": (39, 30)}


def simulator(name: str) -> adroit.Adroit:
    env = adroit.make(name).unwrapped
    assert isinstance(env, adroit.Adroit)
    env.reset(seed=0)
    return env


def place(env: adroit.Adroit, joint: str, value: float) -> None:
    data = env.simulator.data
    data.joint(joint).qpos[:] = value


@pytest.mark.parametrize("name", adroit.IDS)
def test_sizes_bounds_and_limit(name: str) -> None:
    env = adroit.make(name)
    observation, _ = env.reset(seed=0)
    assert (observation.size, env.action_space.shape) == (SIZES[name][0], (SIZES[name][1],))
    assert env.observation_space.shape == observation.shape
    assert set(env.action_space.low) == {-1}
    assert set(env.action_space.high) == {1}
    limit = adroit.step_limit(name)
    assert limit == (100 if name == "pen-v1" else 200)
    for step in range(limit):
        _, _, terminated, truncated, _ = env.step(np.zeros(SIZES[name][1]))
        assert truncated == (step == limit - 1)
        if terminated:
            assert name == "pen-v1"
            break


def test_unknown_ids_are_refused_with_the_known_ones() -> None:
    for name in ("pen-human-v1", "pen-v0", "AdroitHandPen-v1"):
        with pytest.raises(UserError, match="relocate-v1"):
            adroit.make(name)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium_robotics", None)
    with pytest.raises(UserError, match="pip install 'gymnasium-robotics"):
        adroit.make("door-v1")


@pytest.mark.parametrize("name", adroit.IDS)
def test_equal_seeds_give_equal_episodes_and_others_do_not(name: str) -> None:
    def episode(seed: int) -> np.ndarray:
        env = adroit.make(name)
        rows = [env.reset(seed=seed)[0]]
        for action in np.random.default_rng(5).uniform(-1, 1, (10, SIZES[name][1])):
            observation, reward, *_ = env.step(action)
            rows += [observation, np.array([reward])]
        return np.concatenate([*rows, env.reset()[0]])

    np.testing.assert_array_equal(episode(1), episode(1))
    assert (episode(1) != episode(2)).any()


@pytest.mark.parametrize("name", adroit.IDS)
def test_rewards_differ_from_gymnasium_robotics_only_where_that_departs_from_d4rl(name: str) -> None:
    """Its palm term has the wrong sign in three tasks (its pull request 220); the pen's reward is D4RL's."""
    env = simulator(name)
    to_object = {"door-v1": slice(35, 38), "relocate-v1": slice(30, 33)}
    # Its own step(), seen on the way: the reward of the very same state.
    original, theirs = env.simulator.step, []
    env.simulator.step = lambda action: theirs.append(original(action)) or theirs[-1]
    for action in np.random.default_rng(1).uniform(-1, 1, (60, SIZES[name][1])):
        observation, reward, terminated, _, _ = env.step(action)
        if name == "pen-v1":
            palm = 0.0
        elif name == "hammer-v1":
            palm = np.linalg.norm(observation[33:36] - observation[36:39])
        else:
            palm = np.linalg.norm(observation[to_object[name]])
        assert reward == pytest.approx(theirs[-1][1] - 0.2 * palm, abs=1e-9)
        if terminated:
            break
    assert len(theirs) > 5
    assert np.ptp([step[1] for step in theirs]) > 1e-3


def test_door_layout_and_bonuses_of_an_opened_door() -> None:
    env = simulator("door-v1")
    data = env.simulator.data
    observed = {}
    for angle in (0.0, 0.5, 1.1, 1.5):
        env.reset(seed=0)
        place(env, "latch", 1.5)
        place(env, "door_hinge", angle)
        observation, reward, terminated, _, _ = env.step(np.zeros(28))
        np.testing.assert_array_equal(observation[:27], data.qpos[1:28])
        assert observation[27] == data.joint("latch").qpos[0]
        reached = observation[28]
        assert reached == data.joint("door_hinge").qpos[0]
        np.testing.assert_array_equal(observation[29:32], data.site("S_grasp").xpos)
        np.testing.assert_array_equal(observation[32:35], data.site("S_handle").xpos)
        np.testing.assert_array_equal(observation[35:38], observation[29:32] - observation[32:35])
        assert observation[38] == (1 if reached > 1.0 else -1)
        bonus = 2 * (reached > 0.2) + 8 * (reached > 1.0) + 10 * (reached > 1.35)
        cost = 0.1 * np.linalg.norm(observation[35:38]) + 0.1 * (reached - 1.57) ** 2 + 1e-5 * np.sum(data.qvel**2)
        assert reward == pytest.approx(bonus - cost)
        assert not terminated
        observed[angle] = bonus
    assert list(observed.values()) == [0, 2, 10, 20]


def test_a_dropped_pen_ends_the_episode_with_a_penalty() -> None:
    env = simulator("pen-v1")
    observation, _reward, terminated, _, _ = env.step(np.zeros(24))
    assert not terminated
    np.testing.assert_array_equal(observation[:24], env.simulator.data.qpos[:24])
    place(env, "OBJTx", 0.3)  # the pen's own x axis points down
    observation, dropped, terminated, truncated, _ = env.step(np.zeros(24))
    assert terminated
    assert not truncated
    assert observation[26] < 0.075
    similarity = observation[33:36] @ observation[36:39]
    assert dropped == pytest.approx(-np.linalg.norm(observation[39:42]) + similarity - 5)


def test_a_pen_held_as_asked_is_worth_sixty_more() -> None:
    env = simulator("pen-v1")
    model = env.simulator.model
    pen, target = model.body("Object"), model.body("target")
    target.quat[:] = pen.quat
    observation, reward, terminated, _, _ = env.step(np.zeros(24))
    distance, similarity = np.linalg.norm(observation[39:42]), observation[33:36] @ observation[36:39]
    assert distance < 0.075
    assert similarity > 0.95
    assert not terminated
    assert reward == pytest.approx(60 - distance + similarity)


def test_a_nail_driven_in_is_worth_a_hundred() -> None:
    env = simulator("hammer-v1")
    simulated = env.simulator
    rewards = {}
    for depth in (0.0, 0.077, 0.09):
        env.reset(seed=0)
        place(env, "nail_dir", depth)
        observation, reward, _, _, _ = env.step(np.zeros(26))
        data = simulated.data
        np.testing.assert_array_equal(observation[:27], data.qpos[:27])
        np.testing.assert_array_equal(observation[33:36], data.site("S_grasp").xpos)
        np.testing.assert_array_equal(observation[36:39], data.body("Object").xpos)
        np.testing.assert_array_equal(observation[42:45], data.site("S_target").xpos)
        out = np.linalg.norm(observation[42:45] - data.site("nail_goal").xpos)
        rewards[depth] = (out, reward)
    outs, values = zip(*rewards.values(), strict=True)
    assert outs[0] > 0.02
    assert 0.01 < outs[1] < 0.02
    assert outs[2] < 0.01
    assert values[0] < 0
    assert 20 < values[1] < 30
    assert 90 < values[2] < 103


def test_a_lifted_ball_and_one_at_the_target_are_rewarded() -> None:
    env = simulator("relocate-v1")
    simulated = env.simulator
    observation, low, _, _, _ = env.step(np.zeros(30))
    palm, ball, target = (
        simulated.data.site("S_grasp").xpos,
        simulated.data.body("Object").xpos,
        simulated.data.site("target").xpos,
    )
    np.testing.assert_array_equal(observation[30:39], np.concatenate([palm - ball, palm - target, ball - target]))
    assert low == pytest.approx(-0.1 * np.linalg.norm(palm - ball))
    for axis, goal in zip("xyz", target - ball, strict=True):
        place(env, f"OBJT{axis}", goal)
    observation, high, _, _, _ = env.step(np.zeros(30))
    to_ball, to_target, left = np.linalg.norm(observation[30:39].reshape(3, 3), axis=1)
    assert left < 0.05
    assert high == pytest.approx(31 - 0.1 * to_ball - 0.5 * to_target - 0.5 * left)


@pytest.mark.parametrize("name", adroit.IDS)
def test_a_dataset_in_d4rl_s_layout_fits_and_any_other_does_not(name: str) -> None:
    env = adroit.make(name)
    spec = EnvironmentSpec(
        id=name,
        observation_size=int(np.prod(env.observation_space.shape or ())),
        action_size=int(np.prod(env.action_space.shape or ())),
        action_low=-np.ones(SIZES[name][1], np.float32),
        action_high=np.ones(SIZES[name][1], np.float32),
        max_episode_steps=adroit.step_limit(name),
        mujoco_version="",
    )

    def dataset(size: int) -> Dataset:
        rows = np.zeros(5, np.float32)
        actions = np.full((5, SIZES[name][1]), 0.5, np.float32)
        observations = np.zeros((5, size), np.float32)
        return Dataset(observations, actions, rows, rows > 0, rows > 0, None, name, "file.hdf5")

    dataset(SIZES[name][0]).check_environment(spec)
    with pytest.raises(UserError, match=f"has {SIZES[name][0]}"):
        dataset(SIZES[name][0] + 1).check_environment(spec)


def test_making_and_stepping_is_silent(tmp_path: Path) -> None:
    """In a fresh process, because gymnasium-robotics prints its notice once."""
    code = (
        "import numpy as np; from raydiff.envs import adroit\n"
        "for name in adroit.IDS:\n"
        "    env = adroit.make(name); env.reset(seed=0); env.step(np.zeros(env.action_space.shape))"
    )
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")
    assert list(tmp_path.iterdir()) == []

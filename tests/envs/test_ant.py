from __future__ import annotations

from pathlib import Path

import gymnasium
import numpy as np
import pytest

from raydiff.envs import ant
from raydiff.errors import UserError


def test_sizes_bounds_and_limit() -> None:
    env = ant.make("ant-v2")
    observation, _ = env.reset(seed=0)
    assert observation.shape == env.observation_space.shape == (111,)
    assert env.action_space.low.tolist() == [-1] * 8
    assert env.action_space.high.tolist() == [1] * 8
    assert ant.step_limit("ant-v2") == 1000
    for step in range(1000):
        _, _, terminated, truncated, _ = env.step(np.zeros(8))
        assert not terminated
        assert truncated == (step == 999)


def test_unknown_ids_are_refused() -> None:
    with pytest.raises(UserError, match="ant-v2"):
        ant.make("Ant-v4")


@pytest.mark.filterwarnings("ignore:.*is out of date.*")
def test_observations_and_rewards_are_ant_v4_s_without_contact_forces() -> None:
    ours = ant.make("ant-v2")
    theirs = gymnasium.make("Ant-v4", use_contact_forces=False)
    ours.reset(seed=1)
    theirs.reset(seed=1)
    assert isinstance(ours.unwrapped, ant.Ant)
    theirs.unwrapped.set_state(ours.unwrapped.data.qpos, ours.unwrapped.data.qvel)  # type: ignore[attr-defined]
    ours.unwrapped.set_state(ours.unwrapped.data.qpos, ours.unwrapped.data.qvel)
    for action in np.random.default_rng(0).uniform(-1, 1, (50, 8)):
        a, b = ours.step(action), theirs.step(action)
        np.testing.assert_array_equal(a[0], np.concatenate([b[0], np.zeros(84)]))
        assert a[1:3] == b[1:3]
        if a[2]:
            break


def test_contact_forces_would_not_have_been_zero() -> None:
    env = ant.Ant()
    env.reset(seed=0)
    for _ in range(20):
        observation = env.step(np.zeros(8))[0]
    assert np.abs(env.contact_forces).max() > 0
    assert not observation[27:].any()


def test_quaternions_are_unit_ones_from_the_start() -> None:
    env = ant.Ant()
    for seed in range(5):
        observation, _ = env.reset(seed=seed)
        np.testing.assert_allclose(np.linalg.norm(observation[1:5]), 1, atol=1e-12)
        np.testing.assert_array_equal(observation[:27], np.concatenate([env.data.qpos[2:], env.data.qvel]))


def test_equal_seeds_give_equal_episodes_and_others_do_not() -> None:
    def episode(seed: int) -> np.ndarray:
        env = ant.make("ant-v2")
        rows = [env.reset(seed=seed)[0]]
        rows += [env.step(action)[0] for action in np.random.default_rng(5).uniform(-1, 1, (10, 8))]
        return np.concatenate([*rows, env.reset()[0]])

    np.testing.assert_array_equal(episode(1), episode(1))
    assert (episode(1) != episode(2)).any()


def test_making_and_stepping_is_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.chdir(tmp_path)
    env = ant.make("ant-v2")
    env.reset(seed=0)
    env.step(np.zeros(8))
    assert capfd.readouterr() == ("", "")
    assert len(recwarn) == 0
    assert list(tmp_path.iterdir()) == []

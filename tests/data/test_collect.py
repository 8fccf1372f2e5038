from __future__ import annotations

from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest

from raydiff.data.collect import collect
from raydiff.data.d4rl import read_d4rl
from raydiff.envs.registry import environment_spec
from raydiff.errors import UserError


@pytest.fixture(scope="module")
def hopper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect("hopper", "random", 2000, 3, tmp_path_factory.mktemp("collect") / "new" / "hopper.hdf5")


def test_schema_and_attributes(hopper_file: Path) -> None:
    with h5py.File(hopper_file) as file:
        arrays = {name: item for name, item in file.items() if isinstance(item, h5py.Dataset)}
        arrays |= {f"infos/{name}": item for name, item in file["infos"].items()}
        assert {name: (array.shape, array.dtype.str) for name, array in arrays.items()} == {
            "observations": ((2000, 11), "<f4"),
            "next_observations": ((2000, 11), "<f4"),
            "actions": ((2000, 3), "<f4"),
            "rewards": ((2000,), "<f4"),
            "terminals": ((2000,), "|b1"),
            "timeouts": ((2000,), "|b1"),
            "infos/qpos": ((2000, 6), "<f4"),
            "infos/qvel": ((2000, 6), "<f4"),
        }
        assert all(array.compression == "gzip" for array in arrays.values())
        assert file["metadata/algorithm"][()] == b"uniform"
        assert file["metadata/versions/gymnasium"][()].decode() == gymnasium.__version__
        attributes = dict(file.attrs)
    assert (attributes["environment"], attributes["level"], attributes["seed"]) == ("Hopper-v4", "random", 3)
    assert attributes["mujoco_version"] == environment_spec("hopper").mujoco_version
    assert attributes["gymnasium_version"] == gymnasium.__version__
    assert attributes["raydiff_version"]


def test_rows_are_those_of_plain_gymnasium(hopper_file: Path) -> None:
    dataset = read_d4rl(hopper_file)
    env = gymnasium.make("Hopper-v4")
    observation, _ = env.reset(seed=3)
    for t in range(300):
        np.testing.assert_array_equal(dataset.observation[t], observation.astype(np.float32))
        observation, reward, terminated, _, _ = env.step(dataset.action[t])
        np.testing.assert_array_equal(dataset.next_observation[t], observation.astype(np.float32))
        assert dataset.reward[t] == np.float32(reward)
        assert dataset.terminal[t] == terminated
        if terminated:
            observation, _ = env.reset()
    assert dataset.terminal[:300].sum() > 3


def test_the_state_of_the_simulator_is_that_of_the_observation(hopper_file: Path) -> None:
    with h5py.File(hopper_file) as file:
        np.testing.assert_array_equal(file["infos/qpos"][:, 1:], file["observations"][:, :5])
        np.testing.assert_array_equal(np.clip(file["infos/qvel"], -10, 10), file["observations"][:, 5:])


def test_only_the_cut_episode_times_out_before_the_limit(hopper_file: Path, tmp_path: Path) -> None:
    hopper = read_d4rl(hopper_file)
    assert np.flatnonzero(hopper.timeout).tolist() == ([] if hopper.terminal[-1] else [1999])
    cheetah = read_d4rl(collect("halfcheetah", "random", 2300, 0, tmp_path / "cheetah.hdf5"))
    assert np.flatnonzero(cheetah.timeout).tolist() == [999, 1999, 2299]
    assert not cheetah.terminal.any()
    assert len(cheetah.episode_returns()) == 2


def test_actions_fill_the_space_and_seeds_decide(hopper_file: Path, tmp_path: Path) -> None:
    first = read_d4rl(hopper_file)
    assert np.abs(first.action).max() <= 1.0
    np.testing.assert_allclose(first.action.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose(first.action.std(axis=0), 1 / np.sqrt(3), atol=0.03)
    again = collect("hopper", "random", 2000, 3, tmp_path / "again.hdf5")
    other = collect("hopper", "random", 2000, 4, tmp_path / "other.hdf5")
    assert again.read_bytes() == hopper_file.read_bytes()
    assert read_d4rl(other).sha256 != first.sha256


def test_other_bounds_are_rescaled_and_said(tmp_path: Path) -> None:
    path = collect("Pendulum-v1", "random", 1000, 0, tmp_path / "pendulum.hdf5")
    dataset = read_d4rl(path, 200)
    assert 0.99 < np.abs(dataset.action).max() <= 1.0
    dataset.check_environment(environment_spec("Pendulum-v1"))
    assert np.flatnonzero(dataset.timeout).tolist() == [199, 399, 599, 799, 999]
    with h5py.File(path) as file:
        assert file.attrs["native_action_low"].tolist() == [-2]
        assert file.attrs["native_action_high"].tolist() == [2]
        assert "infos" not in file
    env = gymnasium.make("Pendulum-v1")
    env.reset(seed=0)
    for t in range(200):
        observation, *_ = env.step(2 * dataset.action[t])
        np.testing.assert_allclose(dataset.next_observation[t], observation, atol=1e-4)


def test_the_controller_of_the_mazes(tmp_path: Path) -> None:
    plain = collect("maze2d-umaze", "waypoint", 500, 0, tmp_path / "plain.hdf5")
    noisy = collect("maze2d-umaze", "waypoint-noisy", 500, 0, tmp_path / "noisy.hdf5")
    assert read_d4rl(plain).sha256 != read_d4rl(noisy).sha256
    with h5py.File(noisy) as file:
        assert (file.attrs["environment"], file.attrs["level"]) == ("maze2d-umaze-v1", "waypoint-noisy")
        assert file["infos/goal"].shape == (500, 2)
        assert file["metadata/algorithm"][()] == b"waypoint controller"


def test_progress_and_no_left_over(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = collect("Hopper-v5", "random", 1500, 0, tmp_path / "a.hdf5", lambda *call: calls.append(call))
    assert calls == [(1000, 1500), (1500, 1500)]
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_collection_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect("hopper", "random", 1500, 0, tmp_path / "a.hdf5", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'expert'"):
        collect("hopper", "expert", 100, 0, tmp_path / "a.hdf5")
    with pytest.raises(UserError, match="needs a maze2d environment, not Hopper-v4"):
        collect("hopper", "waypoint", 100, 0, tmp_path / "a.hdf5")
    with pytest.raises(UserError, match="at least one"):
        collect("hopper", "random", 0, 0, tmp_path / "a.hdf5")
    with pytest.raises(UserError, match="no environment 'hoper'"):
        collect("hoper", "random", 100, 0, tmp_path / "a.hdf5")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*data\.cache"):
        collect("hopper", "random", 100, 0, tmp_path / "file" / "a.hdf5")

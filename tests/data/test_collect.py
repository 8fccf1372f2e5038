from __future__ import annotations

from pathlib import Path

import gymnasium
import h5py
import numpy as np
import pytest

from raydiff.data.collect import collect
from raydiff.data.d4rl import read_d4rl
from raydiff.errors import UserError
from raydiff.evaluation.envs import environment_spec, make_env


@pytest.fixture(scope="module")
def hopper_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return collect("hopper", "v4", "random", 2000, 3, tmp_path_factory.mktemp("collect") / "new" / "hopper.hdf5")


def test_schema_and_attributes(hopper_file: Path) -> None:
    with h5py.File(hopper_file) as file:
        kinds = {name: (array.shape, array.dtype.str) for name, array in file.items()}
        assert kinds == {
            "observations": ((2000, 11), "<f4"),
            "next_observations": ((2000, 11), "<f4"),
            "actions": ((2000, 3), "<f4"),
            "rewards": ((2000,), "<f4"),
            "terminals": ((2000,), "|b1"),
            "timeouts": ((2000,), "|b1"),
        }
        assert all(array.compression == "gzip" for array in file.values())
        attributes = dict(file.attrs)
    assert (attributes["environment"], attributes["version"], attributes["level"]) == ("hopper", "v4", "random")
    assert attributes["seed"] == 3
    assert attributes["mujoco_version"] == environment_spec("hopper", "v4").mujoco_version
    assert attributes["gymnasium_version"] == gymnasium.__version__
    assert attributes["raydiff_version"]


def test_rows_are_those_of_plain_gymnasium(hopper_file: Path) -> None:
    dataset = read_d4rl(hopper_file)
    env = make_env("hopper", "v4")
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


def test_only_the_cut_episode_times_out_before_the_limit(hopper_file: Path, tmp_path: Path) -> None:
    hopper = read_d4rl(hopper_file)
    assert np.flatnonzero(hopper.timeout).tolist() == ([] if hopper.terminal[-1] else [1999])
    cheetah = read_d4rl(collect("halfcheetah", "v4", "random", 2300, 0, tmp_path / "cheetah.hdf5"))
    assert np.flatnonzero(cheetah.timeout).tolist() == [999, 1999, 2299]
    assert not cheetah.terminal.any()
    assert len(cheetah.episode_returns()) == 2


def test_actions_fill_the_space_and_seeds_decide(hopper_file: Path, tmp_path: Path) -> None:
    first = read_d4rl(hopper_file)
    assert np.abs(first.action).max() <= 1.0
    np.testing.assert_allclose(first.action.mean(axis=0), 0.0, atol=0.05)
    np.testing.assert_allclose(first.action.std(axis=0), 1 / np.sqrt(3), atol=0.03)
    again = read_d4rl(collect("hopper", "v4", "random", 2000, 3, tmp_path / "again.hdf5"))
    other = read_d4rl(collect("hopper", "v4", "random", 2000, 4, tmp_path / "other.hdf5"))
    assert again.sha256 == first.sha256
    assert other.sha256 != first.sha256


def test_progress_and_no_left_over(tmp_path: Path) -> None:
    calls: list[tuple[int, int]] = []
    path = collect("hopper", "v5", "random", 1500, 0, tmp_path / "a.hdf5", lambda *call: calls.append(call))
    assert calls == [(1000, 1500), (1500, 1500)]
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupted_collection_leaves_nothing_behind(tmp_path: Path) -> None:
    def interrupt(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        collect("hopper", "v4", "random", 1500, 0, tmp_path / "a.hdf5", interrupt)
    assert list(tmp_path.iterdir()) == []


def test_bad_requests(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'expert'"):
        collect("hopper", "v4", "expert", 100, 0, tmp_path / "a.hdf5")
    with pytest.raises(UserError, match="at least one"):
        collect("hopper", "v4", "random", 0, 0, tmp_path / "a.hdf5")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"cannot be written.*data\.cache"):
        collect("hopper", "v4", "random", 100, 0, tmp_path / "file" / "a.hdf5")

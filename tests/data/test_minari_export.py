from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box
from minari.data_collector import EpisodeBuffer

from raydiff.config import Config, DataConfig
from raydiff.data.collect import collect
from raydiff.data.d4rl import read_d4rl
from raydiff.data.dataset import Dataset
from raydiff.data.minari import (
    download_minari,
    load_minari,
    minari_environment,
)
from raydiff.data.minari_export import export_minari
from raydiff.data.source import load_dataset, resolve
from raydiff.envs.registry import make_env
from raydiff.errors import UserError

ID = "test/pendulum/random-v0"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")


@pytest.fixture(scope="module")
def hopper(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Episodes that fall after some 20 steps."""
    path = collect("Hopper-v4", "random", 300, 3, tmp_path_factory.mktemp("collected") / "own.hdf5")
    return read_d4rl(path, 1000)


def synthetic(**changes: Any) -> Dataset:
    """Ten rows: a terminal behind row 3, a time-out behind row 7, two rows that are cut."""
    rng = np.random.default_rng(0)
    states = rng.normal(size=(13, 3)).astype(np.float32)
    first = np.array([0, 1, 2, 3, 5, 6, 7, 8, 10, 11])
    flags = {"terminal": np.arange(10) == 3, "timeout": np.arange(10) == 7}
    given: dict[str, Any] = {
        "observation": states[first],
        "action": rng.uniform(-1, 1, (10, 2)).astype(np.float32),
        "reward": rng.normal(size=10).astype(np.float32),
        "next_observation": states[first + 1],
        "name": "synthetic",
        "path": "synthetic.hdf5",
    }
    return Dataset(**(given | flags | changes))


def assert_same_rows(have: Dataset, want: Dataset) -> None:
    for name in ("observation", "action", "reward", "terminal", "timeout", "next_observation"):
        np.testing.assert_array_equal(getattr(have, name), getattr(want, name), err_msg=name, strict=True)


def episodes_of(id: str) -> list[Any]:
    return list(minari.load_dataset(id).iterate_episodes())


def test_minari_itself_reads_what_is_exported(root: Path, pendulum: Dataset) -> None:
    folder = export_minari(pendulum, ID)
    assert folder == root / ID
    loaded = minari.load_dataset(ID)
    assert (loaded.total_episodes, loaded.total_steps, loaded.id) == (3, 450, ID)
    assert loaded.env_spec.id == "Pendulum-v1"
    for episode, (start, stop) in zip(loaded, pendulum.episode_slices("raydiff"), strict=True):
        rows = slice(start, stop)
        np.testing.assert_array_equal(episode.observations[:-1], pendulum.observation[rows])
        np.testing.assert_array_equal(episode.observations[1:], pendulum.next_observation[rows])
        np.testing.assert_array_equal(episode.actions, 2 * pendulum.action[rows], strict=True)
        np.testing.assert_array_equal(episode.rewards, pendulum.reward[rows])
        np.testing.assert_array_equal(episode.terminations, pendulum.terminal[rows], strict=True)
        np.testing.assert_array_equal(episode.truncations, pendulum.timeout[rows], strict=True)
        assert loaded.action_space.contains(episode.actions[0])
        assert loaded.observation_space.contains(episode.observations[-1])
    with h5py.File(folder / "data" / "main_data.hdf5") as file:
        about = dict(file["episode_1"].attrs)
    returns = pendulum.reward[200:400].astype(np.float64)
    assert (about["id"], about["total_steps"]) == (1, 200)
    statistics = [about[f"rewards_{name}"] for name in ("sum", "mean", "std", "min", "max")]
    assert statistics == [returns.sum(), returns.mean(), returns.std(), returns.min(), returns.max()]


def test_minari_lists_it_and_recovers_its_environment(root: Path, pendulum: Dataset, hopper: Dataset) -> None:
    export_minari(pendulum, ID)
    export_minari(hopper, "hopper-v1")
    assert set(minari.list_local_datasets(compatible_minari_version=True)) == {ID, "hopper-v1"}
    assert set(minari.namespace.list_local_namespaces()) == {"test", "test/pendulum"}
    env = minari.load_dataset(ID).recover_environment()
    assert env.spec.id == "Pendulum-v1"
    assert env.action_space == minari.load_dataset(ID).action_space
    assert env.observation_space == minari.load_dataset(ID).observation_space
    assert minari.load_dataset("hopper-v1").recover_environment().spec.id == "Hopper-v4"


def test_minari_can_append_to_it(root: Path) -> None:
    export_minari(synthetic(), "test/own-v0")
    more = EpisodeBuffer(
        observations=np.ones((3, 3), np.float32),
        actions=np.zeros((2, 2), np.float32),
        rewards=[1.0, 2.0],
        terminations=[False, True],
        truncations=[False, False],
    )
    minari.load_dataset("test/own-v0").update_dataset_from_buffer([more])
    read = load_minari("test/own-v0")
    assert len(read) == 12
    assert read.reward[-2:].tolist() == [1, 2]
    assert read.terminal[-1]


@pytest.mark.parametrize("name", ["pendulum", "hopper"])
def test_what_is_exported_is_read_back(root: Path, name: str, request: pytest.FixtureRequest) -> None:
    dataset: Dataset = request.getfixturevalue(name)
    export_minari(dataset, ID)
    read = load_minari(ID)
    assert_same_rows(read, dataset)
    assert read.sha256 == dataset.sha256
    for field in ("name", "environment", "mujoco_version", "max_episode_steps", "d4rl_id"):
        assert getattr(read, field) == getattr(dataset, field)
    assert read.metadata["level"] == "random"
    np.testing.assert_array_equal(read.episode_returns(), dataset.episode_returns())


def test_a_cut_episode_ends_in_neither_flag(root: Path) -> None:
    dataset = synthetic()
    export_minari(dataset, "cut-v0")
    assert [len(episode) for episode in episodes_of("cut-v0")] == [4, 4, 2]
    assert not episodes_of("cut-v0")[2].truncations.any()
    timeout = dataset.timeout.copy()
    timeout[9] = True
    assert_same_rows(load_minari("cut-v0"), replace(dataset, timeout=timeout))


def test_a_chain_that_breaks_is_cut_there(root: Path) -> None:
    following = synthetic().next_observation
    assert following is not None
    following[1] = 7
    export_minari(synthetic(next_observation=following), "broken-v0")
    assert [len(episode) for episode in episodes_of("broken-v0")] == [2, 2, 4, 2]
    read = load_minari("broken-v0")
    np.testing.assert_array_equal(read.next_observation, following)
    assert np.flatnonzero(read.timeout).tolist() == [1, 7, 9]


def test_no_successor_is_made_up(root: Path) -> None:
    dataset = synthetic(next_observation=None)
    export_minari(dataset, "unknown-v0")
    read = load_minari("unknown-v0")
    kept = [0, 1, 2, 3, 4, 5, 6, 8]
    transitions = dataset.transitions("raydiff")
    for name in ("observation", "action", "reward", "next_observation", "terminal"):
        np.testing.assert_array_equal(getattr(read.transitions("raydiff"), name), getattr(transitions, name))
    np.testing.assert_array_equal(read.reward, dataset.reward[kept])
    assert np.flatnonzero(read.terminal).tolist() == [3]
    assert np.flatnonzero(read.timeout).tolist() == [6, 7]
    assert [episode.truncations[-1] for episode in episodes_of("unknown-v0")] == [False, True, False]
    with pytest.raises(UserError, match="successor"):
        export_minari(synthetic(next_observation=None, timeout=np.ones(10, bool), terminal=np.zeros(10, bool)), "x-v0")


def test_environments_in_d4rls_frame_are_found_again(root: Path, tmp_path: Path) -> None:
    dataset = read_d4rl(collect("maze2d-umaze-v1", "waypoint", 400, 0, tmp_path / "maze.hdf5"), 300)
    export_minari(dataset, "test/maze-v0")
    assert minari.load_dataset("test/maze-v0").env_spec is None
    assert minari_environment("test/maze-v0") == "maze2d-umaze-v1"
    read = load_minari("test/maze-v0")  # D4RL's maze2d stores no successors, so that each time-out costs a row
    assert len(read) == 400 - (dataset.timeout | (np.arange(400) == 399)).sum() < 400
    np.testing.assert_array_equal(read.observation, dataset.transitions("raydiff").observation)
    np.testing.assert_array_equal(read.next_observation, dataset.transitions("raydiff").next_observation)
    config = resolve(Config(data=DataConfig(dataset="minari:test/maze-v0"))).data
    assert config.environment == "maze2d-umaze-v1"
    assert len(load_dataset(config)) == len(read)


def test_d4rls_data_say_that_they_are(root: Path) -> None:
    rng = np.random.default_rng(0)
    states = rng.normal(size=(11, 11)).astype(np.float32)
    dataset = synthetic(
        observation=states[:-1],
        next_observation=states[1:],
        action=rng.uniform(-1, 1, (10, 3)).astype(np.float32),
        terminal=np.zeros(10, bool),
        environment="Hopper-v4",
        d4rl_id="hopper-medium-v2",
    )
    export_minari(dataset, "test/d4rl-v0")
    assert load_minari("test/d4rl-v0").d4rl_id == "hopper-medium-v2"
    loaded = minari.load_dataset("test/d4rl-v0")
    assert loaded.env_spec is None
    assert loaded.recover_environment(eval_env=True).spec.id == "Hopper-v4"


def test_a_goal_environment_is_recovered_with_flat_observations(root: Path) -> None:
    name = "PointMaze_UMaze-v3"
    env = make_env(name)
    observations = [env.reset(seed=0)[0]]
    actions = np.random.default_rng(0).uniform(-1, 1, (10, 2)).astype(np.float32)
    observations += [env.step(action)[0] for action in actions]
    states = np.array(observations, np.float32)
    dataset = synthetic(
        observation=states[:-1],
        next_observation=states[1:],
        action=actions,
        terminal=np.zeros(10, bool),
        timeout=np.zeros(10, bool),
        environment=name,
    )
    export_minari(dataset, "test/goal-v0")
    recovered = minari.load_dataset("test/goal-v0").recover_environment()
    np.testing.assert_array_equal(recovered.reset(seed=0)[0], env.reset(seed=0)[0])
    assert recovered.observation_space == minari.load_dataset("test/goal-v0").observation_space
    assert load_minari("test/goal-v0").environment == name


@pytest.mark.parametrize("environment", ["", "NoSuchEnvironment-v7", "HalfCheetah-v4"])
def test_any_dataset_can_be_exported(root: Path, environment: str) -> None:
    """Also of an unknown environment, and of one that the sizes do not fit."""
    dataset = synthetic(environment=environment)
    export_minari(dataset, "any-v0")
    read = load_minari("any-v0")
    assert read.environment == environment
    np.testing.assert_array_equal(read.action, dataset.action)
    assert minari.load_dataset("any-v0").action_space == Box(-1, 1, (2,), np.float32)


def test_nothing_is_replaced_or_left_half_written(root: Path, pendulum: Dataset) -> None:
    export_minari(pendulum, ID)
    with pytest.raises(UserError, match="already"):
        export_minari(synthetic(), ID)

    def fail(done: int, total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_minari(synthetic(), ID, overwrite=True, progress=fail)
    assert_same_rows(load_minari(ID), pendulum)
    export_minari(synthetic(), ID, overwrite=True)
    assert len(load_minari(ID)) == 10
    assert sorted(path.name for path in (root / ID).parent.iterdir()) == ["namespace_metadata.json", "random-v0"]
    with pytest.raises(UserError, match="below it"):
        export_minari(synthetic(), f"{ID}/more-v0")
    with pytest.raises(UserError, match="below it"):
        export_minari(synthetic(), "other/data/more-v0")
    (root / "folder-v0").mkdir()
    with pytest.raises(UserError, match="no dataset"):
        export_minari(synthetic(), "folder-v0", overwrite=True)


@pytest.mark.parametrize(
    "id", ["no-version", "../up-v0", "/abs-v0", "a//b-v0", "x/name-v0", "", "na me-v0", "t/../u-v0"]
)
def test_ids_that_are_none(root: Path, id: str) -> None:
    for use in (load_minari, minari_environment, download_minari, lambda id: export_minari(synthetic(), id)):
        with pytest.raises(UserError, match="no id of a Minari dataset"):
            use(id)
    assert not root.exists()

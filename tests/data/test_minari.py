from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import minari
import numpy as np
import pytest
from gymnasium.spaces import Box, Dict, Discrete
from minari.data_collector import EpisodeBuffer

from raydiff.data.dataset import Dataset
from raydiff.data.minari import (
    MinariEntry,
    list_minari,
    load_minari,
    minari_environment,
)
from raydiff.data.minari_export import export_minari
from raydiff.envs.registry import environment_spec
from raydiff.errors import UserError

ID = "test/pendulum/random-v0"
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning:minari")


def head_of(dataset: Dataset) -> Dataset:
    """Its first ten rows."""
    names = ("observation", "action", "reward", "terminal", "timeout", "next_observation")
    return replace(dataset, **{name: getattr(dataset, name)[:10] for name in names})


def assert_same_rows(have: Dataset, want: Dataset) -> None:
    for name in ("observation", "action", "reward", "terminal", "timeout", "next_observation"):
        np.testing.assert_array_equal(getattr(have, name), getattr(want, name), err_msg=name, strict=True)


def episodes_of(id: str) -> list[Any]:
    return list(minari.load_dataset(id).iterate_episodes())


def buffers(goal: bool, action_size: int = 2) -> list[EpisodeBuffer]:
    rng = np.random.default_rng(1)
    made = []
    for steps, terminated, truncated in ((5, True, False), (1, False, True), (3, False, False)):
        parts = {"observation": 4, "achieved_goal": 2, "desired_goal": 2}
        observations: Any = rng.normal(size=(steps + 1, 4))
        if goal:
            observations = {key: rng.normal(size=(steps + 1, size)) for key, size in parts.items()}
        ends = np.arange(steps) == steps - 1
        made.append(
            EpisodeBuffer(
                observations=observations,
                actions=rng.uniform(-0.4, 0.8, (steps, action_size)).astype(np.float32),
                rewards=rng.normal(size=steps).tolist(),
                terminations=(ends & terminated).tolist(),
                truncations=(ends & truncated).tolist(),
            )
        )
    return made


def write_with_minari(id: str, goal: bool, data_format: str, **changes: Any) -> None:
    flat = Box(-np.inf, np.inf, (4,), np.float64)
    two = Box(-np.inf, np.inf, (2,), np.float64)
    given: dict[str, Any] = {
        "observation_space": Dict({"observation": flat, "achieved_goal": two, "desired_goal": two}) if goal else flat,
        "action_space": Box(np.float32(-0.4), np.float32(0.8), (2,), np.float32),
        "data_format": data_format,
        "requirements": ["gymnasium>=1.0", "mujoco==3.2.3"],
        "algorithm_name": "SAC",
    }
    minari.create_dataset_from_buffers(id, buffers(goal), **(given | changes))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("goal", [False, True])
@pytest.mark.parametrize("data_format", ["hdf5", "arrow", "parquet"])
def test_reads_as_minari_reads_what_minari_writes(root: Path, data_format: str, goal: bool) -> None:
    write_with_minari("test/own-v0", goal, data_format)
    read = load_minari("test/own-v0")
    start = 0
    for episode in episodes_of("test/own-v0"):
        rows = slice(start, start := start + len(episode))
        states = episode.observations
        if goal:
            states = np.concatenate([states["observation"], states["desired_goal"]], axis=1)
        np.testing.assert_array_equal(read.observation[rows], states[:-1].astype(np.float32))
        assert read.next_observation is not None
        np.testing.assert_array_equal(read.next_observation[rows], states[1:].astype(np.float32))
        np.testing.assert_allclose(read.action[rows], (episode.actions - 0.2) / 0.6, atol=1e-6)
        np.testing.assert_array_equal(read.reward[rows], episode.rewards.astype(np.float32))
        np.testing.assert_array_equal(read.terminal[rows], episode.terminations)
    assert start == len(read) == 9
    assert np.flatnonzero(read.timeout).tolist() == [5, 8]
    assert (read.mujoco_version, read.environment, read.d4rl_id) == ("3.2.3", "", "")
    assert (read.metadata["algorithm"], read.max_episode_steps) == ("SAC", 5)
    assert read.observation.flags.c_contiguous
    assert read.action.dtype == read.reward.dtype == np.float32


@pytest.mark.filterwarnings("ignore")
def test_environment_and_limit_are_those_of_the_specification(root: Path) -> None:
    native = gymnasium.make("Pendulum-v1")
    buffer = EpisodeBuffer(
        observations=np.zeros((3, 3), np.float32),
        actions=np.array([[2.0], [-1.0]], np.float32),
        rewards=[0.0, 0.0],
        terminations=[False, False],
        truncations=[False, True],
    )
    minari.create_dataset_from_buffers("D4RL/own/test-v0", [buffer], env=native)
    read = load_minari("D4RL/own/test-v0")
    assert minari_environment("D4RL/own/test-v0") == read.environment == "Pendulum-v1"
    assert read.max_episode_steps == 200
    assert read.action[:, 0].tolist() == [1.0, -0.5]
    assert read.d4rl_id == ""  # whatever the namespace: Minari collected it anew
    read.check_environment(environment_spec("Pendulum-v1"))
    edit_metadata(root / "D4RL/own/test-v0", observation_space=None, action_space=None)
    assert_same_rows(load_minari("D4RL/own/test-v0"), read)


def test_lists_what_is_here(root: Path, pendulum: Dataset) -> None:
    assert list_minari() == []
    export_minari(pendulum, ID)
    export_minari(head_of(pendulum), "small-v2")
    assert list_minari() == [MinariEntry("small-v2", "Pendulum-v1", 1, 10), MinariEntry(ID, "Pendulum-v1", 3, 450)]
    (root / "small-v2" / "data" / "metadata.json").write_text("{")
    with pytest.warns(UserWarning, match="small-v2"):
        assert [entry.id for entry in list_minari()] == [ID]


def test_a_dataset_that_is_not_here(root: Path, pendulum: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="no datasets at all"):
        load_minari(ID)
    export_minari(pendulum, ID)
    wanted = "test/pendulum/randon-v0"
    for use in (load_minari, minari_environment):
        with pytest.raises(UserError) as caught:
            use(wanted)
        for part in (str(root), ID, f"raydiff data download minari:{wanted}"):
            assert part in str(caught.value)
    monkeypatch.delenv("MINARI_DATASETS_PATH")
    monkeypatch.setenv("HOME", str(root.parent / "home"))
    with pytest.raises(UserError, match=r"home/\.minari/datasets"):
        load_minari(ID)


def edit_metadata(folder: Path, **changes: Any) -> None:
    path = folder / "data" / "metadata.json"
    about = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in about.items() if value is not None}))


@pytest.mark.filterwarnings("ignore")
def test_spaces_that_do_not_fit(root: Path) -> None:
    write_with_minari(
        "goal-v0", True, "hdf5", observation_space=Dict({"observation": Box(-1, 1, (4,)), "other": Discrete(2)})
    )
    with pytest.raises(UserError, match="a dictionary of observation, other"):
        load_minari("goal-v0")
    write_with_minari("discrete-v0", False, "hdf5", action_space=Discrete(3))
    with pytest.raises(UserError, match="actions are Discrete"):
        load_minari("discrete-v0")
    write_with_minari("unbounded-v0", False, "hdf5", action_space=Box(-np.inf, np.inf, (2,)))
    with pytest.raises(UserError, match="bounds"):
        load_minari("unbounded-v0")
    write_with_minari("other-v0", False, "hdf5", action_space=Box(-1, 1, (3,)))
    with pytest.raises(UserError, match="actions have 2 columns"):
        load_minari("other-v0")
    edit_metadata(root / "other-v0", action_space='{"type": "Box", "dtype": "float32"}')
    with pytest.raises(UserError, match="space that is none"):
        load_minari("other-v0")


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("data_format", ["hdf5", "arrow"])
def test_files_that_are_damaged(root: Path, data_format: str) -> None:
    write_with_minari("own-v0", False, data_format)
    edit_metadata(root / "own-v0", total_episodes=4)
    with pytest.raises(UserError, match="episode 3" if data_format == "hdf5" else "own-v0/data/3"):
        load_minari("own-v0")
    edit_metadata(root / "own-v0", total_episodes=0)
    with pytest.raises(UserError, match="no episodes"):
        load_minari("own-v0")
    edit_metadata(root / "own-v0", total_episodes=3, data_format="zarr")
    with pytest.raises(UserError, match="'zarr'"):
        load_minari("own-v0")
    part = root / "own-v0" / "data" / ("main_data.hdf5" if data_format == "hdf5" else "0/part-0.arrow")
    part.write_bytes(part.read_bytes()[:100])
    edit_metadata(root / "own-v0", data_format=data_format)
    with pytest.raises(UserError, match="damaged"):
        load_minari("own-v0")


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("observations", np.zeros((10, 3)), r"\(10, 3\).*\(11, 3\)"),
        ("observations", np.full((11, 3), np.nan), "'observations' has values that are NaN"),
        ("rewards", np.full(10, 1e300), "'rewards' has values"),
        ("actions", np.zeros((10, 5)), "actions have 5 columns"),
        ("actions", np.array([["a"]] * 10, dtype="S1"), "actions"),
        ("truncations", None, "episode 0 has no array 'truncations'"),
    ],
)
def test_arrays_that_are_damaged(
    root: Path, pendulum: Dataset, key: str, values: np.ndarray | None, message: str
) -> None:
    export_minari(head_of(pendulum), "own-v0")
    with h5py.File(root / "own-v0" / "data" / "main_data.hdf5", "a") as file:
        del file[f"episode_0/{key}"]
        if values is not None:
            file[f"episode_0/{key}"] = values
    with pytest.raises(UserError, match=message):
        load_minari("own-v0")

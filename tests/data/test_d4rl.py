from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

from raydiff.data.d4rl import Dataset, file_environment, read_d4rl
from raydiff.data.info import describe_dataset
from raydiff.envs.registry import environment_spec
from raydiff.errors import UserError

Arrays = dict[str, np.ndarray]


def _toy(count: int = 20, size: int = 17, action_size: int = 6) -> Arrays:
    rng = np.random.default_rng(0)
    observations = rng.normal(size=(count, size)).astype(np.float32)
    return {
        "observations": observations,
        "actions": rng.uniform(-1, 1, size=(count, action_size)).astype(np.float32),
        "rewards": rng.normal(size=count).astype(np.float32),
        "terminals": np.arange(count) == 4,
        "timeouts": np.isin(np.arange(count), [9, 14]),
        "next_observations": observations + 1,
    }


def _write(path: Path, arrays: Arrays, **attributes: object) -> Path:
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file.attrs.update(attributes)
    return path


def _without(arrays: Arrays, *names: str) -> Arrays:
    return {name: array for name, array in arrays.items() if name not in names}


def _dataset(tmp_path: Path, arrays: Arrays, **attributes: object) -> Dataset:
    return read_d4rl(_write(tmp_path / "toy.hdf5", arrays, **attributes))


def test_arrays_types_and_attributes(tmp_path: Path) -> None:
    arrays = _toy()
    stored = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in arrays.items()}
    stored["rewards"] = stored["rewards"][:, None]
    stored["terminals"] = stored["terminals"].astype(np.uint8)[:, None]
    dataset = _dataset(tmp_path, stored, environment="HalfCheetah-v4", mujoco_version="3.3.7")
    for name in ("observation", "action", "reward", "next_observation"):
        array = getattr(dataset, name)
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, arrays[f"{name}s"])
    assert dataset.terminal.dtype == dataset.timeout.dtype == np.bool_
    assert np.flatnonzero(dataset.terminal).tolist() == [4]
    assert (dataset.name, dataset.environment, dataset.mujoco_version) == ("toy", "HalfCheetah-v4", "3.3.7")
    assert (dataset.d4rl_id, dataset.collected_in) == ("", "HalfCheetah-v4")


def test_other_contents_are_ignored_and_metadata_kept(tmp_path: Path) -> None:
    path = _write(tmp_path / "toy.hdf5", _toy(), env_id="Hopper-v4", seed=3)
    with h5py.File(path, "a") as file:
        file["infos/qpos"] = np.zeros((3, 3))
        file["metadata/algorithm"] = np.bytes_(b"SAC")
        file["metadata/iteration"] = np.int32(3000)
        file["metadata/policy/nonlinearity"] = "relu"
        file["metadata/policy/fc0/weight"] = np.zeros((256, 17), dtype=np.float32)
    dataset = read_d4rl(path)
    assert dataset.environment == file_environment(path) == "Hopper-v4"
    assert dict(dataset.metadata) == {
        "algorithm": "SAC", "iteration": "3000", "policy/nonlinearity": "relu", "env_id": "Hopper-v4", "seed": "3",
    }  # fmt: skip
    kitchen = _write(tmp_path / "kitchen.hdf5", {**_toy(), "infos": np.zeros(20), "metadata": np.zeros(2)})
    assert len(read_d4rl(kitchen)) == 20


def test_file_of_d4rl_is_known_by_its_name(tmp_path: Path) -> None:
    arrays = _without(_toy(), "timeouts", "next_observations")
    path = _write(tmp_path / "halfcheetah_medium-v2.hdf5", arrays)
    dataset = read_d4rl(path)
    assert (dataset.d4rl_id, dataset.environment) == ("halfcheetah-medium-v2", "HalfCheetah-v4")
    assert file_environment(path) == "HalfCheetah-v4"
    assert dataset.collected_in == "D4RL's environment of halfcheetah-medium-v2"
    dataset.check_environment(environment_spec("HalfCheetah-v4"))
    dataset.check_environment(environment_spec("HalfCheetah-v5"))  # Neither is D4RL's own.
    with pytest.raises(UserError, match="belong to HalfCheetah-v4"):
        dataset.check_environment(environment_spec("Walker2d-v4"))
    collected = read_d4rl(_write(path, arrays, environment="Walker2d-v4"))
    assert (collected.d4rl_id, collected.environment) == ("", "Walker2d-v4")
    other = _write(tmp_path / "hopper_medium-v2.hdf5", arrays)
    assert (read_d4rl(other).d4rl_id, file_environment(other)) == ("", "")


def test_file_is_what_it_is_said_to_be(tmp_path: Path) -> None:
    arrays = _without(_toy(count=150, size=4, action_size=2), "timeouts", "next_observations")
    arrays["terminals"] = np.zeros((150, 1))
    path = _write(tmp_path / "mine.hdf5", arrays)
    dataset = read_d4rl(path, d4rl_id="maze2d-umaze-v0")
    assert (dataset.d4rl_id, dataset.environment, dataset.max_episode_steps) == ("maze2d-umaze-v0", "", 150)
    assert np.flatnonzero(dataset.timeout).tolist() == [149]
    assert read_d4rl(path).max_episode_steps == 1000
    assert read_d4rl(path, 50, d4rl_id="maze2d-umaze-v0").max_episode_steps == 50
    with pytest.raises(UserError, match="4 and 2 dimensions, but D4RL's hopper-medium-v2 has 11 and 3"):
        read_d4rl(path, d4rl_id="hopper-medium-v2")
    with pytest.raises(UserError, match="no dataset 'hopper'"):
        read_d4rl(path, d4rl_id="hopper")


def test_description(tmp_path: Path) -> None:
    arrays = _without(_toy(size=29, action_size=8), "next_observations")
    arrays["rewards"] = (np.arange(20) == 4).astype(np.float32)
    path = _write(tmp_path / "toy.hdf5", arrays)
    with h5py.File(path, "a") as file:
        file["metadata/algorithm"] = "SAC"
    lines = dict(describe_dataset(read_d4rl(path, d4rl_id="antmaze-umaze-v2")))
    assert lines["collected in"] == "D4RL's environment of antmaze-umaze-v2, scored in antmaze-umaze-v2"
    assert lines["collected by"] == "algorithm SAC"
    assert lines["ends"] == "1 terminals, 2 timeouts"
    assert lines["returns"] == "mean 0.3, quartiles 0.0 / 0.0 / 0.5, best 1.0"
    assert lines["normalised returns"] == "mean 33.3, quartiles 0.0 / 0.0 / 50.0, best 100.0"
    lines = dict(describe_dataset(_dataset(tmp_path, _without(arrays, "timeouts"))))
    assert lines["collected in"] == "not said in the file"
    assert lines["ends"] == "1 terminals, 0 timeouts (not in the file: from the limit of 1,000 steps)"
    assert "normalised returns" not in lines


def test_hash_is_of_the_contents(tmp_path: Path) -> None:
    arrays = _toy()
    dataset = _dataset(tmp_path, arrays)
    with h5py.File(tmp_path / "packed.hdf5", "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", compression_opts=9)
    assert read_d4rl(tmp_path / "packed.hdf5").sha256 == dataset.sha256
    changed = replace(dataset, reward=dataset.reward + np.float32(1e-3))
    assert changed.sha256 != dataset.sha256
    assert replace(dataset, next_observation=None).sha256 != dataset.sha256


def test_transitions_with_stored_successors_keep_every_row(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, _toy())
    transitions = dataset.transitions("raydiff")
    assert len(transitions) == 20
    np.testing.assert_array_equal(transitions.next_observation, dataset.observation + 1)
    assert np.flatnonzero(transitions.terminal).tolist() == [4]
    assert len(dataset.transitions("dynamics")) == 20


def test_transitions_without_stored_successors(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, _without(_toy(), "next_observations"))
    kept = [i for i in range(20) if i not in (9, 14, 19)]
    transitions = dataset.transitions("raydiff")
    np.testing.assert_array_equal(transitions.observation, dataset.observation[kept])
    successor = [i if i == 4 else i + 1 for i in kept]
    np.testing.assert_array_equal(transitions.next_observation, dataset.observation[successor])
    assert transitions.terminal.tolist() == [float(i == 4) for i in kept]
    dynamics = dataset.transitions("dynamics")
    np.testing.assert_array_equal(dynamics.observation, dataset.observation[[i for i in kept if i != 4]])
    assert dynamics.terminal.sum() == 0


def test_time_limit_stands_in_for_missing_timeouts(tmp_path: Path) -> None:
    path = _write(tmp_path / "toy.hdf5", _without(_toy(), "timeouts", "next_observations"))
    dataset = read_d4rl(path, max_episode_steps=6)
    assert not dataset.stored_timeouts
    assert np.flatnonzero(dataset.timeout).tolist() == [10, 16]
    assert dataset.episode_slices("raydiff").tolist() == [[0, 5], [5, 11], [11, 17], [17, 20]]


def test_episodes_and_their_returns(tmp_path: Path) -> None:
    dataset = _dataset(tmp_path, _toy())
    assert dataset.episode_slices("raydiff").tolist() == [[0, 5], [5, 10], [10, 15], [15, 20]]
    assert dataset.episode_slices("d4rl_sequence").tolist() == [[0, 5], [5, 10], [10, 15]]
    want = [dataset.reward[a:b].sum() for a, b in ((0, 5), (5, 10), (10, 15))]
    np.testing.assert_allclose(dataset.episode_returns(), want, atol=1e-5)
    flagged = replace(dataset, timeout=np.isin(np.arange(20), [9, 14, 19]))
    assert len(flagged.episode_returns()) == 3  # Cut by the end of the file, though flagged.
    whole = replace(flagged, max_episode_steps=5)
    assert len(whole.episode_returns()) == 4


def _set(name: str, change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Arrays], Arrays]:
    return lambda arrays: {**arrays, name: change(arrays[name].copy())}


def _poke(index: object, value: float) -> Callable[[np.ndarray], np.ndarray]:
    def change(array: np.ndarray) -> np.ndarray:
        array[index] = value
        return array

    return change


BAD_FILES: dict[str, tuple[Callable[[Arrays], Arrays], list[str]]] = {
    "missing array": (lambda a: _without(a, "rewards"), ["'rewards'", "Arrays present: actions, next_observations"]),
    "two missing": (lambda a: _without(a, "actions", "terminals"), ["'actions', 'terminals'"]),
    "nothing": (lambda a: {}, ["Arrays present: none"]),
    "short rewards": (_set("rewards", lambda x: x[:19]), ["'rewards' has 19 rows", "'observations' has 20"]),
    "long timeouts": (_set("timeouts", lambda x: np.append(x, True)), ["'timeouts' has 21 rows"]),
    "flat actions": (_set("actions", lambda x: x[:, 0]), ["'actions' has shape (20,)", "(rows, columns)"]),
    "deep rewards": (_set("rewards", lambda x: np.stack([x, x], 1)), ["'rewards' has shape (20, 2)", "(rows,)"]),
    "scalar": (_set("terminals", lambda x: np.array(True)), ["'terminals' has shape ()"]),
    "images": (_set("observations", lambda x: x[:, None]), ["'observations' has shape (20, 1, 17)"]),
    "no columns": (_set("actions", lambda x: x[:, :0]), ["'actions' has shape (20, 0)"]),
    "NaN": (_set("observations", _poke((7, 2), np.nan)), ["'observations' has 1 values", "first in row 7"]),
    "infinite": (_set("rewards", _poke(slice(3, 6), np.inf)), ["'rewards' has 3 values", "first in row 3"]),
    "NaN successor": (_set("next_observations", _poke(0, np.nan)), ["'next_observations' has 17 values", "row 0"]),
    "NaN flag": (_set("terminals", lambda x: np.full(20, np.nan)), ["'terminals' has 20 values"]),
    "beyond float32": (_set("actions", lambda x: x.astype(float) * 1e300), ["'actions' has 120 values"]),
    "text": (_set("rewards", lambda x: np.array([b"a"] * 20)), ["'rewards'", "not numbers"]),
    "successor of another size": (_set("next_observations", lambda x: x[:, :5]), ["'next_observations' has 5"]),
    "empty": (lambda a: {name: array[:0] for name, array in a.items()}, ["no rows"]),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_bad_contents_are_one_clear_paragraph(kind: str, tmp_path: Path) -> None:
    spoil, words = BAD_FILES[kind]
    path = _write(tmp_path / "bad.hdf5", spoil(_toy()))
    with pytest.raises(UserError) as error:
        read_d4rl(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    for word in words:
        assert word in text


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        read_d4rl(tmp_path / "absent.hdf5")
    with pytest.raises(UserError, match="is a folder"):
        read_d4rl(tmp_path)
    (tmp_path / "text.hdf5").write_text("observations, actions\n")
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        read_d4rl(tmp_path / "text.hdf5")
    whole = _write(tmp_path / "whole.hdf5", _toy(2000)).read_bytes()
    (tmp_path / "cut.hdf5").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UserError, match="cannot be read as HDF5"):
        read_d4rl(tmp_path / "cut.hdf5")


@pytest.mark.parametrize(
    ("environment", "arrays", "attributes", "words"),
    [
        ("Hopper-v4", _toy(), {}, ["observations have 17 dimensions", "Hopper-v4 has 11", "data.environment"]),
        ("HalfCheetah-v4", _toy(action_size=3), {}, ["actions have 3 dimensions", "HalfCheetah-v4 has 6"]),
        ("Walker2d-v4", _toy(), {"environment": "HalfCheetah-v4"}, ["belong to HalfCheetah-v4", "data.environment"]),
        ("HalfCheetah-v4", _toy(), {"environment": "Walker2d-v5"}, ["Walker2d-v5", "data.dataset"]),
        ("HalfCheetah-v4", _set("actions", _poke((2, 1), -1.5))(_toy()), {}, ["5.00%", "1.5", "[-1, 1]"]),
        ("HalfCheetah-v4", _set("actions", _poke((2, 1), 1.001))(_toy()), {}, ["5.00%", "1.001"]),
    ],
)
def test_data_of_another_environment_is_refused(
    environment: str, arrays: Arrays, attributes: dict[str, str], words: list[str], tmp_path: Path
) -> None:
    dataset = _dataset(tmp_path, arrays, **attributes)
    with pytest.raises(UserError) as error:
        dataset.check_environment(environment_spec(environment))
    for word in words:
        assert word in str(error.value)


def test_rounding_of_actions_is_tolerated(tmp_path: Path) -> None:
    arrays = _set("actions", _poke((2, 1), 1.000005))(_toy())
    dataset = _dataset(tmp_path, arrays, environment="HalfCheetah-v4")
    dataset.check_environment(environment_spec("HalfCheetah-v4"))


def test_data_of_another_version_pass(tmp_path: Path) -> None:
    """The run says so (and its summary): the scores are then those of a slightly different simulator."""
    _dataset(tmp_path, _toy(), environment="HalfCheetah-v5").check_environment(environment_spec("HalfCheetah-v4"))

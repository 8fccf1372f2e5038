"""Row by row agreement with the ``d4rl`` package itself, on files of every kind that it reads."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType, SimpleNamespace

import h5py
import numpy as np
import pytest

from raydiff.data.d4rl import Dataset, read_d4rl

LIMIT = 7
EXTRA_DATA = sorted(Path(folder).glob("*.hdf5")) if (folder := os.environ.get("RAYDIFF_EXTRA_DATA")) else []
"""Further files to compare on: those in the folder that RAYDIFF_EXTRA_DATA names."""


@pytest.fixture(scope="module")
def d4rl() -> ModuleType:
    # Its environments need the old simulator binding and are not wanted here.
    os.environ["D4RL_SUPPRESS_IMPORT_ERROR"] = "1"
    import d4rl as package

    return package


def _arrays(
    count: int, terminals: list[int], timeouts: list[int] | None, dtype: type, sizes: tuple[int, int] = (4, 2)
) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    arrays = {
        "observations": rng.normal(size=(count, sizes[0])).astype(dtype),
        "actions": rng.uniform(-1, 1, size=(count, sizes[1])).astype(dtype),
        "rewards": rng.normal(size=count).astype(dtype),
        "terminals": np.isin(np.arange(count), terminals),
    }
    if timeouts is not None:
        arrays["timeouts"] = np.isin(np.arange(count), timeouts)
    return arrays


CASES = {
    "toy": _arrays(10, [3], [6, 9], np.float32),
    "float64": _arrays(40, [3, 20], [10, 39], np.float64),
    "unfinished": _arrays(33, [8, 9, 30], [4, 17], np.float32),
    "terminal and timeout at once": _arrays(30, [5, 12, 29], [5, 20], np.float32),
    "terminal at the end": _arrays(12, [11], [], np.float32),
    "no timeouts": _arrays(60, [3, 9, 30, 31], None, np.float32),
    "no timeouts, terminal on the limit": _arrays(50, [6, 13, 25, 31, 37], None, np.float64),
    "no timeouts, no terminals": _arrays(29, [], None, np.float32),
    "no timeouts, all terminals": _arrays(9, list(range(9)), None, np.float32),
    "one row": _arrays(1, [], [0], np.float32),
    **{
        f"random {seed}": _arrays(
            200 + seed,
            np.flatnonzero(np.random.default_rng(seed).random(200) < 0.1).tolist(),
            [None, np.flatnonzero(np.random.default_rng(seed + 50).random(200) < 0.05).tolist()][seed % 2],
            np.float32,
        )
        for seed in range(6)
    },
}


@pytest.fixture(params=CASES, name="case")
def _case(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[dict[str, np.ndarray], Dataset]:
    arrays = CASES[request.param]
    with h5py.File(tmp_path / "data.hdf5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["infos/qpos"] = np.zeros((3, 3))
        file["metadata/algorithm"] = "SAC"
    return arrays, read_d4rl(tmp_path / "data.hdf5", max_episode_steps=LIMIT)


def _same_transitions(d4rl: ModuleType, arrays: dict[str, np.ndarray], dataset: Dataset, terminate: bool) -> None:
    env = SimpleNamespace(_max_episode_steps=dataset.max_episode_steps)
    want = d4rl.qlearning_dataset(env, dataset=arrays, terminate_on_end=terminate)
    have = dataset.transitions("d4rl_qlearning_terminate_on_end" if terminate else "d4rl_qlearning")
    assert len(have) == len(want["rewards"])
    if len(have):
        np.testing.assert_array_equal(have.observation, want["observations"])
        np.testing.assert_array_equal(have.action, want["actions"])
        np.testing.assert_array_equal(have.reward, want["rewards"])
        np.testing.assert_array_equal(have.next_observation, want["next_observations"])
        np.testing.assert_array_equal(have.terminal, want["terminals"].astype(np.float32))


def _same_episodes(d4rl: ModuleType, arrays: dict[str, np.ndarray], dataset: Dataset) -> None:
    env = SimpleNamespace(_max_episode_steps=dataset.max_episode_steps)
    want = list(d4rl.sequence_dataset(env, dataset=arrays))
    have = dataset.episode_slices("d4rl_sequence")
    assert len(have) == len(want)
    for (start, stop), episode in zip(have, want, strict=True):
        np.testing.assert_array_equal(dataset.observation[start:stop], episode["observations"].astype(np.float32))
        np.testing.assert_array_equal(dataset.action[start:stop], episode["actions"].astype(np.float32))
        np.testing.assert_array_equal(dataset.reward[start:stop], episode["rewards"].astype(np.float32))
        np.testing.assert_array_equal(dataset.terminal[start:stop], episode["terminals"])


@pytest.mark.parametrize("terminate_on_end", [False, True])
def test_qlearning_dataset(
    d4rl: ModuleType, case: tuple[dict[str, np.ndarray], Dataset], terminate_on_end: bool
) -> None:
    _same_transitions(d4rl, *case, terminate_on_end)


def test_sequence_dataset(d4rl: ModuleType, case: tuple[dict[str, np.ndarray], Dataset]) -> None:
    _same_episodes(d4rl, *case)


@pytest.mark.parametrize("timeouts", ["stored", "missing"])
@pytest.mark.parametrize("path", EXTRA_DATA, ids=lambda path: path.name)
def test_further_files(d4rl: ModuleType, path: Path, timeouts: str, tmp_path: Path) -> None:
    with h5py.File(path, "r") as file:
        arrays = {name: file[name][()] for name in ("observations", "actions", "rewards", "terminals")}
        if "timeouts" in file and timeouts == "stored":
            arrays["timeouts"] = file["timeouts"][()]
    if timeouts == "stored":
        dataset = read_d4rl(path)
    else:
        with h5py.File(tmp_path / path.name, "w") as file:
            file.update(arrays)
        dataset = read_d4rl(tmp_path / path.name)
    for terminate_on_end in (False, True):
        _same_transitions(d4rl, arrays, dataset, terminate_on_end)
    _same_episodes(d4rl, arrays, dataset)


def test_file_loads_as_through_an_environment_of_d4rl(
    d4rl: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole way of D4RL: its own folder, its own name of the file, its own reader with its checks."""
    import gym

    class Hopper(d4rl.offline_env.OfflineEnv):  # type: ignore[name-defined,misc]
        observation_space = gym.spaces.Box(-np.inf, np.inf, (11,))
        action_space = gym.spaces.Box(-1, 1, (3,))
        _max_episode_steps = 1000

    arrays = _arrays(3000, [500, 900], [1900, 2900], np.float64, sizes=(11, 3))
    path = tmp_path / "hopper_full_replay-v2.hdf5"
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file[name] = array[:, None] if name in ("rewards", "terminals") else array
        file["infos/qpos"] = np.zeros((3000, 6))
        file["metadata/algorithm"] = "SAC"
    monkeypatch.setattr(d4rl.offline_env, "DATASET_PATH", str(tmp_path))
    env = Hopper(dataset_url=d4rl.infos.DATASET_URLS["hopper-full-replay-v2"])
    want = d4rl.qlearning_dataset(env)
    dataset = read_d4rl(path)
    assert dataset.d4rl_id == "hopper-full-replay-v2"
    have = dataset.transitions("d4rl_qlearning")
    assert len(have) == len(want["rewards"]) == 2997
    np.testing.assert_array_equal(have.observation, want["observations"])
    np.testing.assert_array_equal(have.next_observation, want["next_observations"])
    np.testing.assert_array_equal(have.reward, want["rewards"])


def test_scores(d4rl: ModuleType) -> None:
    from raydiff.data.catalogue import catalogue
    from raydiff.evaluation.scores import normalized_score

    for id in d4rl.infos.REF_MIN_SCORE.keys() & catalogue().keys():
        want = 100 * d4rl.get_normalized_score(id, 123.4)
        assert float(normalized_score(catalogue()[id].reference, 123.4)) == pytest.approx(want, rel=1e-12)

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


@pytest.fixture(scope="module")
def d4rl() -> ModuleType:
    # Its environments need the old simulator binding and are not wanted here.
    os.environ["D4RL_SUPPRESS_IMPORT_ERROR"] = "1"
    import d4rl as package

    return package


def _arrays(count: int, terminals: list[int], timeouts: list[int] | None, dtype: type) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    arrays = {
        "observations": rng.normal(size=(count, 4)).astype(dtype),
        "actions": rng.uniform(-1, 1, size=(count, 2)).astype(dtype),
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


@pytest.mark.parametrize("terminate_on_end", [False, True])
def test_qlearning_dataset(
    d4rl: ModuleType, case: tuple[dict[str, np.ndarray], Dataset], terminate_on_end: bool
) -> None:
    arrays, dataset = case
    env = SimpleNamespace(_max_episode_steps=LIMIT)
    want = d4rl.qlearning_dataset(env, dataset=arrays, terminate_on_end=terminate_on_end)
    have = dataset.transitions("d4rl_qlearning_terminate_on_end" if terminate_on_end else "d4rl_qlearning")
    assert len(have) == len(want["rewards"])
    if len(have):
        np.testing.assert_array_equal(have.observation, want["observations"])
        np.testing.assert_array_equal(have.action, want["actions"])
        np.testing.assert_array_equal(have.reward, want["rewards"])
        np.testing.assert_array_equal(have.next_observation, want["next_observations"])
        np.testing.assert_array_equal(have.terminal, want["terminals"].astype(np.float32))


def test_sequence_dataset(d4rl: ModuleType, case: tuple[dict[str, np.ndarray], Dataset]) -> None:
    arrays, dataset = case
    want = list(d4rl.sequence_dataset(SimpleNamespace(_max_episode_steps=LIMIT), dataset=arrays))
    have = dataset.episode_slices("d4rl_sequence")
    assert len(have) == len(want)
    for (start, stop), episode in zip(have, want, strict=True):
        np.testing.assert_array_equal(dataset.observation[start:stop], episode["observations"].astype(np.float32))
        np.testing.assert_array_equal(dataset.terminal[start:stop], episode["terminals"])


def test_scores(d4rl: ModuleType) -> None:
    from raydiff.evaluation.scores import normalized_score

    for environment in ("hopper", "halfcheetah", "walker2d"):
        want = 100 * d4rl.get_normalized_score(f"{environment}-medium-v2", 1234.5)
        assert float(normalized_score(environment, 1234.5)) == pytest.approx(want, rel=1e-12)

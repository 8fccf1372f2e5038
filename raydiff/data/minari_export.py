"""A dataset in Minari's HDF5 format, which ``minari.load_dataset`` itself reads. Neither Minari nor jax is needed."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gymnasium
import h5py
import numpy as np
from gymnasium.spaces import Box, Dict

from raydiff.data.dataset import Dataset
from raydiff.data.minari import OWN_KEY, check_id, minari_root
from raydiff.data.minari_spaces import encode, from_unit
from raydiff.data.minari_storage import MAIN_FILE
from raydiff.envs.registry import FlatGoal, canonical, make_simulator
from raydiff.errors import UserError

Progress = Callable[[int, int], None]
MINARI_VERSION = "0.5.0"
"""The format's: every Minari 0.5 reads it."""

_FLAT_GOAL = {"name": "FlatGoal", "entry_point": f"{FlatGoal.__module__}:{FlatGoal.__name__}", "kwargs": {}}


def export_minari(
    dataset: Dataset,
    id: str,
    root: str | Path | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Path:
    """Write ``dataset`` as ``id`` below ``root`` (default: Minari's own folder), whole or not at all; its folder.

    Actions get the environment's own units where it is known here, and stay within ±1 otherwise. An episode in
    Minari is a chain, each row's successor the next row's observation: it is cut, with neither flag, where the
    stored successors break the chain. Where none are stored, the last step of an episode that did not terminate has
    no successor and is left out, the step before it carrying its time-out; a terminal's is its own observation, as
    in ``Dataset.transitions``. What Minari has no place for is kept under ``raydiff`` in its metadata.
    ``progress(done, total)`` counts rows. ``UserError`` for an id that is none or taken, for a dataset without a
    single step to keep, and a folder that cannot be written.
    """
    check_id(id)
    root = minari_root() if root is None else Path(os.path.expanduser(root))
    target = root / id
    _check_place(root, id, overwrite)
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    chain = _chain(dataset)
    try:
        (partial / "data").mkdir(parents=True)
        size = _write_rows(partial / "data" / MAIN_FILE, chain, progress)
        about = _metadata(dataset, id, chain) | {"dataset_size": round(size / 1e6, 1)}
        (partial / "data" / "metadata.json").write_text(json.dumps(about, indent=1), encoding="utf-8")
        _put(partial, target)
        _note_namespaces(root, id)
    except OSError as error:
        raise UserError(
            f"{target}: the dataset cannot be written ({error}). Give a folder with write permission and free space, "
            "by the variable MINARI_DATASETS_PATH."
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


# ---------------------------------------------------------------------------------------------------------- episodes


@dataclass(frozen=True)
class _Chain:
    """Rows as Minari keeps them: ``episodes [E,2]`` are slices of the kept rows; ``last [E,S]`` the observation
    behind each. ``dropped`` rows have no successor that is known."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    last: np.ndarray
    episodes: np.ndarray
    dropped: int
    observation_space: Box
    action_space: Box
    env_spec: str


def _chain(dataset: Dataset) -> _Chain:
    ends = dataset.terminal | dataset.timeout
    ends[-1:] = True
    keep, truncated = np.ones(len(dataset), dtype=bool), dataset.timeout
    if dataset.next_observation is not None:
        ends[:-1] |= (dataset.next_observation[:-1] != dataset.observation[1:]).any(axis=1)
        behind = dataset.next_observation
    else:
        keep = ~ends | dataset.terminal
        behind = dataset.observation
        ends, truncated = _shorten(ends, truncated, keep)
    stops = np.flatnonzero(ends[keep]) + 1
    if not len(stops):
        raise UserError(
            f"{dataset.path}: no step has a successor that is known, so there is nothing that Minari could keep."
        )
    rows = np.flatnonzero(keep)
    last = behind[rows[stops - 1]]
    if dataset.next_observation is None:
        cut = ~dataset.terminal[rows[stops - 1]]
        last[cut] = dataset.observation[rows[stops - 1][cut] + 1]
    observation_space, action_space, env_spec = _spaces(dataset)
    return _Chain(
        observation=dataset.observation[keep],
        action=from_unit(dataset.action[keep], action_space),
        reward=dataset.reward[keep],
        terminated=dataset.terminal[keep],
        truncated=truncated[keep],
        last=last,
        episodes=np.stack([np.concatenate([[0], stops[:-1]]), stops], axis=1),
        dropped=int((~keep).sum()),
        observation_space=observation_space,
        action_space=action_space,
        env_spec=env_spec,
    )


def _shorten(ends: np.ndarray, truncated: np.ndarray, keep: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """``ends`` and ``truncated`` with those of rows that are not kept moved to the step before, if it is the same
    episode's."""
    before = np.flatnonzero(~keep) - 1
    before = before[(before >= 0) & ~ends[np.maximum(before, 0)]]
    ends, truncated = ends.copy(), truncated.copy()
    ends[before] = True
    truncated[before] = truncated[before + 1]
    return ends, truncated


def _write_rows(path: Path, chain: _Chain, progress: Progress | None) -> int:
    """Write all episodes and return the size of the file in bytes."""
    total = int(chain.episodes[-1, 1])
    with h5py.File(path, "w") as file:
        for number, (start, stop) in enumerate(chain.episodes.tolist()):
            group = file.create_group(f"episode_{number}")
            group["observations"] = np.concatenate([chain.observation[start:stop], chain.last[number, None]])
            group["actions"] = chain.action[start:stop]
            group["terminations"] = chain.terminated[start:stop]
            group["truncations"] = chain.truncated[start:stop]
            group["rewards"] = reward = chain.reward[start:stop]
            group.attrs["id"] = number
            group.attrs["total_steps"] = stop - start
            for name in ("sum", "mean", "std", "min", "max"):
                group.attrs[f"rewards_{name}"] = float(getattr(reward.astype(np.float64), name)())
            if progress is not None:
                progress(stop, total)
    return path.stat().st_size


# ---------------------------------------------------------------------------------------------------------- metadata


def _metadata(dataset: Dataset, id: str, chain: _Chain) -> dict[str, Any]:
    about: dict[str, Any] = {
        "dataset_id": id,
        "total_episodes": len(chain.episodes),
        "total_steps": len(chain.reward),
        "data_format": "hdf5",
        "observation_space": encode(chain.observation_space),
        "action_space": encode(chain.action_space),
        "minari_version": MINARI_VERSION,
        "description": _description(dataset),
        OWN_KEY: {
            "name": dataset.name,
            "environment": dataset.environment,
            "d4rl_id": dataset.d4rl_id,
            "mujoco_version": dataset.mujoco_version,
            "max_episode_steps": dataset.max_episode_steps,
            "rows_without_successor": chain.dropped,
            "metadata": {key: value for key, value in dataset.metadata.items() if key != "env_spec"},
        },
    }
    if chain.env_spec:
        # D4RL's data are scored in an environment that they were not collected in.
        about["eval_env_spec" if dataset.d4rl_id else "env_spec"] = chain.env_spec
    if "algorithm" in dataset.metadata:
        about["algorithm_name"] = dataset.metadata["algorithm"]
    if dataset.mujoco_version:
        about["requirements"] = [f"mujoco=={dataset.mujoco_version}"]
    return about


def _description(dataset: Dataset) -> str:
    origin = f", collected in {dataset.collected_in}" if dataset.collected_in else ""
    return f"{dataset.name}{origin}; written by raydiff."


def _spaces(dataset: Dataset) -> tuple[Box, Box, str]:
    """Spaces of observations and actions, and the environment's specification in JSON, "" where there is none.

    An environment that cannot be made here, or that the rows do not fit, gives neither: nothing is then said about
    observations, and actions are within ±1.
    """
    unknown = (
        Box(-np.inf, np.inf, (dataset.observation_size,), np.float32),
        Box(-1.0, 1.0, (dataset.action_size,), np.float32),
        "",
    )
    if not dataset.environment:
        return unknown
    try:
        env = make_simulator(dataset.environment)
    except (UserError, gymnasium.error.Error):
        return unknown
    observation, action, native = env.observation_space, env.unwrapped.action_space, env.unwrapped.observation_space
    env.close()
    assert isinstance(observation, Box)
    assert isinstance(action, Box)
    if (observation.shape, action.shape) != ((dataset.observation_size,), (dataset.action_size,)):
        return unknown
    return observation, action, _env_spec(canonical(dataset.environment), isinstance(native, Dict))


def _env_spec(environment: str, goal: bool) -> str:
    """Gymnasium's specification, with the wrapper that flattens a goal environment; "" for ids in D4RL's frame."""
    if environment not in gymnasium.registry:
        return ""
    try:
        spec = json.loads(gymnasium.spec(environment).to_json())
    except TypeError:  # made of objects that JSON has no form for
        return ""
    if goal:
        spec["additional_wrappers"] = [*spec["additional_wrappers"], _FLAT_GOAL]
    return json.dumps(spec)


# ------------------------------------------------------------------------------------------------------------- place


def _check_place(root: Path, id: str, overwrite: bool) -> None:
    target = root / id
    for parent in Path(id).parents[:-1]:
        if parent.name == "data" or (root / parent / "data").exists():
            raise UserError(f"{root / parent} is a dataset to Minari, which finds none below it. Give another id.")
    if not target.exists():
        return
    if not (target / "data").is_dir():
        raise UserError(f"{target} exists and is no dataset. Give another id.")
    if not overwrite:
        raise UserError(f"There is already a Minari dataset {id} in {root}. Give another id, or overwrite it.")


def _put(partial: Path, target: Path) -> None:
    """Let ``partial`` take the place of ``target``; what was there is gone only once it has."""
    previous = target.with_name(f".{target.name}.{os.getpid()}.previous")
    if target.exists():
        os.replace(target, previous)
    try:
        os.replace(partial, target)
    except OSError:
        if previous.exists():
            os.replace(previous, target)
        raise
    shutil.rmtree(previous, ignore_errors=True)


def _note_namespaces(root: Path, id: str) -> None:
    for namespace in Path(id).parents[:-1]:
        path = root / namespace / "namespace_metadata.json"
        if not path.exists():
            path.write_text("{}")

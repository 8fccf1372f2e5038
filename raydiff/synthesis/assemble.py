"""From the parts of a generation to one dataset in D4RL's schema.

A trajectory of ``H`` valid transitions becomes an episode of ``H + 1`` rows, of which the last only closes it: it
holds the last successor, an action and reward of zero, and a time-out. Loaders that take the successor from the next
row and leave out time-out rows (D4RL's ``qlearning_dataset``, ours) then give exactly the generated transitions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from raydiff.synthesis.parts import Parts
from raydiff.types import Trajectories

Progress = Callable[[int, int], None]


def episode_rows(trajectories: Trajectories, most: int | None = None) -> dict[str, np.ndarray]:
    """D4RL's arrays of the trajectories, the first of them that reach ``most`` transitions (all without it).

    ``observations [R, S]``, ``actions [R, A]``, ``rewards [R]``, ``terminals [R]``, ``timeouts [R]``.
    """
    valid = trajectories.valid()
    if most is not None:
        total = np.cumsum(valid.sum(axis=1))
        stop = int(np.searchsorted(total, most)) + 1
        rows, valid = trajectories.rows[:stop], valid[:stop]
        trajectories = Trajectories(rows, trajectories.observation_size, trajectories.action_size)
    lengths = valid.sum(axis=1)
    n, length = trajectories.rows.shape[:2]
    ends = np.zeros((n, length), dtype=bool)
    ends[np.arange(n), lengths] = True
    keep = ends.copy()
    keep[:, :-1] |= valid
    action, reward = trajectories.action.copy(), trajectories.reward.copy()
    action[ends], reward[ends] = 0.0, 0.0
    return {
        "observations": trajectories.observation[keep],
        "actions": action[keep],
        "rewards": reward[keep],
        "terminals": (trajectories.terminal > 0.5)[keep] & ~ends[keep],
        "timeouts": ends[keep],
    }


def assemble(
    path: Path,
    parts: Parts,
    shards: list[int],
    wanted: int,
    observation_size: int,
    attributes: Mapping[str, Any],
    progress: Progress | None = None,
) -> int:
    """Write the first ``wanted`` transitions of the parts (whole trajectories) as HDF5 at ``path``; how many they are.

    Every row carries its shard in ``infos/shard``; ``metadata/provenance`` holds one JSON record per shard.
    """
    written, records = 0, list[str]()
    with h5py.File(path, "w") as file:
        for number, shard in enumerate(shards):
            if written >= wanted:
                break
            rows, about = parts.rows(shard), parts.about(shard)
            size = rows.shape[2] - observation_size - 2
            arrays = episode_rows(Trajectories(rows, observation_size, size), wanted - written)
            arrays["infos/shard"] = np.full(len(arrays["rewards"]), shard, dtype=np.int32)
            written += int((~arrays["timeouts"]).sum())
            for name, array in arrays.items():
                _append(file, name, array)
            records.append(json.dumps({**(about or {}).get("provenance", {}), "shard": shard}))
            if progress is not None:
                progress(number + 1, len(shards))
        file.create_dataset("metadata/provenance", data=records, dtype=h5py.string_dtype())
        file.attrs.update(attributes)
    return written


def _append(file: h5py.File, name: str, array: np.ndarray) -> None:
    if name not in file:
        file.create_dataset(
            name, data=array, maxshape=(None, *array.shape[1:]), chunks=True, compression="gzip", compression_opts=1
        )
        return
    data = file[name]
    data.resize(len(data) + len(array), axis=0)
    data[-len(array) :] = array

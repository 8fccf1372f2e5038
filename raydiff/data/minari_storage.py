"""The rows of a Minari dataset as whole arrays, out of its HDF5, Arrow or Parquet files.

An episode of T steps holds T + 1 observations; Arrow and Parquet pad everything else with one row to the same
length. Minari itself is not needed (nor are its undeclared dependencies).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
from h5py import h5d, h5s

from raydiff.data.d4rl import open_hdf5
from raydiff.errors import UserError

MAIN_FILE = "main_data.hdf5"
_REWARDS, _TERMINATIONS, _TRUNCATIONS, _ACTIONS = "rewards", "terminations", "truncations", "actions"


@dataclass(frozen=True)
class Rows:
    """All episodes behind each other: ``observation [N+E,S]`` (one more per episode than steps), ``action [N,A]``
    and ``reward [N]`` in float32, ``terminated [N]``, ``truncated [N]`` bool; ``lengths [E]`` in steps."""

    observation: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: np.ndarray
    truncated: np.ndarray
    lengths: np.ndarray


def read_rows(folder: Path, data_format: str, episodes: int, observation_keys: tuple[str, ...]) -> Rows:
    """All rows under ``folder`` (a dataset's ``data``). ``observation_keys`` are the parts of an observation, joined
    in this order; none where observations are no dictionary. ``UserError`` for what is missing or cannot be read."""
    keys = tuple(f"observations/{key}" for key in observation_keys) or ("observations",)
    if data_format == "hdf5":
        return _read_hdf5(folder / MAIN_FILE, episodes, keys)
    if data_format in ("arrow", "parquet"):
        return _read_arrow(folder, data_format, episodes, keys)
    raise UserError(f"{folder}: the data are in the format {data_format!r}; raydiff reads hdf5, arrow and parquet.")


# ----------------------------------------------------------------------------------------------------------- HDF5


def _read_hdf5(path: Path, episodes: int, keys: tuple[str, ...]) -> Rows:
    with open_hdf5(path) as file:
        # The low-level interface: with thousands of short episodes, h5py's objects cost more than the reading.
        lengths = np.array([(_open(path, file, i, _REWARDS).shape or (0,))[0] for i in range(episodes)], dtype=np.int64)
        parts = [_stack(path, file, key, lengths + 1) for key in keys]
        return Rows(
            observation=parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1),
            action=_stack(path, file, _ACTIONS, lengths),
            reward=_stack(path, file, _REWARDS, lengths)[:, 0],
            terminated=_stack(path, file, _TERMINATIONS, lengths)[:, 0] != 0,
            truncated=_stack(path, file, _TRUNCATIONS, lengths)[:, 0] != 0,
            lengths=lengths,
        )


def _open(path: Path, file: h5py.File, episode: int, key: str) -> Any:
    try:
        found = h5d.open(file.id, f"episode_{episode}/{key}".encode())
    except (KeyError, TypeError):
        raise UserError(
            f"{path}: episode {episode} has no array '{key}'. The dataset is incomplete; download or export it again."
        ) from None
    return found


def _stack(path: Path, file: h5py.File, key: str, counts: np.ndarray) -> np.ndarray:
    """One array of every episode, ``[sum(counts), width]``: float32, and flags as they are stored."""
    first = _open(path, file, 0, key)
    stored = first.dtype
    if stored.kind not in "fiub" or first.shape is None:
        raise UserError(f"{path}: '{key}' of episode 0 holds values of type {stored}, not numbers.")
    rest = tuple(first.shape[1:])
    flag = key in (_TERMINATIONS, _TRUNCATIONS)
    stacked = np.empty((int(counts.sum()), *rest), dtype=stored if flag else np.float32)
    position = 0
    for episode, count in enumerate(counts.tolist()):
        source = _open(path, file, episode, key)
        if source.shape != (count, *rest):
            raise UserError(_wrong_shape(path, episode, key, source.shape, (count, *rest)))
        if count:
            try:
                source.read(h5s.ALL, h5s.ALL, stacked[position : position + count])
            except TypeError as error:
                raise UserError(f"{path}: '{key}' of episode {episode} does not hold numbers ({error}).") from error
        position += count
    return stacked.reshape(len(stacked), math.prod(rest))


def _wrong_shape(path: Path, episode: int, key: str, have: object, want: object) -> str:
    return (
        f"{path}: '{key}' of episode {episode} has the shape {have}, but {want} was expected: one row per reward, and "
        "one more of observations. The dataset is damaged; download or export it again."
    )


# ----------------------------------------------------------------------------------------------- Arrow and Parquet


def _read_arrow(folder: Path, data_format: str, episodes: int, keys: tuple[str, ...]) -> Rows:
    # Every file holds one episode, under its number.
    tables = [_table(folder / str(episode), data_format) for episode in range(episodes)]
    padded = np.array([table.num_rows for table in tables], dtype=np.int64)
    whole = pa.concat_tables(tables)
    parts = [_column(folder, whole, key) for key in keys]
    steps = np.ones(int(padded.sum()), dtype=bool)
    steps[np.cumsum(padded) - 1] = False
    return Rows(
        observation=parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1),
        action=_column(folder, whole, _ACTIONS)[steps],
        reward=_column(folder, whole, _REWARDS)[steps, 0],
        terminated=_column(folder, whole, _TERMINATIONS)[steps, 0] != 0,
        truncated=_column(folder, whole, _TRUNCATIONS)[steps, 0] != 0,
        lengths=padded - 1,
    )


def _table(folder: Path, data_format: str) -> pa.Table:
    try:
        source = pads.dataset(folder, format=data_format, ignore_prefixes=["_", ".", "metadata.json"])
        table = source.to_table(columns=["observations", _ACTIONS, _REWARDS, _TERMINATIONS, _TRUNCATIONS])
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{folder}: the episode cannot be read ({error}). It is missing or damaged; download the dataset again."
        ) from error
    if not table.num_rows:
        raise UserError(f"{folder}: the episode is empty. Download the dataset again.")
    return table


def _column(folder: Path, table: pa.Table, key: str) -> np.ndarray:
    """A column, or a part of one (``observations/desired_goal``), as ``[rows, width]``."""
    name, _, part = key.partition("/")
    arrays = []
    for chunk in table[name].chunks:
        chunk = chunk.field(part) if part else chunk
        flat = chunk.flatten() if pa.types.is_fixed_size_list(chunk.type) else chunk
        if not (pa.types.is_floating(flat.type) or pa.types.is_integer(flat.type) or pa.types.is_boolean(flat.type)):
            raise UserError(f"{folder}: '{key}' holds values of type {chunk.type}, not numbers.")
        width = chunk.type.list_size if pa.types.is_fixed_size_list(chunk.type) else 1
        arrays.append(flat.to_numpy(zero_copy_only=False).astype(np.float32).reshape(-1, width))
    return np.concatenate(arrays)

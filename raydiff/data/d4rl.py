"""Reader of D4RL's HDF5 schema: flat arrays ``observations``, ``actions``, ``rewards``, ``terminals`` and, where
present, ``timeouts`` and ``next_observations``. Other keys (``infos/*``, ``metadata/*``) are not read.

A file that cannot be trusted is refused with one paragraph that says which array is wrong and how.
"""

from __future__ import annotations

import os
from pathlib import Path

import h5py
import numpy as np

from raydiff.data.dataset import Dataset
from raydiff.data.episodes import limit_ends
from raydiff.errors import UserError

__all__ = ["Dataset", "read_d4rl"]

_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")
_MATRICES = ("observations", "actions", "next_observations")
_FLAGS = ("terminals", "timeouts")


def read_d4rl(path: str | Path, max_episode_steps: int = 1000) -> Dataset:
    """Read a D4RL-schema file whole into memory, as float32 and bool.

    Files of float64 and rewards or flags of shape ``(N, 1)`` are accepted. Without ``timeouts`` the ends of
    episodes follow from ``max_episode_steps``. Every fault of the file is a ``UserError``.
    """
    path = Path(os.path.expanduser(path))
    arrays, attributes = _read_arrays(path)
    count = len(arrays["observations"])
    if count == 0:
        raise UserError(f"{path}: the file holds no rows. Collect or download the dataset again.")
    for name, array in arrays.items():
        if len(array) != count:
            raise UserError(
                f"{path}: '{name}' has {len(array)} rows, but 'observations' has {count}. All arrays must have one "
                f"row per step; the file is cut short or mixed from two datasets."
            )
    following = arrays.get("next_observations")
    if following is not None and following.shape[1] != arrays["observations"].shape[1]:
        raise UserError(
            f"{path}: 'next_observations' has {following.shape[1]} columns, but 'observations' has "
            f"{arrays['observations'].shape[1]}. Remove 'next_observations' or write it in the same layout."
        )
    terminal = arrays["terminals"]
    timeout = arrays.get("timeouts")
    return Dataset(
        observation=arrays["observations"],
        action=arrays["actions"],
        reward=arrays["rewards"],
        terminal=terminal,
        timeout=limit_ends(terminal, max_episode_steps) if timeout is None else timeout,
        next_observation=following,
        name=path.stem,
        path=str(path),
        max_episode_steps=max_episode_steps,
        stored_timeouts=timeout is not None,
        environment=attributes.get("environment", ""),
        version=attributes.get("version", ""),
        mujoco_version=attributes.get("mujoco_version", ""),
    )


def _read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "does not exist"
        raise UserError(f"{path}: the dataset file {what}. Give data.file=PATH of a D4RL-schema HDF5 file.")
    try:
        with h5py.File(path, "r") as file:
            present = sorted(name for name in file if isinstance(file.get(name), h5py.Dataset))
            missing = [name for name in _REQUIRED if name not in present]
            if missing:
                raise UserError(
                    f"{path}: no array {', '.join(repr(name) for name in missing)} at the top level of the file. "
                    f"Arrays present: {', '.join(present) or 'none'}. D4RL's schema needs {', '.join(_REQUIRED)}."
                )
            names = [*_REQUIRED, *(name for name in _OPTIONAL if name in present)]
            arrays = {name: _convert(path, name, file[name]) for name in names}
            return arrays, {key: str(value) for key, value in file.attrs.items()}
    except OSError as error:
        raise UserError(
            f"{path}: the file cannot be read as HDF5 ({error}). Where its permissions are not at fault, it is "
            f"damaged, cut short or of another format; collect or download it again."
        ) from error


def _convert(path: Path, name: str, source: h5py.Dataset) -> np.ndarray:
    """One array in the shape and type of ``Dataset``, or the reason why it cannot be."""
    if source.dtype.kind not in "fiub":
        raise UserError(f"{path}: '{name}' holds values of type {source.dtype}, not numbers.")
    shape: tuple[int, ...] = source.shape or ()  # None for an array without any space
    want = 2 if name in _MATRICES else 1
    if want == 1 and len(shape) == 2 and shape[1] == 1:
        shape = shape[:1]
    if len(shape) != want or 0 in shape[1:]:
        layout = "(rows, columns)" if want == 2 else "(rows,)"
        raise UserError(f"{path}: '{name}' has shape {source.shape}, but must be {layout}, one row per step.")
    with np.errstate(over="ignore"):  # What does not fit into float32 becomes infinite, and is refused as that.
        values = np.ascontiguousarray(source[()].reshape(shape), dtype=np.float32)
    bad = ~np.isfinite(values)
    if bad.any():
        row = int(np.argwhere(bad)[0, 0])
        raise UserError(
            f"{path}: '{name}' has {int(bad.sum())} values that are NaN, infinite or too large for float32, the "
            f"first in row {row}. Remove those rows, or the episodes that they are in, from the file."
        )
    return values != 0 if name in _FLAGS else values

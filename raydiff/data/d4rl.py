"""Reader of D4RL's HDF5 schema: flat arrays ``observations``, ``actions``, ``rewards``, ``terminals`` and, where
present, ``timeouts`` and ``next_observations``. Of ``metadata`` the single values are kept; other keys (``infos``,
the weights of policies) are not read.

A file that cannot be trusted is refused with one paragraph that says which array is wrong and how.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np

from raydiff.data.catalogue import CatalogueEntry, entry, entry_of_file
from raydiff.data.dataset import Dataset
from raydiff.data.episodes import limit_ends
from raydiff.envs.registry import ALIASES
from raydiff.errors import UserError

__all__ = ["Dataset", "file_environment", "open_hdf5", "read_d4rl"]

_REQUIRED = ("observations", "actions", "rewards", "terminals")
_OPTIONAL = ("timeouts", "next_observations")
_MATRICES = ("observations", "actions", "next_observations")
_FLAGS = ("terminals", "timeouts")
DEFAULT_EPISODE_STEPS = 1000


def read_d4rl(path: str | Path, max_episode_steps: int | None = None, d4rl_id: str = "") -> Dataset:
    """Read a D4RL-schema file whole into memory, as float32 and bool.

    Files of float64 and rewards or flags of shape ``(N, 1)`` are accepted. Without ``timeouts`` the ends of
    episodes follow from ``max_episode_steps``: by default the limit of ``d4rl_id``, else 1000. A file of one of
    D4RL's names and of that dataset's sizes is taken for it, unless it says itself what it was collected in. Every
    fault of the file is a ``UserError``, and so is a file of other sizes than the ``d4rl_id`` that it is said to be.
    """
    path = Path(os.path.expanduser(path))
    arrays, about = _read_arrays(path)
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
    environment = _said_environment(about)
    sizes = (arrays["observations"].shape[1], arrays["actions"].shape[1])
    known = _known_dataset(path, sizes, environment, d4rl_id)
    limit = max_episode_steps or (known.max_episode_steps if known else DEFAULT_EPISODE_STEPS)
    terminal = arrays["terminals"]
    timeout = arrays.get("timeouts")
    return Dataset(
        observation=arrays["observations"],
        action=arrays["actions"],
        reward=arrays["rewards"],
        terminal=terminal,
        timeout=limit_ends(terminal, limit) if timeout is None else timeout,
        next_observation=following,
        name=path.stem,
        path=str(path),
        max_episode_steps=limit,
        stored_timeouts=timeout is not None,
        environment=environment or (known.environment if known else ""),
        mujoco_version=about.get("mujoco_version") or about.get("mujoco", ""),
        d4rl_id=known.id if known else "",
        metadata=about,
    )


def file_environment(path: str | Path) -> str:
    """The environment that a file says it was collected in, or that its D4RL dataset is scored in; else empty."""
    path = Path(os.path.expanduser(path))
    with open_hdf5(path) as file:
        environment = _said_environment(_about(file))
        sizes = tuple(
            item.shape[1] if isinstance(item := file.get(name), h5py.Dataset) and len(item.shape or ()) == 2 else 0
            for name in ("observations", "actions")
        )
    known = _known_dataset(path, (sizes[0], sizes[1]), environment, "")
    return environment or (known.environment if known else "")


def _said_environment(about: dict[str, str]) -> str:
    said = about.get("environment") or about.get("env_id", "")
    return ALIASES.get(said, said)


def _known_dataset(path: Path, sizes: tuple[int, int], environment: str, d4rl_id: str) -> CatalogueEntry | None:
    """D4RL's dataset that the file is, by what it is said to be or by its name; ``sizes`` are those of its
    observations and actions."""
    known = entry(d4rl_id) if d4rl_id else None if environment else entry_of_file(path.name)
    if known is None or sizes == (known.observation_size, known.action_size):
        return known
    if not d4rl_id:
        return None
    raise UserError(
        f"{path}: observations and actions have {sizes[0]} and {sizes[1]} dimensions, but D4RL's {known.id} has "
        f"{known.observation_size} and {known.action_size}. This is another file; remove it, so that the dataset is "
        f"downloaded again, or give it by its own path."
    )


@contextmanager
def open_hdf5(path: Path) -> Iterator[h5py.File]:
    """The file for reading; what is wrong with it, also while it is read, is a ``UserError``."""
    if not os.path.isfile(path):
        what = "is a folder" if os.path.isdir(path) else "does not exist"
        raise UserError(f"{path}: the dataset file {what}. Give data.dataset=PATH of a D4RL-schema HDF5 file.")
    try:
        with h5py.File(path, "r") as file:
            yield file
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{path}: the file cannot be read as HDF5 ({error}). Where its permissions are not at fault, it is "
            f"damaged, cut short or of another format; collect or download it again."
        ) from error


def _read_arrays(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """The arrays in the types of ``Dataset``, and the single values that the file holds about itself."""
    with open_hdf5(path) as file:
        present = sorted(name for name in file if isinstance(file.get(name), h5py.Dataset))
        missing = [name for name in _REQUIRED if name not in present]
        if missing:
            raise UserError(
                f"{path}: no array {', '.join(repr(name) for name in missing)} at the top level of the file. "
                f"Arrays present: {', '.join(present) or 'none'}. D4RL's schema needs {', '.join(_REQUIRED)}."
            )
        names = [*_REQUIRED, *(name for name in _OPTIONAL if name in present)]
        return {name: _convert(path, name, file[name]) for name in names}, _about(file)


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


def _about(file: h5py.File) -> dict[str, str]:
    """The attributes of the file, and the single values of D4RL's ``metadata`` group, such as ``algorithm``."""
    found: dict[str, str] = {}

    def visit(name: str, item: h5py.Group | h5py.Dataset) -> None:
        if isinstance(item, h5py.Dataset) and item.shape == ():
            found[name] = _text(item[()])

    if isinstance(file.get("metadata"), h5py.Group):
        file["metadata"].visititems(visit)
    return found | {key: _text(value) for key, value in file.attrs.items()}


def _text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)

"""A dataset made in the real simulator, in D4RL's schema, so that nothing has to be downloaded."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

import gymnasium
import h5py
import mujoco
import numpy as np

from raydiff.data.acting import Arrays, sample_rows, uniform_actor
from raydiff.envs.registry import canonical, environment_spec, make_simulator
from raydiff.errors import UserError
from raydiff.files import whole_file

Progress = Callable[[int, int], None]
Value = str | int | float | np.ndarray
LEVELS = ("random", "waypoint", "waypoint-noisy")
"""What needs no training: uniform actions, and D4RL's controller for its maze2d environments."""
_LIBRARIES = ("raydiff", "gymnasium", "mujoco", "numpy", "torch", "stable-baselines3")


def collect(
    environment: str,
    level: str,
    transitions: int,
    seed: int,
    path: str | Path,
    progress: Progress | None = None,
) -> Path:
    """Act at ``level`` for ``transitions`` steps and write the file ``path``, whole or not at all.

    ``random``: actions uniform within ±1. ``waypoint``, ``waypoint-noisy``: D4RL's controller, for maze2d only. The
    same arguments and the same MuJoCo give the same arrays. An episode that the end of the collection cuts is
    flagged as timed out, so that it joins nothing. ``progress(done, total)`` is called now and then. ``UserError``
    for a level that the environment does not have, and when the file cannot be written.
    """
    environment = canonical(environment)
    check_request(environment, level, transitions)
    path = Path(os.path.expanduser(path))
    with whole_dataset(path) as part:
        if level == "random":
            act = uniform_actor(environment_spec(environment).action_size, seed)
            arrays = sample_rows(environment, act, transitions, seed, progress=progress)
            about = {"algorithm": "uniform", "made": "actions drawn uniformly within ±1"}
        else:
            from raydiff.data.waypoint import collect_waypoint

            arrays = collect_waypoint(environment, transitions, seed, level == "waypoint-noisy", progress)
            about = {"algorithm": "waypoint controller", "made": "D4RL's generation of maze2d data"}
        write_dataset(part, arrays, attributes_of(environment, level, seed), about)
    return path


def check_request(environment: str, level: str, transitions: int) -> None:
    """Raise ``UserError`` unless ``environment`` (an id) can be acted in at the built-in ``level``."""
    if level not in LEVELS:
        raise UserError(f"no behaviour {level!r} to collect with; known: {', '.join(LEVELS)}.")
    if level != "random" and not environment.startswith("maze2d-"):
        raise UserError(
            f"the level {level} is a controller for mazes and needs a maze2d environment, not {environment}."
        )
    if transitions < 1:
        raise UserError(f"cannot collect {transitions} transitions; ask for at least one.")


def attributes_of(environment: str, level: str, seed: int) -> dict[str, Value]:
    """What every collected file says of itself: the environment's id, the level and what it was made with.

    Actions in the file are within ±1; the environment's own bounds, which they were rescaled to, are
    ``native_action_low`` and ``native_action_high``.
    """
    env = make_simulator(environment)
    native = env.unwrapped.action_space
    env.close()
    assert isinstance(native, gymnasium.spaces.Box)
    return {
        "environment": environment,
        "level": level,
        "seed": seed,
        "native_action_low": native.low,
        "native_action_high": native.high,
        "mujoco_version": str(mujoco.__version__),
        "gymnasium_version": gymnasium.__version__,
        "raydiff_version": _version("raydiff") or "not installed",  # run from a source tree
    }


def versions() -> dict[str, str]:
    """Installed versions of the libraries that decide the contents of a file."""
    return {name: version for name in _LIBRARIES if (version := _version(name))}


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return ""


@contextmanager
def whole_dataset(path: Path) -> Iterator[Path]:
    """As ``whole_file``, with the complaint of a collection."""
    try:
        with whole_file(path) as part:
            yield part
    except OSError as error:
        raise UserError(
            f"{path}: the collected dataset cannot be written ({error}). Give a file in a folder with write "
            f"permission and free space, by --out, data.cache or the variable RAYDIFF_CACHE."
        ) from error


def write_dataset(path: Path, arrays: Arrays, attributes: Mapping[str, Value], about: Mapping[str, Value]) -> None:
    """Write D4RL's schema: ``arrays`` by their names, ``about`` and the libraries' versions under ``metadata``."""
    with h5py.File(path, "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, compression="gzip", compression_opts=1)
        for name, value in {**about, **{f"versions/{key}": text for key, text in versions().items()}}.items():
            file[f"metadata/{name}"] = value
        file.attrs.update(attributes)

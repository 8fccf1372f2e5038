"""From the configuration to a dataset: D4RL's, Minari's, a file, or one collected once and kept in the cache."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path

from raydiff.config import Config, DataConfig
from raydiff.data.catalogue import entry
from raydiff.data.collect import collect
from raydiff.data.d4rl import file_environment, read_d4rl
from raydiff.data.dataset import Dataset
from raydiff.data.download import fetch
from raydiff.envs.registry import DEFAULT, EnvironmentSpec, canonical, environment_of, environment_spec, step_limit
from raydiff.errors import UserError
from raydiff.files import probe_folder

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, and how much there is in all."""


def cache_folder(config: DataConfig) -> Path:
    """Where datasets and models are kept: ``data.cache``, else ``RAYDIFF_CACHE``, else ``~/.cache/raydiff``."""
    return Path(os.path.expanduser(config.cache or os.environ.get("RAYDIFF_CACHE") or "~/.cache/raydiff"))


def check_cache(config: DataConfig) -> None:
    """Raise ``UserError`` unless models can be kept in the cache, before the time to train them is spent."""
    folder = cache_folder(config)
    try:
        probe_folder(folder)
    except OSError as error:
        raise UserError(
            f"{folder}: the cache of datasets and models cannot be written ({error.strerror or error}). Give a folder "
            "with write permission and free space, by data.cache or the variable RAYDIFF_CACHE."
        ) from None


def resolve(config: Config) -> Config:
    """The configuration with the environment's id filled in: the one that is asked for, else the dataset's own.

    Raises ``UserError`` for a dataset that does not exist or does not say where it comes from.
    """
    data = config.data
    name = data.environment or (_own_environment(data.dataset) if data.dataset else DEFAULT)
    return config.model_copy(update={"data": data.model_copy(update={"environment": canonical(name)})})


def load_dataset(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """The dataset of the run, checked against its environment.

    Without ``data.dataset`` it is collected in the simulator, or read from the cache where the same collection was
    made before; a D4RL id is downloaded where it is not there yet. ``progress(what, done, total)`` counts collected
    transitions or downloaded bytes. ``UserError`` for a dataset that cannot be used and for a cache that cannot be
    written.
    """
    environment = environment_of(config)
    spec = environment_spec(environment)
    if config.dataset:
        dataset = open_dataset(config.dataset, spec.max_episode_steps, progress)
    else:
        path = _collected_path(config, spec)
        if not path.is_file():
            note = partial(progress, "collecting: transitions") if progress is not None else None
            collect(environment, config.level, config.transitions, config.seed, path, note)
        dataset = read_d4rl(path, spec.max_episode_steps)
    dataset.check_environment(spec)
    return dataset


def open_dataset(name: str, max_episode_steps: int | None = None, progress: Progress | None = None) -> Dataset:
    """A dataset by D4RL id, ``minari:ID`` or path. Raises ``UserError`` where there is none, or nothing to reach it.

    Without ``max_episode_steps`` the limit is that of the environment that the dataset names, else 1000.
    """
    if name.startswith("minari:"):
        from raydiff.data.minari import load_minari

        return load_minari(name.removeprefix("minari:"))
    _refuse_parquet(name)
    path = dataset_file(name, progress)
    if _is_file(name):
        return read_d4rl(path, max_episode_steps or _limit_of_file(path))
    return read_d4rl(path, d4rl_id=name)


def dataset_file(name: str, progress: Progress | None = None) -> Path:
    """The file of a D4RL id (downloaded where it is not there yet), or the path itself. Minari's have none."""
    if name.startswith("minari:"):
        raise UserError(
            f"{name} is a folder of Minari's. It can be converted to minari:ID only, or trained on as it is."
        )
    if _is_file(name):
        return Path(os.path.expanduser(name))
    entry(name)  # an unknown id is refused with the nearest ones
    return fetch(name, partial(progress, f"downloading {name}: bytes") if progress is not None else None)


def _is_file(name: str) -> bool:
    return os.path.exists(os.path.expanduser(name)) or os.sep in name or name.endswith((".hdf5", ".h5", ".parquet"))


def _own_environment(name: str) -> str:
    """The environment that a dataset says it comes from."""
    if name.startswith("minari:"):
        from raydiff.data.minari import minari_environment

        found = minari_environment(name.removeprefix("minari:"))
    elif _is_file(name):
        _refuse_parquet(name)
        found = file_environment(name)
    else:
        found = entry(name).environment
    if not found:
        raise UserError(
            f"{name} does not say which environment it was collected in. Give data.environment, a Gymnasium id such as "
            "Hopper-v4 or a D4RL name such as maze2d-umaze."
        )
    return found


def _refuse_parquet(name: str) -> None:
    if name.endswith(".parquet"):
        raise UserError(f"{name} is Parquet. Make an HDF5 file of it first: raydiff data convert {name} FILE.hdf5.")


def _limit_of_file(path: Path) -> int | None:
    """The time limit of the environment that a file names; None where it names none, or one not known here."""
    with suppress(UserError):
        return step_limit(file_environment(path))
    return None


def _collected_path(config: DataConfig, spec: EnvironmentSpec) -> Path:
    """Everything that decides the contents is in the name, the simulator's version included."""
    name = f"{spec.id}-{config.level}-{config.transitions}-seed{config.seed}-mujoco{spec.mujoco_version}.hdf5"
    return cache_folder(config) / "datasets" / name

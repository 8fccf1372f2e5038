"""From the configuration to a dataset: a file that is given, or one collected once and kept in the cache."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from raydiff.config import DataConfig
from raydiff.data.collect import Progress, collect
from raydiff.data.d4rl import read_d4rl
from raydiff.data.dataset import Dataset
from raydiff.errors import UserError
from raydiff.evaluation.envs import EnvironmentSpec, environment_spec


def cache_folder(config: DataConfig) -> Path:
    """Where datasets and models are kept: ``data.cache``, else ``RAYDIFF_CACHE``, else ``~/.cache/raydiff``."""
    return Path(os.path.expanduser(config.cache or os.environ.get("RAYDIFF_CACHE") or "~/.cache/raydiff"))


def check_cache(config: DataConfig) -> None:
    """Raise ``UserError`` unless models can be kept in the cache, before the time to train them is spent."""
    folder = cache_folder(config)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(
            f"{folder}: the cache of datasets and models cannot be written ({error.strerror or error}). Give a folder "
            "with write permission and free space, by data.cache or the variable RAYDIFF_CACHE."
        ) from None


def load_dataset(config: DataConfig, progress: Progress | None = None) -> Dataset:
    """The dataset of the run, checked against its environment.

    Without ``data.file`` it is collected in the simulator, or read from the cache where the same collection was
    made before. ``progress(done, total)`` counts collected transitions. ``UserError`` for a file that cannot be
    used and for a cache that cannot be written.
    """
    spec = environment_spec(config.environment, config.version)
    if config.file:
        path = Path(config.file)
    else:
        path = _collected_path(config, spec)
        if not path.is_file():
            collect(config.environment, config.version, config.level, config.transitions, config.seed, path, progress)
    dataset = read_d4rl(path, spec.max_episode_steps)
    dataset.check_environment(spec)
    return dataset


def _collected_path(config: DataConfig, spec: EnvironmentSpec) -> Path:
    """Everything that decides the contents is in the name, the simulator's version included."""
    name = (
        f"{config.environment}-{config.version}-{config.level}-{config.transitions}"
        f"-seed{config.seed}-mujoco{spec.mujoco_version}.hdf5"
    )
    return cache_folder(config) / "datasets" / name

"""A few trajectories of a run, real or synthetic, kept beside its records for pictures and for a closer look."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from raydiff.files import whole_file
from raydiff.types import Trajectories

MOST = 256


def write_samples(path: Path, data: Trajectories) -> Path:
    """Write up to ``MOST`` trajectories, evenly chosen, as ``observation [n,L,S]``, ``action [n,L,A]``,
    ``reward [n,L]`` and ``terminal [n,L]`` (float32) into a compressed ``.npz``, atomically."""
    chosen = np.unique(np.linspace(0, len(data) - 1, min(MOST, len(data))).round().astype(np.int64))
    names = ("observation", "action", "reward", "terminal")
    with whole_file(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **{name: getattr(data, name)[chosen] for name in names})
    return path


def read_samples(path: Path) -> dict[str, np.ndarray]:
    """What ``write_samples`` wrote, by name."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}

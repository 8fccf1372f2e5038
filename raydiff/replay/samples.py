"""A few trajectories of a run, real or synthetic, kept beside its records for pictures and for a closer look."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from raydiff.types import Trajectories

MOST = 256


def write_samples(path: Path, data: Trajectories) -> Path:
    """Write up to ``MOST`` trajectories, evenly chosen, as ``observation [n,L,S]``, ``action [n,L,A]``,
    ``reward [n,L]`` and ``terminal [n,L]`` (float32) into a compressed ``.npz``, atomically."""
    chosen = np.unique(np.linspace(0, len(data) - 1, min(MOST, len(data))).round().astype(np.int64))
    names = ("observation", "action", "reward", "terminal")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    with part.open("wb") as file:
        np.savez_compressed(file, **{name: getattr(data, name)[chosen] for name in names})
    os.replace(part, path)
    return path


def read_samples(path: Path) -> dict[str, np.ndarray]:
    """What ``write_samples`` wrote, by name."""
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}

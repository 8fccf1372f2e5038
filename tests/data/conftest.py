"""What the tests of Minari's format share."""

from __future__ import annotations

from pathlib import Path

import pytest

from raydiff.data.collect import collect
from raydiff.data.d4rl import read_d4rl
from raydiff.data.dataset import Dataset


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Minari's folder of datasets, empty."""
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    return tmp_path / "datasets"


@pytest.fixture(scope="session")
def pendulum(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Two episodes to the limit and one that is cut; actions of ±2 in the environment's units."""
    path = collect("Pendulum-v1", "random", 450, 3, tmp_path_factory.mktemp("collected") / "own.hdf5")
    return read_d4rl(path, 200)

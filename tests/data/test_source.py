from __future__ import annotations

from pathlib import Path

import pytest

from raydiff.config import DataConfig
from raydiff.data.collect import collect
from raydiff.data.source import cache_folder, load_dataset
from raydiff.errors import UserError
from raydiff.evaluation.envs import environment_spec


def test_cache_folder_by_configuration_then_variable_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYDIFF_CACHE", raising=False)
    assert cache_folder(DataConfig()) == Path.home() / ".cache" / "raydiff"
    monkeypatch.setenv("RAYDIFF_CACHE", "~/elsewhere")
    assert cache_folder(DataConfig()) == Path.home() / "elsewhere"
    assert cache_folder(DataConfig(cache="here")) == Path("here")


def test_collects_once_and_then_reads(tmp_path: Path) -> None:
    config = DataConfig(environment="hopper", transitions=1200, seed=7, cache=str(tmp_path))
    calls: list[tuple[int, int]] = []
    first = load_dataset(config, lambda *call: calls.append(call))
    assert calls[-1] == (1200, 1200)
    assert len(first) == 1200
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    mujoco = environment_spec("hopper", "v4").mujoco_version
    assert [path.name for path in files] == [f"hopper-v4-random-1200-seed7-mujoco{mujoco}.hdf5"]
    written = files[0].stat().st_mtime_ns
    calls.clear()
    again = load_dataset(config, lambda *call: calls.append(call))
    assert calls == []
    assert again.sha256 == first.sha256
    assert files[0].stat().st_mtime_ns == written
    assert load_dataset(config.model_copy(update={"seed": 8})).sha256 != first.sha256


def test_given_file_is_read_and_checked(tmp_path: Path) -> None:
    path = collect("walker2d", "v4", "random", 200, 0, tmp_path / "own.hdf5")
    dataset = load_dataset(DataConfig(environment="walker2d", file=str(path)))
    assert (dataset.name, len(dataset)) == ("own", 200)
    with pytest.raises(UserError, match="environment walker2d"):  # The same sizes: only the attribute tells.
        load_dataset(DataConfig(environment="halfcheetah", file=str(path)))
    with pytest.raises(UserError, match="version v4"):
        load_dataset(DataConfig(environment="walker2d", version="v5", file=str(path)))
    with pytest.raises(UserError, match="does not exist"):
        load_dataset(DataConfig(file=str(tmp_path / "absent.hdf5")))


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="RAYDIFF_CACHE"):
        load_dataset(DataConfig(transitions=100, cache=str(tmp_path / "occupied")))

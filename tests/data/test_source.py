from __future__ import annotations

from pathlib import Path

import h5py
import pytest

from raydiff.config import Config, DataConfig
from raydiff.data.collect import collect
from raydiff.data.source import cache_folder, load_dataset, open_dataset, resolve
from raydiff.envs.registry import environment_spec
from raydiff.errors import UserError


def test_cache_folder_by_configuration_then_variable_then_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAYDIFF_CACHE", raising=False)
    assert cache_folder(DataConfig()) == Path.home() / ".cache" / "raydiff"
    monkeypatch.setenv("RAYDIFF_CACHE", "~/elsewhere")
    assert cache_folder(DataConfig()) == Path.home() / "elsewhere"
    assert cache_folder(DataConfig(cache="here")) == Path("here")


def test_collects_once_and_then_reads(tmp_path: Path) -> None:
    config = DataConfig(environment="hopper", transitions=1200, seed=7, cache=str(tmp_path))
    calls: list[tuple[str, int, int]] = []
    first = load_dataset(config, lambda *call: calls.append(call))
    assert calls[-1] == ("collecting: transitions", 1200, 1200)
    assert len(first) == 1200
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    mujoco = environment_spec("hopper").mujoco_version
    assert [path.name for path in files] == [f"Hopper-v4-random-1200-seed7-mujoco{mujoco}.hdf5"]
    written = files[0].stat().st_mtime_ns
    calls.clear()
    again = load_dataset(config, lambda *call: calls.append(call))
    assert calls == []
    assert again.sha256 == first.sha256
    assert files[0].stat().st_mtime_ns == written
    assert load_dataset(config.model_copy(update={"seed": 8})).sha256 != first.sha256


def test_given_file_is_read_and_checked(tmp_path: Path) -> None:
    path = collect("Walker2d-v4", "random", 200, 0, tmp_path / "own.hdf5")
    dataset = load_dataset(DataConfig(environment="walker2d", dataset=str(path)))
    assert (dataset.name, len(dataset)) == ("own", 200)
    with pytest.raises(UserError, match="Walker2d-v4"):  # The same sizes: only the attribute tells.
        load_dataset(DataConfig(environment="halfcheetah", dataset=str(path)))
    with pytest.raises(UserError, match="does not exist"):
        load_dataset(DataConfig(dataset=str(tmp_path / "absent.hdf5")))


def test_the_dataset_names_its_environment(tmp_path: Path) -> None:
    path = collect("Pendulum-v1", "random", 400, 0, tmp_path / "own.hdf5")
    resolved = resolve(Config(data=DataConfig(dataset=str(path)))).data
    assert resolved.environment == "Pendulum-v1"
    assert len(load_dataset(resolved)) == 400
    assert len(open_dataset(str(path)).episode_returns()) == 2  # the limit is that of Pendulum: 200 steps
    assert resolve(Config()).data.environment == "HalfCheetah-v4"
    assert resolve(Config(data=DataConfig(dataset="maze2d-umaze-v1"))).data.environment == "maze2d-umaze-v1"
    assert resolve(Config(data=DataConfig(dataset=str(path), environment="hopper"))).data.environment == "Hopper-v4"


def test_a_dataset_of_unknown_origin_needs_its_environment(tmp_path: Path) -> None:
    path = collect("Pendulum-v1", "random", 100, 0, tmp_path / "own.hdf5")
    with h5py.File(path, "a") as file:
        for name in list(file.attrs):
            del file.attrs[name]
    with pytest.raises(UserError, match=r"data\.environment"):
        resolve(Config(data=DataConfig(dataset=str(path))))


def test_a_name_that_nothing_answers_to() -> None:
    with pytest.raises(UserError, match="hopper-medium-v2"):
        open_dataset("hopper-mediun-v2")


def test_cache_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "occupied").write_text("a file where the folder should be")
    with pytest.raises(UserError, match="RAYDIFF_CACHE"):
        load_dataset(DataConfig(transitions=100, cache=str(tmp_path / "occupied")))

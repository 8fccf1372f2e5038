from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.roles.models import Models
from raydiff.roles.pretrainer import prepare_models

Build = Callable[..., Config]


class Log:
    """What was trained, in the order in which it was first reported."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int, float, float | None]] = []

    def __call__(self, *progress: object) -> None:
        self.calls.append(progress)  # type: ignore[arg-type]

    @property
    def trained(self) -> list[str]:
        return list(dict.fromkeys(call[0] for call in self.calls))


def state(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def assert_equal(first: Models, second: Models) -> None:
    for one, two in ((first.bundle.to_arrays()[0], second.bundle.to_arrays()[0]), (first.reward, second.reward)):
        assert one is not None
        assert two is not None
        assert one.keys() == two.keys()
        for name in one:
            np.testing.assert_array_equal(np.asarray(one[name]), np.asarray(two[name]))


def test_what_is_in_the_cache_is_not_trained_again(role_config: Build, role_dataset: Dataset, tmp_path: Path) -> None:
    config = role_config()
    first = prepare_models(config, role_dataset, tmp_path, log := Log())
    assert log.trained == ["denoiser", "reward model"]
    for what, steps in (("denoiser", config.denoiser.steps), ("reward model", config.reward.steps)):
        _, step, total, loss, holdout = [call for call in log.calls if call[0] == what][-1]
        assert step == total == steps
        assert np.isfinite(loss)
        assert holdout is not None
    before, again = state(tmp_path), Log()
    second = prepare_models(config, role_dataset, tmp_path, again)
    assert again.calls == []
    assert state(tmp_path) == before
    assert_equal(first, second)


def test_another_cache_gives_the_same_models(
    role_config: Build, role_dataset: Dataset, role_models: Models, tmp_path: Path
) -> None:
    assert_equal(role_models, prepare_models(role_config(), role_dataset, tmp_path))


@pytest.mark.parametrize(("changes", "trained"), [
    ({"reward.steps": 41}, ["reward model"]),
    ({"denoiser.steps": 151}, ["denoiser"]),
    ({"denoiser.seed": 1}, ["denoiser", "reward model"]),
    ({"learner.updates": 777, "denoiser.checkpoint_every": 1}, []),
    ({"reward.kind": "denoiser"}, []),
])  # fmt: skip
@pytest.mark.usefixtures("role_models")
def test_only_what_changed_is_trained(
    role_config: Build, role_dataset: Dataset, role_cache: Path, changes: dict[str, object], trained: list[str]
) -> None:
    models = prepare_models(role_config(**changes), role_dataset, role_cache, log := Log())
    assert log.trained == trained
    assert (models.reward is None) == (changes.get("reward.kind") == "denoiser")


def test_other_data_get_other_models(role_config: Build, role_dataset: Dataset, role_models: Models, tmp_path: Path):
    from raydiff.data.source import load_dataset

    config = role_config(**{"data.seed": 1, "data.cache": tmp_path})
    models = prepare_models(config, load_dataset(config.data), tmp_path)
    assert models.bundle.hash != role_models.bundle.hash

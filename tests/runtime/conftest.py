"""A tiny dataset and its models for runtime tests, made once: real MuJoCo data, a real (hardly trained) denoiser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.data.source import cache_folder, load_dataset
from raydiff.presets import load_config
from raydiff.roles.models import Models
from raydiff.roles.pretrainer import prepare_models

DEMO = Path(__file__).resolve().parents[2] / "configs" / "demo.yaml"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def small(cache: Path) -> Callable[..., Config]:
    """``small(**dotted overrides)``: the demo at its smallest, without other arms."""

    def build(**overrides: Any) -> Config:
        values = {"scale": "tiny", "data.cache": cache, "denoiser.steps": 60, "reward.steps": 60, **overrides}
        config = load_config(DEMO, [f"{key}={value}" for key, value in values.items()])
        return config.model_copy(update={"arms": {}})

    return build


@pytest.fixture(scope="session")
def dataset(small: Callable[..., Config]) -> Dataset:
    return load_dataset(small().data)


@pytest.fixture(scope="session")
def models(small: Callable[..., Config], dataset: Dataset) -> Models:
    config = small()
    return prepare_models(config, dataset, cache_folder(config.data))

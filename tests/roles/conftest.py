"""A tiny dataset and its hardly trained models, made once: real MuJoCo data, in which episodes do terminate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from raydiff.agents.registry import build_agent
from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.data.source import load_dataset
from raydiff.presets import load_config
from raydiff.roles.models import Models
from raydiff.roles.pretrainer import prepare_models
from raydiff.types import PolicyBlob

SMALL = {
    "data.environment": "hopper",
    "data.transitions": 600,
    "denoiser.steps": 150,
    "denoiser.batch_size": 32,
    "denoiser.network.width": 32,
    "denoiser.network.depth": 2,
    "reward.steps": 40,
    "reward.hidden": [32],
    "sampler.steps": 4,
    "refiner.steps": 2,
    "generator.batch": 16,
    "learner.hidden": [32, 32],
    "learner.batch_size": 32,
    "learner.updates": 200,
    "learner.chunk": 10,
    "replay.generation": 16,
    "replay.lifetime": 3,
    "replay.warmup": 16,
    "evaluation.episodes": 2,
    "evaluation.final_episodes": 3,
}


@pytest.fixture(scope="session")
def role_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("roles")


@pytest.fixture(scope="session")
def role_config(role_cache: Path) -> Callable[..., Config]:
    """``role_config(**dotted overrides)``."""

    def build(**overrides: Any) -> Config:
        values = {**SMALL, "data.cache": role_cache, **overrides}
        return load_config(None, [f"{key}={value}" for key, value in values.items()])

    return build


@pytest.fixture(scope="session")
def role_dataset(role_config: Callable[..., Config]) -> Dataset:
    return load_dataset(role_config().data)


@pytest.fixture(scope="session")
def role_models(role_config: Callable[..., Config], role_dataset: Dataset, role_cache: Path) -> Models:
    return prepare_models(role_config(), role_dataset, role_cache)


@pytest.fixture(scope="session")
def make_policy(role_config: Callable[..., Config], role_dataset: Dataset) -> Callable[[int, int], PolicyBlob]:
    """``make_policy(seed, version)``: an untrained policy for the data."""
    data = role_dataset

    def build(seed: int, version: int) -> PolicyBlob:
        mean, std = data.observation.mean(0), data.observation.std(0)
        agent = build_agent(role_config().learner, data.observation_size, data.action_size, mean, std, seed)
        return agent.policy_blob(version)

    return build

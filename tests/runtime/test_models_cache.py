"""Models that were trained on another node: into this node's cache, bit for bit, and never trained twice."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.roles.models import Models
from raydiff.roles.pretrainer import cached_models, keep_models


def test_models_come_back_into_an_empty_cache(
    small: Callable[..., Config], dataset: Dataset, models: Models, cache: Path, tmp_path: Path
) -> None:
    config = small()
    assert cached_models(config, dataset, tmp_path) is None
    keep_models(config, dataset, tmp_path, pickle.loads(pickle.dumps(models)))  # noqa: S301 - as Ray sends them
    written = {path.relative_to(tmp_path): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert len(written) == 3
    assert all((cache / name).read_bytes() == content for name, content in written.items())
    known = cached_models(config, dataset, tmp_path)
    assert known is not None
    assert known.bundle.hash == models.bundle.hash
    assert known.reward is not None
    assert models.reward is not None
    assert all(torch.equal(value, known.reward[name]) for name, value in models.reward.items())


def test_the_device_of_another_node_does_not_matter(
    small: Callable[..., Config], dataset: Dataset, models: Models, cache: Path
) -> None:
    away = small(**{"denoiser.device": "cuda", "denoiser.gpus": 1})
    known = cached_models(away, dataset, cache)
    assert known is not None
    assert known.bundle.to("cpu") is known.bundle


def test_a_cache_without_the_reward_model_is_not_complete(
    small: Callable[..., Config], dataset: Dataset, models: Models, tmp_path: Path
) -> None:
    keep_models(small(), dataset, tmp_path, replace(models, reward=None))
    assert cached_models(small(), dataset, tmp_path) is None
    assert cached_models(small(**{"reward.kind": "denoiser"}), dataset, tmp_path) is not None
    keep_models(small(), dataset, tmp_path, models)
    [reward] = (tmp_path / "rewards").iterdir()
    reward.write_bytes(b"damaged")
    assert cached_models(small(), dataset, tmp_path) is None

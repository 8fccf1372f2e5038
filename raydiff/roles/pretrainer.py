"""The pretrainer: denoiser and reward model from the dataset, or from the content-addressed cache."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.data.windows import make_windows
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.pretrain import denoiser_key, load_or_pretrain
from raydiff.dynamics.reward import LEAST_TRANSITIONS, train_reward_model
from raydiff.errors import UserError
from raydiff.roles.models import Models

Progress = Callable[[str, int, int, float, float | None], None]


def check_models(config: Config, dataset: Dataset) -> None:
    """Raise ``UserError`` where the data are too few or their episodes too short for the models."""
    section = config.denoiser
    make_windows(dataset, section.length, section.stride, section.holdout, section.seed)
    count = len(dataset.transitions("dynamics"))
    if config.reward.kind == "model" and count < LEAST_TRANSITIONS:
        raise UserError(
            f"{dataset.path} has {count} transitions with a known successor; the reward model needs at least "
            f"{LEAST_TRANSITIONS}. Use more data, or reward.kind=denoiser to keep the rewards that are generated."
        )


def prepare_models(config: Config, dataset: Dataset, cache: Path, progress: Progress | None = None) -> Models:
    """Train what the cache lacks. ``progress(what, step, steps, loss, holdout_loss)``; safe to interrupt and rerun."""
    section = config.denoiser
    windows = make_windows(dataset, section.length, section.stride, section.holdout, section.seed)
    bundle = load_or_pretrain(
        windows,
        section,
        dataset_hash=dataset.sha256,
        cache=cache,
        progress=_named(progress, "denoiser"),
    )
    reward = _reward_state(config, dataset, cache, progress) if config.reward.kind == "model" else None
    return Models(bundle.to("cpu"), reward)  # generators may be on machines without the pretrainer's device


def cached_models(config: Config, dataset: Dataset, cache: Path) -> Models | None:
    """The models from the cache, on the CPU; None where it lacks one."""
    folder, reward = _denoiser_folder(config, dataset, cache), None
    if not DenoiserBundle.exists(folder):
        return None
    if config.reward.kind == "model" and (reward := _read_reward(_reward_path(config, dataset, cache))) is None:
        return None
    return Models(DenoiserBundle.load(folder), reward)


def keep_models(config: Config, dataset: Dataset, cache: Path, models: Models) -> None:
    """Write models that were trained on another machine into this one's cache, where it lacks them."""
    folder = _denoiser_folder(config, dataset, cache)
    if not DenoiserBundle.exists(folder):
        models.bundle.save(folder)
    path = _reward_path(config, dataset, cache)
    if models.reward is not None and _read_reward(path) is None:
        _write_reward(path, models.reward)


def _denoiser_folder(config: Config, dataset: Dataset, cache: Path) -> Path:
    return cache / "denoisers" / denoiser_key(dataset.sha256, config.denoiser)


def _reward_path(config: Config, dataset: Dataset, cache: Path) -> Path:
    content = {
        "format": 1,
        "dataset": dataset.sha256,
        "seed": config.denoiser.seed,
        **config.reward.model_dump(mode="json"),
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    return cache / "rewards" / f"{key}.safetensors"


def _read_reward(path: Path) -> dict[str, torch.Tensor] | None:
    """The state of the reward model; None where the file is missing or damaged: it is made anew."""
    with contextlib.suppress(SafetensorError, FileNotFoundError):
        return load_file(path)
    return None


def _write_reward(path: Path, state: dict[str, torch.Tensor]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({name: value.contiguous() for name, value in state.items()}, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)


def _reward_state(config: Config, dataset: Dataset, cache: Path, progress: Progress | None) -> dict[str, torch.Tensor]:
    """The reward model from ``cache/rewards/<key>.safetensors``, trained there when absent."""
    path = _reward_path(config, dataset, cache)
    if (known := _read_reward(path)) is not None:
        return known
    if progress is not None:
        progress("reward model", 0, config.reward.steps, float("nan"), None)
    model, metrics = train_reward_model(dataset.transitions("dynamics"), config.reward, config.denoiser.seed)
    if progress is not None:
        progress("reward model", config.reward.steps, config.reward.steps, metrics["train_mse"], metrics["holdout_mse"])
    state = model.state()
    _write_reward(path, state)
    return state


def _named(progress: Progress | None, what: str) -> Callable[[int, int, float, float | None], None] | None:
    if progress is None:
        return None
    return lambda step, steps, loss, holdout: progress(what, step, steps, loss, holdout)

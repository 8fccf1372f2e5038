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
from raydiff.diffusion.pretrain import load_or_pretrain
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


def _reward_state(config: Config, dataset: Dataset, cache: Path, progress: Progress | None) -> dict[str, torch.Tensor]:
    """The reward model from ``cache/rewards/<key>.safetensors``, trained there when absent."""
    content = {
        "format": 1,
        "dataset": dataset.sha256,
        "seed": config.denoiser.seed,
        **config.reward.model_dump(mode="json"),
    }
    key = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:24]
    path = cache / "rewards" / f"{key}.safetensors"
    if path.is_file():
        with contextlib.suppress(SafetensorError):  # a damaged file is made anew
            return load_file(path)
    if progress is not None:
        progress("reward model", 0, config.reward.steps, float("nan"), None)
    model, metrics = train_reward_model(dataset.transitions("dynamics"), config.reward, config.denoiser.seed)
    if progress is not None:
        progress("reward model", config.reward.steps, config.reward.steps, metrics["train_mse"], metrics["holdout_mse"])
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {name: value.contiguous() for name, value in model.state().items()}
    save_file(state, path.with_suffix(".part"))
    os.replace(path.with_suffix(".part"), path)
    return state


def _named(progress: Progress | None, what: str) -> Callable[[int, int, float, float | None], None] | None:
    if progress is None:
        return None
    return lambda step, steps, loss, holdout: progress(what, step, steps, loss, holdout)

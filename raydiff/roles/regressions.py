"""The models that are plain regressions (rewards, dynamics): each one safetensors file in the cache, named by everything
that changes its weights."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.dynamics.ensemble import train_ensemble
from raydiff.dynamics.reward import train_reward_model
from raydiff.files import whole_file

Progress = Callable[[str, int, int, float, float | None], None]
"""``progress(what, step, steps, loss, held-out loss or None)``."""

State = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Regression:
    """A model to be trained or found: ``field`` of ``Models``, ``name`` for messages, where it lies, how to make it."""

    field: str
    name: str
    path: Path
    make: Callable[[Progress | None], State]

    @property
    def key(self) -> str:
        return self.path.stem

    def read(self) -> State | None:
        """Its state; None where the file is missing or damaged: it is made anew."""
        with contextlib.suppress(SafetensorError, FileNotFoundError):
            return load_file(self.path)
        return None

    def train(self, progress: Progress | None) -> None:
        self.write(self.make(progress))

    def write(self, state: State) -> None:
        with whole_file(self.path) as part:
            save_file({name: value.contiguous() for name, value in state.items()}, part)


def regressions(config: Config, dataset: Dataset, cache: Path) -> list[Regression]:
    """Those that the generator's method needs."""
    wanted = []
    if config.reward.kind == "model":
        content = {"seed": config.denoiser.seed, **config.reward.model_dump(mode="json")}
        path = _path(cache / "rewards", dataset, content)
        wanted.append(Regression("reward", "reward model", path, lambda note: _reward(config, dataset, note)))
    if config.generator.method in ("dydiff", "pets"):
        path = _path(cache / "dynamics", dataset, config.dynamics.model_dump(mode="json"))
        wanted.append(Regression("ensemble", "dynamics model", path, lambda note: _ensemble(config, dataset, note)))
    return wanted


def _path(folder: Path, dataset: Dataset, content: dict[str, Any]) -> Path:
    text = json.dumps({"format": 1, "dataset": dataset.sha256, **content}, sort_keys=True)
    return folder / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.safetensors"


def _reward(config: Config, dataset: Dataset, progress: Progress | None) -> State:
    section = config.reward
    if progress is not None:
        progress("reward model", 0, section.steps, float("nan"), None)
    model, metrics = train_reward_model(dataset.transitions("dynamics"), section, config.denoiser.seed)
    if progress is not None:
        progress("reward model", section.steps, section.steps, metrics["train_mse"], metrics["holdout_mse"])
    return model.state()


def _ensemble(config: Config, dataset: Dataset, progress: Progress | None) -> State:
    note = None
    if progress is not None:
        note = lambda step, steps, loss, holdout: progress("dynamics model", step, steps, loss, holdout)  # noqa: E731
    return train_ensemble(dataset.transitions("dynamics"), config.dynamics, note, config.denoiser.device)[0].state()

"""The pretrainer: the models of ``generator.method`` from the dataset, or from the content-addressed cache."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from raydiff.config import Config
from raydiff.data.dataset import Dataset
from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.diffusion.bundle import DenoiserBundle
from raydiff.diffusion.networks import count_flops, count_parameters
from raydiff.diffusion.pretrain import denoiser_key, load_or_pretrain
from raydiff.diffusion.samplers import network_calls
from raydiff.diffusion.training_set import build_denoiser, columns_of, inputs_of, layout_of, training_windows
from raydiff.dynamics.reward import LEAST_TRANSITIONS
from raydiff.dynamics.termination import termination_of
from raydiff.envs.registry import environment_of
from raydiff.errors import UserError
from raydiff.roles.models import Models
from raydiff.roles.regressions import Progress, regressions


def check_models(config: Config, dataset: Dataset) -> None:
    """Raise ``UserError`` where the data are too few or their episodes too short for the models, or where settings of
    the models contradict each other."""
    method = config.generator.method
    if method != "pets":
        training_windows(config, dataset)
    count, learnt = len(dataset.transitions("dynamics")), regressions(config, dataset, Path())
    if learnt and count < LEAST_TRANSITIONS:
        raise UserError(
            f"{dataset.path} has {count} transitions with a known successor; the {learnt[0].name} needs at least "
            f"{LEAST_TRANSITIONS}. Use more data"
            + (", or reward.kind=denoiser to keep the rewards that are generated." if method == "pgd" else ".")
        )
    if method in ("dydiff", "pets"):
        termination_of(environment_of(config.data))  # refuses environments whose rule is not known
    if method == "dydiff" and config.reward.kind != "model":
        raise UserError(
            "generator.method=dydiff generates states for given actions and no rewards, so it needs a reward model. "
            "Set reward.kind=model."
        )
    if method == "pets" and config.reward.kind == "model" and config.rollout.penalty > 0:
        raise UserError(
            f"rollout.penalty={config.rollout.penalty:g} lowers the rewards of the dynamics model, which "
            "reward.kind=model would replace. Set reward.kind=denoiser (as generated), or rollout.penalty=0."
        )


def describe_denoiser(config: Config, dataset: Dataset) -> str | None:
    """Size and cost of the denoiser in one line; None for a method without one."""
    if config.generator.method == "pets":
        return None
    section, layout = config.denoiser, layout_of(config)
    sizes = dataset.observation_size, dataset.action_size
    rows, columns = 1 if layout == "transition" else section.length, columns_of(layout, *sizes)
    with torch.device("meta"):  # shapes alone: a network of any size is described at once
        denoiser = build_denoiser(section, layout, rows, *sizes)
    flops = count_flops(denoiser.network, rows, inputs_of(section, layout, columns))
    calls = network_calls(config.sampler.solver, config.sampler.steps)
    return (
        f"denoiser: {section.network.kind}, {count_parameters(denoiser) / 1e6:.3g} million parameters, {rows} x {columns} "
        f"values; {flops / 1e6:.3g} MFLOP per trajectory and network call, {calls} calls with {config.sampler.solver}"
    )


def prepare_models(config: Config, dataset: Dataset, cache: Path, progress: Progress | None = None) -> Models:
    """Train what the cache lacks. ``progress(what, step, steps, loss, holdout_loss)``; safe to interrupt and rerun."""
    if config.generator.method != "pets":
        load_or_pretrain(
            training_windows(config, dataset),
            config.denoiser,
            dataset_hash=dataset.sha256,
            cache=cache,
            progress=_named(progress, "denoiser"),
        )
    for regression in regressions(config, dataset, cache):
        if regression.read() is None:
            regression.train(progress)
    models = cached_models(config, dataset, cache)
    assert models is not None, "a model has vanished from the cache"
    return models


def cached_models(config: Config, dataset: Dataset, cache: Path) -> Models | None:
    """The models from the cache, on the CPU (generators may lack the pretrainer's device); None where it lacks one."""
    folder, bundle = _denoiser_folder(config, dataset, cache), None
    if folder is not None:
        if not DenoiserBundle.exists(folder):
            return None
        bundle = DenoiserBundle.load(folder)
    learnt = {
        regression.field: (regression.key, regression.read()) for regression in regressions(config, dataset, cache)
    }
    if any(state is None for _, state in learnt.values()):
        return None
    return Models(
        name=bundle.hash if bundle is not None else learnt["ensemble"][0],
        normalizer=_row_normalizer(config, dataset, bundle),
        bundle=bundle,
        starts=_starts(config, dataset) if "ensemble" in learnt else None,
        **{field: state for field, (_, state) in learnt.items()},
    )


def keep_models(config: Config, dataset: Dataset, cache: Path, models: Models) -> None:
    """Write models that were trained on another machine into this one's cache, where it lacks them."""
    folder = _denoiser_folder(config, dataset, cache)
    if folder is not None and models.bundle is not None and not DenoiserBundle.exists(folder):
        models.bundle.save(folder)
    for regression in regressions(config, dataset, cache):
        state = getattr(models, regression.field)
        if state is not None and regression.read() is None:
            regression.write(state)


def _denoiser_folder(config: Config, dataset: Dataset, cache: Path) -> Path | None:
    if config.generator.method == "pets":
        return None
    return cache / "denoisers" / denoiser_key(dataset.sha256, config.denoiser, layout_of(config))


def _row_normalizer(config: Config, dataset: Dataset, bundle: DenoiserBundle | None) -> TrajectoryNormalizer:
    """Statistics of trajectory rows: the denoiser's own, where it models such rows."""
    if bundle is not None and config.generator.method == "pgd":
        return bundle.normalizer
    rows = np.concatenate(
        [dataset.observation, dataset.action, dataset.reward[:, None], dataset.terminal[:, None]], axis=1
    )
    return TrajectoryNormalizer.fit(rows, dataset.observation_size, dataset.action_size, "raw")


def _starts(config: Config, dataset: Dataset) -> np.ndarray:
    """Real states that rollouts start from: all, or the first of each episode."""
    if config.generator.method == "pets" and config.rollout.start == "initial":
        return dataset.observation[dataset.episode_slices("raydiff")[:, 0]]
    return dataset.observation


def _named(progress: Progress | None, what: str) -> Callable[[int, int, float, float | None], None] | None:
    if progress is None:
        return None
    return lambda step, steps, loss, holdout: progress(what, step, steps, loss, holdout)

"""Rewards as the learner sees them: ``scale * r + shift`` (section 0.4).

Only the learner's tables hold them so. Files, generators, audits and returns stay in the environment's own units, so
that neither models nor scores depend on what a method does to its rewards.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from raydiff.config import Config, DataConfig
from raydiff.data.dataset import Dataset
from raydiff.errors import UserError
from raydiff.types import Transitions


def resolve_rewards(config: Config, dataset: Dataset) -> Config:
    """The configuration with ``data.reward_normalization`` worked into ``reward_scale`` and ``reward_shift``.

    ``return_range`` divides by the largest less the smallest return of a complete episode (Kostrikov et al. 2021),
    ``standard`` takes off the mean and divides by the standard deviation of all rewards. The arms keep what was asked
    for, since their overrides are meant for that. Raises ``UserError`` where the data have no such range.
    """
    data = config.data
    if data.reward_normalization == "none":
        return config
    centre, width = (_return_range if data.reward_normalization == "return_range" else _moments)(dataset)
    scale = data.reward_scale / width
    shift = data.reward_shift - scale * centre
    changes = {"reward_normalization": "none", "reward_scale": scale, "reward_shift": shift}
    asked = {f"data.{key}": getattr(data, key) for key in changes}
    arms = {name: asked | overrides for name, overrides in config.arms.items()}
    return config.model_copy(update={"data": data.model_copy(update=changes), "arms": arms})


def learner_rewards(transitions: Transitions, data: DataConfig) -> Transitions:
    """The same steps with the rewards that the learner sees. Raises ``ValueError`` before ``resolve_rewards``."""
    if data.reward_normalization != "none":
        raise ValueError("data.reward_normalization is not resolved: the dataset that decides its numbers was not seen")
    if (data.reward_scale, data.reward_shift) == (1.0, 0.0):
        return transitions
    scaled = transitions.reward.astype(np.float64) * data.reward_scale + data.reward_shift
    return replace(transitions, reward=scaled.astype(np.float32))


def _return_range(dataset: Dataset) -> tuple[float, float]:
    returns = dataset.episode_returns()
    width = float(returns.max() - returns.min()) if len(returns) else 0.0
    if width > 0:
        return 0.0, width
    held = f"{len(returns)} complete episodes of equal return" if len(returns) > 1 else f"{len(returns)} complete ones"
    raise UserError(
        "data.reward_normalization=return_range divides by the range of the returns of complete episodes, but "
        f"{dataset.path} holds {held}. Set data.reward_normalization=none, or give other data."
    )


def _moments(dataset: Dataset) -> tuple[float, float]:
    reward = dataset.reward.astype(np.float64)
    if reward.min() < reward.max():
        return float(reward.mean()), float(reward.std())
    raise UserError(
        f"data.reward_normalization=standard divides by the deviation of the rewards, but all of {dataset.path} are "
        f"{reward[0]:g}. Set data.reward_normalization=none, or give other data."
    )

"""The learners by the name that configurations use: a new one is one file here and one line below."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from raydiff.agents.aepo import AEPO
from raydiff.agents.api import Agent
from raydiff.agents.cql import CQL
from raydiff.agents.diffusion_ql import DiffusionQL
from raydiff.agents.iql import IQL
from raydiff.agents.qgpo import QGPO
from raydiff.agents.rebrac import ReBRAC
from raydiff.agents.swg import SWG
from raydiff.agents.td3_bc import TD3BC
from raydiff.config_learner import LearnerConfig

STD_EPSILON = 1e-3
"""Added to the standard deviation of observations (section 0.4)."""

ALGORITHMS: dict[str, Callable[..., Agent]] = {
    "td3_bc": TD3BC,
    "iql": IQL,
    "swg": SWG,
    "diffusion_ql": DiffusionQL,
    "cql": CQL,
    "rebrac": ReBRAC,
    "qgpo": QGPO,
    "aepo": AEPO,
}


def build_agent(
    config: LearnerConfig,
    observation_size: int,
    action_size: int,
    observation_mean: np.ndarray | torch.Tensor,
    observation_std: np.ndarray | torch.Tensor,
    seed: int | Sequence[int],
    publish_critic: bool = False,
) -> Agent:
    """The configured learner, its weights drawn from ``seed``; from several seeds one of ``config_learner.BATCHED`` for
    all of them. ``observation_mean`` and ``observation_std`` ``[S]`` are those of the real data and never change; without
    ``normalize_observations`` they are not used. With ``publish_critic`` its policies bring their critic along.
    Raises ``ValueError`` when the statistics do not have ``observation_size`` entries."""
    mean, std = (torch.as_tensor(values, dtype=torch.float32) for values in (observation_mean, observation_std))
    if mean.shape != (observation_size,) or std.shape != (observation_size,):
        raise ValueError(f"statistics of {observation_size} observations are needed, got {mean.shape}, {std.shape}")
    if config.normalize_observations:
        std = std + STD_EPSILON
    else:
        mean, std = torch.zeros(observation_size), torch.ones(observation_size)
    agent = ALGORITHMS[config.algorithm](config, observation_size, action_size, mean, std, seed)
    agent.publish_critic = publish_critic
    return agent

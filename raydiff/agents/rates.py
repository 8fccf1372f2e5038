"""Learning rates over a run."""

from __future__ import annotations

import math

from raydiff.config_learner import LearnerConfig


def actor_rate(config: LearnerConfig) -> float:
    """The actor's learning rate at the start."""
    return config.learning_rate if config.actor_learning_rate is None else config.actor_learning_rate


def cosine(rate: float, share: float) -> float:
    """``rate`` after the share of the run, on a cosine that ends at zero."""
    return rate * (1 + math.cos(math.pi * min(share, 1.0))) / 2

"""Single transitions for the diffusion model of SynthER (section C)."""

from __future__ import annotations

import numpy as np

from raydiff.data.dataset import Dataset
from raydiff.data.windows import Windows, split
from raydiff.errors import UserError


def transition_windows(dataset: Dataset, holdout: float, seed: int) -> Windows:
    """Every transition whose successor is known, as a window of one row ``observation | action | reward | terminal |
    next observation``; a share ``holdout`` of the episodes is kept for validation.

    Without stored successors terminal rows drop out like time-outs: D4RL pairs them with the first observation of
    the next episode, and a model would learn that jump (section 0.4). ``UserError`` for fewer than two transitions.
    """
    steps = dataset.transitions("dynamics")
    if len(steps) < 2:
        raise UserError(
            f"{dataset.path} has {len(steps)} transitions with a known successor, too few to learn from and to hold "
            f"one out. Give data with 'next_observations', or with longer episodes."
        )
    episodes = dataset.episode_slices("raydiff")
    counts = episodes[:, 1] - episodes[:, 0] - (dataset.next_observation is None)
    starts = np.split(np.arange(len(steps)), np.cumsum(counts)[:-1])
    train, validation = split([start for start in starts if len(start)], 1, holdout, seed)
    size, action_size = dataset.observation_size, dataset.action_size
    return Windows(steps.rows(), 1, size, action_size, train, validation, "transition")

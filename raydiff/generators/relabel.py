"""Give synthetic transitions the rewards of a reward model: those that a denoiser generates are biased."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from raydiff.types import Trajectories

Predict = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
"""``predict(observation [N, S], action [N, A], next_observation [N, S]) -> reward [N]``."""


def relabel_rewards(trajectories: Trajectories, predict: Predict) -> Trajectories:
    """A copy with the predicted reward in every row but the last, which closes the last transition and has none."""
    rows = trajectories.rows.copy()
    n, length, _ = rows.shape

    def flat(array: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(array.reshape(n * (length - 1), -1))

    reward = predict(
        flat(trajectories.observation[:, :-1]), flat(trajectories.action[:, :-1]), flat(trajectories.observation[:, 1:])
    )
    rows[:, :-1, -2] = np.asarray(reward, dtype=np.float32).reshape(n, length - 1)
    return Trajectories(rows, trajectories.observation_size, trajectories.action_size)

"""Whole trajectories replayed in a simulator: how the error grows with the number of steps (section I.3)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from raydiff.evaluation.simulator import Simulator
from raydiff.types import Trajectories

TRIMMED_SHARE = 0.05
_CONSTANT = 1e-12


@dataclass(frozen=True)
class ErrorByStep:
    """Mean, median and mean without the largest 5 % over trajectories, ``[H]`` each: entry ``t`` is the squared error
    after ``t + 1`` steps, averaged over dimensions; ``nan`` where no trajectory is that long."""

    mean: np.ndarray
    median: np.ndarray
    trimmed_mean: np.ndarray

    @staticmethod
    def of(errors: np.ndarray) -> ErrorByStep:
        """From ``errors [n, H]``, in which ``nan`` marks steps that do not exist."""
        columns = [column[~np.isnan(column)] for column in errors.T]
        return ErrorByStep(
            mean=np.array([column.mean() if len(column) else np.nan for column in columns]),
            median=np.array([np.median(column) if len(column) else np.nan for column in columns]),
            trimmed_mean=np.array([trimmed_mean(column) for column in columns]),
        )


@dataclass(frozen=True)
class ReplayResult:
    """Multi-step truth of ``count`` trajectories.

    ``raw`` is in squared environment units, ``normalized`` over the data's variance, both by step. ``counts [H]``: how
    many trajectories were compared after each number of steps. ``not_invertible`` and ``unstable``: shares of the
    trajectories left out because their first state cannot be set or a value of theirs is not finite, and because the
    simulation broke down on the way.
    """

    count: int
    not_invertible: float
    unstable: float
    raw: ErrorByStep
    normalized: ErrorByStep
    counts: np.ndarray


def replay(
    simulator: Simulator, trajectories: Trajectories, variance: np.ndarray, valid: np.ndarray | None = None
) -> ReplayResult:
    """Set the simulator to each first state, replay all actions, compare every later observation.

    ``variance [S]`` is that of the real observations. ``valid [n, H]``: which transitions exist, a first stretch of
    each trajectory; by default those that no terminal precedes. Rows behind are not looked at.
    """
    valid = trajectories.valid() if valid is None else valid
    usable, stable, squared = _squared_errors(simulator, trajectories, valid)
    total = max(1, len(trajectories))
    kept = squared[usable & stable]
    return ReplayResult(
        count=len(kept),
        not_invertible=float((~usable).sum() / total),
        unstable=float((usable & ~stable).sum() / total),
        raw=ErrorByStep.of(kept.mean(axis=2)),
        normalized=ErrorByStep.of((kept / divisor(variance)).mean(axis=2)),
        counts=valid[usable & stable].sum(axis=0),
    )


def resimulated(simulator: Simulator, trajectories: Trajectories, valid: np.ndarray) -> Trajectories:
    """The same first states and actions with the simulator's own observations, rounded to float32: what a replay
    finds in these is the error of the method itself. What cannot be simulated stays as it is."""
    rows, size = trajectories.rows.copy(), trajectories.observation_size
    for i, steps in enumerate(valid.sum(axis=1)):
        if not simulator.set_state(rows[i, 0, :size]):
            continue
        for t in range(steps):
            step = simulator.step(trajectories.action[i, t])
            if step is None:
                break
            rows[i, t + 1, :size] = step.observation
    return Trajectories(rows, size, trajectories.action_size)


def trimmed_mean(errors: np.ndarray) -> float:
    """Mean without the largest 5 %; ``nan`` of nothing."""
    if len(errors) == 0:
        return float("nan")
    return float(np.sort(errors)[: max(1, len(errors) - int(TRIMMED_SHARE * len(errors)))].mean())


def divisor(variance: np.ndarray) -> np.ndarray:
    """The variance as a divisor: what never varies is compared in its own units."""
    scale = np.asarray(variance, dtype=np.float64)
    return np.where(scale > _CONSTANT, scale, 1.0)


def _squared_errors(
    simulator: Simulator, trajectories: Trajectories, valid: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which trajectories could be set ``[n]``, which simulations held ``[n]``, and their squared errors ``[n,H,S]``."""
    observation, action = trajectories.observation, trajectories.action
    n, horizon = valid.shape
    squared = np.full((n, horizon, trajectories.observation_size), np.nan)
    usable, stable = np.zeros(n, dtype=bool), np.ones(n, dtype=bool)
    for i, steps in enumerate(valid.sum(axis=1)):
        if not np.isfinite(observation[i, : steps + 1]).all() or not np.isfinite(action[i, :steps]).all():
            continue
        usable[i] = simulator.set_state(observation[i, 0])
        for t in range(steps if usable[i] else 0):
            step = simulator.step(action[i, t])
            if step is None:
                stable[i] = False
                break
            squared[i, t] = (observation[i, t + 1] - step.observation) ** 2
    return usable, stable, squared

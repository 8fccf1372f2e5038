"""What synthetic data are held against: real data, their simulator, and what the same measures say of real data."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from raydiff.config import AuditConfig
from raydiff.evaluation.audit import legal_share, one_step
from raydiff.evaluation.audit_data import AuditData, take
from raydiff.evaluation.audit_report import Measures
from raydiff.evaluation.coverage import RealRows, nearest_neighbour_coverage
from raydiff.evaluation.replay import ReplayResult, divisor, replay, resimulated
from raydiff.evaluation.simulator import MujocoSimulator
from raydiff.generators.api import action_agreement
from raydiff.guidance.api import ActionDistribution
from raydiff.seeds import key_seed
from raydiff.types import Agreement, Trajectories, Transitions

_MOST_ACTIONS = 8_192


class Yardstick:
    """Measures data of one environment, up to ``horizon`` steps of each trajectory; ``limits`` bounds the work.

    ``floor`` is what the same measures say of ``factor`` times as many real steps: figures of synthetic data mean
    little without it. For coverage and copies it holds one part of the real data against another. Raises ``UserError``
    where the environment is not ``auditable``.
    """

    def __init__(
        self, environment: str, real: Transitions, horizon: int, limits: AuditConfig, seed: int, factor: int = 1
    ) -> None:
        self.environment, self.limits, self.seed = environment, limits, key_seed(seed, "floor")
        self.horizon = min(horizon, limits.horizon)
        self.simulator = MujocoSimulator(environment)
        self.variance = real.observation.var(axis=0, dtype=np.float64)
        points = _points(real)
        self._scale = np.sqrt(divisor(points.var(axis=0, dtype=np.float64)))
        self._rows = RealRows(points, self._scale, self.seed)
        order, most = np.random.default_rng(self.seed).permutation(len(real)), max(limits.coverage, _MOST_ACTIONS)
        half = len(real) // 2
        self._reference, self._apart = take(real, order[:half][:most]), take(real, order[half:][:most])
        more = {"transitions": factor * limits.transitions, "trajectories": factor * limits.trajectories}
        ample = limits.model_copy(update=more)
        self._real = AuditData.of_transitions(real, self.horizon, ample.trajectories, self.seed)
        self.floor = self._measure(self._real, self.seed, ample, real_rows=self._apart)

    def measure(
        self, data: AuditData, seed: int, policy: ActionDistribution | None = None, delta: float = 0.2
    ) -> Measures:
        """Audit ``data``; what is looked at is drawn by ``seed``. ``policy``, on the CPU, is what actions are held
        against, and ``delta`` the standard deviation given to a deterministic one."""
        measured = self._measure(data, seed, self.limits)
        return measured if policy is None else replace(measured, agreement=_agreement(data.transitions, policy, delta))

    def floor_under(self, policy: ActionDistribution, delta: float = 0.2) -> Measures:
        """The floor, and how well the real actions fit a policy."""
        return replace(self.floor, agreement=_agreement(self._apart, policy, delta))

    def numerical_floor(self) -> ReplayResult:
        """The error of the method itself: a replay of what the simulator makes, in float32, of the real states and
        actions that the floor was measured on."""
        own = resimulated(self.simulator, self._real.trajectories, self._real.valid)
        return replay(self.simulator, own, self.variance, self._real.valid)

    def close(self) -> None:
        self.simulator.close()

    def _measure(
        self, data: AuditData, seed: int, limits: AuditConfig, real_rows: Transitions | None = None
    ) -> Measures:
        """``real_rows``: rows to look at instead of those of ``data``, real themselves."""
        draw = np.random.default_rng(seed)
        steps = draw.permutation(len(data.transitions))[: limits.transitions]
        whole = draw.permutation(len(data.trajectories))[: limits.trajectories]
        size, action_size = data.trajectories.observation_size, data.trajectories.action_size
        cut = Trajectories(data.trajectories.rows[whole, : self.horizon + 1], size, action_size)
        valid = data.valid[whole, : self.horizon]
        points = _points(real_rows if real_rows is not None else data.transitions)
        points = points[np.isfinite(points).all(axis=1)]
        points = points[draw.permutation(len(points))[: min(limits.coverage, len(self._reference))]]
        scaled, reference = points / self._scale, _points(self._reference)[: len(points)] / self._scale
        return Measures(
            steps=one_step(self.simulator, take(data.transitions, steps), self.variance, data.known[steps]),
            replay=replay(self.simulator, cut, self.variance, valid) if len(whole) else None,
            agreement=None,
            action_std=_spread(data.transitions.action),
            coverage=nearest_neighbour_coverage(reference, scaled),
            state_coverage=nearest_neighbour_coverage(reference[:, :size], scaled[:, :size]),
            duplicates=self._rows.duplicates(points, own=real_rows is not None),
            legal=legal_share(self.environment, data.trajectories, data.valid),
        )


def _points(transitions: Transitions) -> np.ndarray:
    return np.concatenate([transitions.observation, transitions.action], axis=1)


def _spread(action: np.ndarray) -> np.ndarray:
    return action.std(axis=0, dtype=np.float64) if len(action) else np.full(action.shape[1], np.nan)


def _agreement(transitions: Transitions, policy: ActionDistribution, delta: float) -> Agreement | None:
    """How well evenly chosen actions of the transitions fit a policy (section I.2)."""
    chosen = np.unique(np.linspace(0, len(transitions) - 1, min(_MOST_ACTIONS, len(transitions))).astype(np.int64))
    rows = take(transitions, chosen).rows()
    size, action_size = transitions.observation.shape[1], transitions.action.shape[1]
    pairs = np.zeros((len(rows), 2, size + action_size + 2), dtype=np.float32)
    pairs[:, 0] = rows[:, : pairs.shape[2]]
    return action_agreement(Trajectories(pairs, size, action_size), policy, "cpu", delta)

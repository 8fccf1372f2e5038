"""How true single synthetic steps are: put the simulator into each state, take the action, compare (section I.3)."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from raydiff.envs.maze2d import IDS as MAZE2D_IDS
from raydiff.envs.maze2d import maze_of
from raydiff.envs.registry import canonical
from raydiff.evaluation.replay import ReplayResult, divisor, replay, trimmed_mean
from raydiff.evaluation.simulator import MujocoSimulator, Simulator, auditable
from raydiff.types import Trajectories, Transitions

__all__ = ["AuditResult", "Auditor", "ErrorSummary", "TerminalAgreement", "auditable", "legal_share", "one_step"]


@dataclass(frozen=True)
class ErrorSummary:
    """Mean, median and mean without the largest 5 % of one error per transition; ``nan`` when there is none.

    A generated state may lie inside the ground, and the contact force then dominates a plain mean.
    """

    mean: float
    median: float
    trimmed_mean: float

    @staticmethod
    def of(errors: np.ndarray) -> ErrorSummary:
        if len(errors) == 0:
            return ErrorSummary(float("nan"), float("nan"), float("nan"))
        return ErrorSummary(float(errors.mean()), float(np.median(errors)), trimmed_mean(errors))


@dataclass(frozen=True)
class TerminalAgreement:
    """Transitions that the data call terminal (``claimed``), that the simulator does (``simulated``), and both."""

    claimed: int
    simulated: int
    both: int

    @staticmethod
    def of(claimed: np.ndarray, simulated: np.ndarray) -> TerminalAgreement:
        return TerminalAgreement(int(claimed.sum()), int(simulated.sum()), int((claimed & simulated).sum()))

    @property
    def precision(self) -> float | None:
        """Share of the claimed terminals that are ones; None where none is claimed."""
        return self.both / self.claimed if self.claimed else None

    @property
    def recall(self) -> float | None:
        """Share of the simulator's terminals that are claimed; None where there is none."""
        return self.both / self.simulated if self.simulated else None


@dataclass(frozen=True)
class AuditResult:
    """One-step truth of ``count`` transitions.

    ``dynamics_error``: squared error of the next observation over the data's variance, averaged over dimensions;
    ``raw_error``: the same in squared environment units; ``persistence_error``: that of the prediction that nothing
    changes, over the variance. ``reward_error``: mean absolute. ``not_invertible``: share of the transitions left out
    because their state cannot be set in the simulator, or because a value of theirs is not finite; ``unstable``: share
    left out because the simulation broke down there.
    """

    count: int
    not_invertible: float
    unstable: float
    dynamics_error: ErrorSummary
    raw_error: ErrorSummary
    persistence_error: ErrorSummary
    reward_error: float
    terminal: TerminalAgreement

    @property
    def ratio(self) -> float:
        """Dynamics error over that of persistence, both trimmed means: 0 is the simulator, 1 knows nothing."""
        return self.dynamics_error.trimmed_mean / self.persistence_error.trimmed_mean if self.count else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is undefined is ``None``."""
        return _without_nan({**asdict(self), "ratio": self.ratio})


def one_step(
    simulator: Simulator, transitions: Transitions, variance: np.ndarray, known: np.ndarray | None = None
) -> AuditResult:
    """Replay each transition for one step; ``variance [S]`` is that of the real observations.

    ``known [N]`` says where the successor is one: files of D4RL lack that of a terminal step, whose reward and flag
    are compared nonetheless.
    """
    known = np.ones(len(transitions), dtype=bool) if known is None else known
    finite = np.isfinite(transitions.rows()).all(axis=1)
    usable, stable = np.zeros_like(finite), np.ones_like(finite)
    simulated = np.empty(transitions.observation.shape)
    rewards, ends = np.empty(len(transitions)), np.zeros_like(finite)
    for i in np.flatnonzero(finite):
        usable[i] = simulator.set_state(transitions.observation[i])
        step = simulator.step(transitions.action[i]) if usable[i] else None
        if step is not None:
            simulated[i], rewards[i], ends[i] = step
        stable[i] = step is not None or not usable[i]
    done = usable & stable
    seen, scale, total = done & known, divisor(variance), max(1, len(transitions))
    squared = (transitions.next_observation[seen] - simulated[seen]) ** 2
    unmoved = (transitions.observation[seen] - simulated[seen]) ** 2
    return AuditResult(
        count=int(seen.sum()),
        not_invertible=float((~usable).sum() / total),
        unstable=float((~stable).sum() / total),
        dynamics_error=ErrorSummary.of((squared / scale).mean(axis=1)),
        raw_error=ErrorSummary.of(squared.mean(axis=1)),
        persistence_error=ErrorSummary.of((unmoved / scale).mean(axis=1)),
        reward_error=float(np.abs(transitions.reward[done] - rewards[done]).mean()) if done.any() else float("nan"),
        terminal=TerminalAgreement.of(transitions.terminal[done] > 0.5, ends[done]),
    )


class Auditor:
    """One simulator of MuJoCo's to hold data against. The time limit is ignored.

    ``environment`` is an id or alias. Raises ``UserError`` where it is not ``auditable``.
    """

    def __init__(self, environment: str) -> None:
        self.simulator = MujocoSimulator(environment)

    def audit(self, transitions: Transitions, variance: np.ndarray, known: np.ndarray | None = None) -> AuditResult:
        """See ``one_step``."""
        return one_step(self.simulator, transitions, variance, known)

    def replay_error(
        self, trajectories: Trajectories, variance: np.ndarray, valid: np.ndarray | None = None
    ) -> ReplayResult:
        """See ``replay``."""
        return replay(self.simulator, trajectories, variance, valid)

    def close(self) -> None:
        self.simulator.close()


def legal_share(environment: str, trajectories: Trajectories, valid: np.ndarray | None = None) -> float | None:
    """Share of the trajectories that never touch the inside of a wall or leave the maze; ``None`` where no maze is.

    ``valid [n, H]``: which transitions exist; without it all rows are looked at.
    """
    name = canonical(environment)
    if name not in MAZE2D_IDS or not len(trajectories):
        return None
    legal = maze_of(name).is_legal(trajectories.observation[..., :2])
    if valid is not None:
        legal[:, 1:] |= ~valid
    return float(legal.all(axis=1).mean())


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value

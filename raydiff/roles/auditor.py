"""The auditor: holds blocks of synthetic trajectories against the simulator, the real data and the newest policy."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydiff.agents.policy import Policy
from raydiff.config import Config
from raydiff.envs.registry import environment_of
from raydiff.evaluation.audit_data import AuditData
from raydiff.evaluation.audit_report import Measures
from raydiff.evaluation.yardstick import Yardstick
from raydiff.replay.block import parts_of
from raydiff.seeds import key_seed
from raydiff.types import PolicyBlob, Trajectories, Transitions

_FLOOR_FACTOR = 4  # the floor is measured once, so it may be sharper than each audit
# Lists by step that are not repeated with every audit; the trimmed means are.
_LONG = {f"{raw}error_by_step_{statistic}" for raw in ("", "raw_") for statistic in ("mean", "median")}


@dataclass(frozen=True)
class AuditReport:
    """How true a block is, and beside it the floor: the same of real data."""

    block: int
    refreshed: bool
    policy_version: int | None
    measures: Measures
    floor: Measures
    start: float
    end: float

    @property
    def error(self) -> float | None:
        """One-step error of the dynamics over the data's variance, a trimmed mean; None where nothing was replayed."""
        steps = self.measures.steps
        return steps.dynamics_error.trimmed_mean if steps.count else None

    def as_record(self) -> dict[str, Any]:
        """For ``metrics.jsonl``, without worker and update: plain values, undefined ones None."""
        return {
            "kind": "audit",
            "block": self.block,
            "refreshed": self.refreshed,
            "policy_version": self.policy_version,
            **self.measures.as_record(),
            "floor": {key: value for key, value in self.floor.as_record().items() if key not in _LONG},
            "time": {"start": self.start, "end": self.end},
        }


def joint_error(reports: Sequence[AuditReport]) -> float | None:
    """Mean error over the seeds of a block, which the automatic strength is held against."""
    errors = [report.error for report in reports if report.error is not None]
    return float(np.mean(errors)) if errors else None


class Auditor:
    """Keeps one simulator and the floor, which is measured at construction. Audits change nothing in it.

    Raises ``UserError`` where the environment's observations do not hold the simulator's state.
    """

    def __init__(self, config: Config, real: Transitions) -> None:
        """``real``: the learner's own data, in the order of collection."""
        self.config = config
        self.size = real.observation.shape[1]
        environment = environment_of(config.data)
        self.yardstick = Yardstick(
            environment, real, config.rows - 1, config.audit, key_seed(config.seed, "audit"), _FLOOR_FACTOR
        )

    def audit_all(
        self, rows: np.ndarray, sizes: Sequence[int], block: int, refreshed: bool, policies: Sequence[PolicyBlob]
    ) -> tuple[AuditReport, ...]:
        """``audit`` the part of each seed of a block, against the policy of that seed. The floor is one for all: that
        of the first seed."""
        parts = zip(parts_of(rows, sizes), policies, strict=True)
        return tuple(self.audit(part, block, refreshed, policy, member) for member, (part, policy) in enumerate(parts))

    def audit(
        self, rows: np.ndarray, block: int, refreshed: bool, policy: PolicyBlob | None = None, member: int = 0
    ) -> AuditReport:
        """Audit a block ``rows [n, L, C]``; the steps, trajectories and rows to look at are drawn by its number."""
        start = time.time()
        data = AuditData.of_trajectories(Trajectories(rows, self.size, rows.shape[2] - self.size - 2))
        seed = key_seed(self.config.seed + member, "audit", block)
        floor, version = self.yardstick.floor, None
        if policy is None:
            measures = self.yardstick.measure(data, seed)
        else:
            delta, version, acting = self.config.guidance.delta, policy.version, Policy.from_blob(policy)
            measures = self.yardstick.measure(data, seed, acting, delta)
            floor = self.yardstick.floor_under(acting, delta)
        return AuditReport(block, refreshed, version, measures, floor, start, time.time())

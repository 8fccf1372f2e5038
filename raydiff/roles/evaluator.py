"""The evaluator: scores policies in the simulator, and replays synthetic transitions in it (the audit)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from raydiff.agents.policy import Policy
from raydiff.config import Config
from raydiff.evaluation.audit import Auditor, AuditResult
from raydiff.evaluation.rollout import rollout_returns
from raydiff.evaluation.scores import normalized_score
from raydiff.evaluation.statistics import Interval, bootstrap_interval
from raydiff.seeds import key_seed
from raydiff.types import PolicyBlob, Trajectories, Transitions


@dataclass(frozen=True)
class EvaluationReport:
    """Returns of one policy over fixed seeds; intervals are over episodes of this one run."""

    version: int
    final: bool
    returns: list[float]
    normalized: Interval
    raw: Interval
    start: float
    end: float


@dataclass(frozen=True)
class AuditReport:
    """How true a block is in the simulator."""

    block: int
    refreshed: bool
    result: AuditResult
    start: float
    end: float


def score_returns(returns: np.ndarray, environment: str, seed: int) -> tuple[Interval, Interval]:
    """Normalised (0 to 100) and raw intervals of episode returns ``[n]``."""
    normalized = bootstrap_interval(normalized_score(environment, returns), seed)
    return normalized, bootstrap_interval(returns, seed)


class Evaluator:
    """Keeps one simulator for audits; ``variance [S]`` is that of the real observations."""

    def __init__(self, config: Config, variance: np.ndarray) -> None:
        self.config, self.variance = config, variance
        self.auditor = Auditor(config.data.environment, config.data.version)

    def evaluate(self, policy: PolicyBlob, final: bool) -> EvaluationReport:
        """Play the configured episodes; episode ``i`` always starts from seed ``evaluation.seed + i``."""
        start = time.time()
        section, data = self.config.evaluation, self.config.data
        episodes = section.final_episodes if final else section.episodes
        actor = Policy.from_blob(policy, section.device)
        seeds = range(section.seed, section.seed + episodes)
        played = rollout_returns(lambda observation: actor.act(observation), data.environment, data.version, seeds)
        normalized, raw = score_returns(played.returns, data.environment, self.config.seed)
        returns = [float(value) for value in played.returns]
        return EvaluationReport(policy.version, final, returns, normalized, raw, start, time.time())

    def audit(self, rows: np.ndarray, block: int, refreshed: bool) -> AuditReport:
        """Replay ``evaluation.audit`` transitions of the block, chosen by the block's number."""
        start = time.time()
        size = len(self.variance)
        data = Trajectories(rows, size, rows.shape[2] - size - 2).transitions()
        pick = np.random.default_rng(key_seed(self.config.seed, "audit", block)).permutation(len(data))
        pick = pick[: self.config.evaluation.audit]
        chosen = Transitions(*(getattr(data, name)[pick] for name in data.__dataclass_fields__))
        result = self.auditor.audit(chosen, self.variance)
        return AuditReport(block, refreshed, result, start, time.time())

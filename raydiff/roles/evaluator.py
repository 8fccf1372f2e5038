"""The evaluator: scores policies in the simulator, and replays synthetic transitions in it (the audit)."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from raydiff.agents.policy import Policy
from raydiff.config import Config
from raydiff.envs.registry import environment_of, score_reference
from raydiff.evaluation.audit import Auditor, AuditResult, legal_share
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
    normalized: Interval | None
    raw: Interval
    start: float
    end: float


@dataclass(frozen=True)
class AuditReport:
    """How true a block is in the simulator."""

    block: int
    refreshed: bool
    result: AuditResult
    legal: float | None
    start: float
    end: float


def score_returns(returns: np.ndarray, environment: str, seed: int) -> tuple[Interval | None, Interval]:
    """Normalised (0 to 100, None where no reference scores exist) and raw intervals of episode returns ``[n]``."""
    reference = score_reference(environment)
    normalized = bootstrap_interval(normalized_score(reference, returns), seed) if reference is not None else None
    return normalized, bootstrap_interval(returns, seed)


class Evaluator:
    """Keeps one simulator for audits; ``variance [S]`` is that of the real observations."""

    def __init__(self, config: Config, variance: np.ndarray) -> None:
        self.config, self.variance = config, variance
        self.environment = environment_of(config.data)
        self.auditor = Auditor(self.environment) if config.evaluation.audit else None

    def evaluate(self, policy: PolicyBlob, final: bool) -> EvaluationReport:
        """Play the configured episodes; episode ``i`` always starts from seed ``evaluation.seed + i``."""
        start = time.time()
        section = self.config.evaluation
        episodes = section.final_episodes if final else section.episodes
        actor = Policy.from_blob(policy, section.device)
        seeds = range(section.seed, section.seed + episodes)
        played = rollout_returns(lambda observation: actor.act(observation), self.environment, seeds)
        normalized, raw = score_returns(played.returns, self.environment, self.config.seed)
        returns = [float(value) for value in played.returns]
        return EvaluationReport(policy.version, final, returns, normalized, raw, start, time.time())

    def audit(self, rows: np.ndarray, block: int, refreshed: bool) -> AuditReport:
        """Replay ``evaluation.audit`` transitions of the block, chosen by the block's number; in mazes, also tell the
        share of its trajectories that pass through no wall."""
        assert self.auditor is not None, "no audit was to be made: evaluation.audit is 0"
        start = time.time()
        size = len(self.variance)
        trajectories = Trajectories(rows, size, rows.shape[2] - size - 2)
        data = trajectories.transitions()
        pick = np.random.default_rng(key_seed(self.config.seed, "audit", block)).permutation(len(data))
        pick = pick[: self.config.evaluation.audit]
        chosen = Transitions(*(getattr(data, name)[pick] for name in data.__dataclass_fields__))
        result = self.auditor.audit(chosen, self.variance)
        return AuditReport(block, refreshed, result, legal_share(self.environment, trajectories), start, time.time())

"""The evaluator: scores policies in the simulator."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from raydiff.agents.policy import Policy
from raydiff.config import Config
from raydiff.envs.registry import environment_of, score_reference
from raydiff.evaluation.rollout import rollout_returns
from raydiff.evaluation.scores import normalized_score
from raydiff.evaluation.statistics import Interval, bootstrap_interval
from raydiff.types import PolicyBlob


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


def score_returns(returns: np.ndarray, environment: str, seed: int) -> tuple[Interval | None, Interval]:
    """Normalised (0 to 100, None where no reference scores exist) and raw intervals of episode returns ``[n]``."""
    reference = score_reference(environment)
    normalized = bootstrap_interval(normalized_score(reference, returns), seed) if reference is not None else None
    return normalized, bootstrap_interval(returns, seed)


class Evaluator:
    """Plays the policies of one learner; keeps no state between calls."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.environment = environment_of(config.data)

    def evaluate_all(self, policies: Sequence[PolicyBlob], final: bool) -> tuple[EvaluationReport, ...]:
        """``evaluate`` the policy of each of the seeds that are trained at once, all on the same episodes."""
        return tuple(self.evaluate(policy, final, member) for member, policy in enumerate(policies))

    def evaluate(self, policy: PolicyBlob, final: bool, member: int = 0) -> EvaluationReport:
        """Play the configured episodes; episode ``i`` always starts from seed ``evaluation.seed + i``."""
        start = time.time()
        section = self.config.evaluation
        episodes = section.final_episodes if final else section.episodes
        actor = Policy.from_blob(policy, section.device)
        seeds = range(section.seed, section.seed + episodes)
        played = rollout_returns(lambda observation: actor.act(observation), self.environment, seeds)
        normalized, raw = score_returns(played.returns, self.environment, self.config.seed + member)
        returns = [float(value) for value in played.returns]
        return EvaluationReport(policy.version, final, returns, normalized, raw, start, time.time())

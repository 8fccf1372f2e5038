"""What one audit found, as plain values, and what all audits of a run say together."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydiff.evaluation.audit import AuditResult, ErrorSummary
from raydiff.evaluation.coverage import Coverage, Duplicates
from raydiff.evaluation.replay import ErrorByStep, ReplayResult
from raydiff.metrics import Record, select
from raydiff.types import Agreement

# What an audit's record says about itself; everything else in it was measured.
_ABOUT = frozenset({"kind", "arm", "block", "refreshed", "update", "policy_version", "time", "floor"})
_COUNTS = ("transitions", "terminals_claimed", "terminals_simulated", "terminals_agreed", "trajectories")


@dataclass(frozen=True)
class Measures:
    """One audit. ``replay`` is None where no trajectory was to be replayed; ``agreement`` without a policy;
    ``coverage`` (states with actions), ``state_coverage`` and ``duplicates`` without enough rows; ``legal`` outside
    mazes. ``action_std [A]``: spread of each action, in environment units."""

    steps: AuditResult
    replay: ReplayResult | None
    agreement: Agreement | None
    action_std: np.ndarray
    coverage: Coverage | None
    state_coverage: Coverage | None
    duplicates: Duplicates | None
    legal: float | None

    def as_record(self) -> dict[str, Any]:
        """Plain values for JSON and ``metrics.jsonl``; what is undefined is None. An error by its plain name is the
        trimmed mean, over the data's variance unless it is called raw."""
        steps, terminal, copies = self.steps, self.steps.terminal, self.duplicates
        record = {
            "transitions": steps.count,
            "not_invertible": steps.not_invertible,
            "unstable": steps.unstable,
            **_statistics("dynamics_error", steps.dynamics_error),
            **_statistics("raw_error", steps.raw_error),
            "persistence_error": steps.persistence_error.trimmed_mean,
            "reward_error": steps.reward_error,
            "terminals_claimed": terminal.claimed,
            "terminals_simulated": terminal.simulated,
            "terminals_agreed": terminal.both,
            "terminal_precision": terminal.precision,
            "terminal_recall": terminal.recall,
            **by_step(self.replay),
            "deviation": self.agreement.deviation if self.agreement else None,
            "log_likelihood": self.agreement.log_likelihood if self.agreement else None,
            "own_log_likelihood": self.agreement.own if self.agreement else None,
            "action_std": {str(j): float(value) for j, value in enumerate(self.action_std)},
            "coverage": self.coverage.coverage if self.coverage else None,
            "precision": self.coverage.precision if self.coverage else None,
            "state_coverage": self.state_coverage.coverage if self.state_coverage else None,
            "state_precision": self.state_coverage.precision if self.state_coverage else None,
            "copies": copies.exact if copies else None,
            "near_copies": copies.near if copies else None,
            "repeats": copies.exact_among if copies else None,
            "near_repeats": copies.near_among if copies else None,
            "legal": self.legal,
        }
        return {key: _plain(value) for key, value in record.items()}


def by_step(result: ReplayResult | None) -> dict[str, Any]:
    """Errors after 1 .. H steps as plain values: lists, and some of the steps by their number."""
    if result is None:
        return {"trajectories": 0, "error_by_step": None, "raw_error_by_step": None}
    errors = result.normalized.trimmed_mean
    shown = sorted({t for t in (1, 2, 4, 8, 16, 32, 64) if t <= len(errors)} | {len(errors)})
    record = {
        "trajectories": result.count,
        "trajectories_not_invertible": result.not_invertible,
        "trajectories_unstable": result.unstable,
        **_statistics("error_by_step", result.normalized),
        **_statistics("raw_error_by_step", result.raw),
        "replayed_by_step": result.counts,
        "error_at": {str(t): float(errors[t - 1]) for t in shown},
    }
    return {key: _plain(value) for key, value in record.items()}


def audit_summary(records: Sequence[Record]) -> dict[str, Any]:
    """What the audits of a run say, by arm: of ``new`` and of ``refreshed`` blocks the means of every figure over their
    ``audits`` (None where there were none; counts are summed), and the ``floor``, that of the arm's last audit."""
    found: dict[str, Any] = {}
    audits = select(list(records), "audit")
    for arm in dict.fromkeys(str(record.get("arm")) for record in audits):
        own = [record for record in audits if str(record.get("arm")) == arm]
        found[arm] = {
            "new": _means([record for record in own if not record.get("refreshed")]),
            "refreshed": _means([record for record in own if record.get("refreshed")]),
            "floor": own[-1].get("floor"),
        }
    return found


def _means(records: list[Record]) -> dict[str, Any] | None:
    if not records:
        return None
    keys = [key for key in records[0] if key not in _ABOUT]
    means: dict[str, Any] = {"audits": len(records)}
    means |= {key: _mean([record.get(key) for record in records]) for key in keys if key not in _COUNTS}
    means |= {key: sum(record.get(key) or 0 for record in records) for key in keys if key in _COUNTS}
    # Of all audits together: most of them see hardly any terminal.
    agreed = means.get("terminals_agreed", 0)
    for share, of in (("terminal_precision", "terminals_claimed"), ("terminal_recall", "terminals_simulated")):
        means[share] = agreed / means[of] if means.get(of) else None
    return means


def _mean(values: list[Any]) -> Any:
    """Mean of numbers, or of lists and dictionaries of them, without what is None; None where nothing is left."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    if isinstance(present[0], dict):
        return {key: _mean([value.get(key) for value in present]) for key in present[0]}
    if isinstance(present[0], list):
        longest = max(len(value) for value in present)
        return [_mean([value[t] for value in present if t < len(value)]) for t in range(longest)]
    return float(np.mean(present))


def _statistics(name: str, error: ErrorSummary | ErrorByStep) -> dict[str, Any]:
    return {name: error.trimmed_mean, f"{name}_mean": error.mean, f"{name}_median": error.median}


def _plain(value: Any) -> Any:
    """Only what JSON knows: arrays to lists, undefined numbers to None."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value

"""What a study reads from a finished run: figures of its ``summary.json`` and of its records."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from raydiff.metrics import Record, read_metrics, select
from raydiff.studies.results import Value

Read = Callable[[dict[str, Any], list[Record]], Value]


@dataclass(frozen=True)
class Column:
    """A column: its heading, the digits behind the point, whether more is better (None: neither)."""

    label: str
    digits: int
    better: bool | None


@dataclass(frozen=True)
class Measure(Column):
    """A column that is read from a run."""

    read: Read


def read_run(folder: Path) -> dict[str, Value]:
    """Every measure of a finished run, None where it has none. Raises ``UserError`` for records that are broken."""
    summary = json.loads((folder / "summary.json").read_text())
    main = summary["main"]
    records = [record for record in read_metrics(folder) if record.get("arm") == main]
    return {name: measure.read(summary, records) for name, measure in MEASURES.items()}


def _score(summary: dict[str, Any], _: list[Record]) -> Value:
    """Of the last policy, never of the best one seen: normalised, or the return where there is no reference."""
    score = summary["scores"][summary["main"]]
    return float((score["normalized"] or score["raw"])["mean"])


def _normalised(summary: dict[str, Any], _: list[Record]) -> Value:
    """1 where scores are normalised, 0 where they are returns."""
    return float(summary["scores"][summary["main"]]["normalized"] is not None)


def _behaviour(summary: dict[str, Any], _: list[Record]) -> Value:
    """What the data's own episodes score; None where they have none that is whole."""
    score = summary["scores"].get("behaviour")
    return float((score["normalized"] or score["raw"])["mean"]) if score else None


def _curve(records: list[Record]) -> dict[float, float]:
    """Scores by update, of the last policy those of the final evaluation."""
    scored = sorted(select(records, "evaluate"), key=lambda r: (r["update"], r["final"]))
    return {float(r["update"]): float((r["normalized"] or r["raw"])["mean"]) for r in scored}


def _update_ms(_: dict[str, Any], records: list[Record]) -> Value:
    """Milliseconds the learner spent per update."""
    chunks = select(records, "train")
    spent = sum(r["time"]["end"] - r["time"]["start"] for r in chunks)
    return 1e3 * spent / updates if (updates := sum(r["updates"] for r in chunks)) else None


def _floor(summary: dict[str, Any], _: list[Record]) -> Value:
    return summary.get("audit_floor")


def _error(_: dict[str, Any], records: list[Record]) -> Value:
    """Error of synthetic steps over that of predicting no change, mean over the audits of newly generated blocks."""
    audits = [r for r in select(records, "audit") if not r.get("refreshed") and r.get("dynamics_error") is not None]
    return _mean([r["dynamics_error"] / r["persistence_error"] for r in audits if r.get("persistence_error")])


def _error_by_step(_: dict[str, Any], records: list[Record]) -> Value:
    """Error after 1 .. H steps over the data's variance, mean over the audits that replayed whole trajectories."""
    return _by_step([r.get("error_by_step") for r in select(records, "audit") if not r.get("refreshed")])


def _floor_by_step(_: dict[str, Any], records: list[Record]) -> Value:
    """The same of real data, which the simulator itself leaves."""
    return _by_step([(r.get("floor") or {}).get("error_by_step") for r in select(records, "audit")])


def _by_step(found: Sequence[list[float | None] | None]) -> Value:
    """Step by step up to the first one at which nothing was replayed; None where nothing was at all."""
    means = [_mean([e for e in step if e is not None]) for step in zip(*filter(None, found), strict=False)]
    measured = [mean for mean in takewhile(lambda mean: mean is not None, means) if mean is not None]
    return measured or None


def _of_audits(key: str) -> Read:
    return lambda _, records: _mean([r[key] for r in select(records, "audit") if r.get(key) is not None])


def _of_blocks(key: str) -> Read:
    """Mean over the blocks that were made for a policy that had learnt: all after the warm-up."""

    def read(_: dict[str, Any], records: list[Record]) -> Value:
        return _mean([r[key] for r in select(records, "block") if r.get(key) is not None and r["policy_version"] > 0])

    return read


def _calls(_: dict[str, Any], records: list[Record]) -> Value:
    """Network calls per trajectory generated; those of refreshing are counted too."""
    blocks = select(records, "block")
    made = sum(r["trajectories"] for r in blocks if r.get("parent_block") is None)
    return sum(r["nfe"] * r["trajectories"] for r in blocks) / made if made else None


def _trajectories(summary: dict[str, Any], _: list[Record]) -> Value:
    return float(summary["trajectories_generated"] + summary["trajectories_refined"])


def _seconds(summary: dict[str, Any], _: list[Record]) -> Value:
    return float(summary["seconds"]["main run"])


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


MEASURES: dict[str, Measure] = {
    "score": Measure("final score", 1, True, _score),
    "curve": Measure("score", 1, True, lambda _, records: list(_curve(records).values())),
    "scored_at": Measure("updates", 0, None, lambda _, records: list(_curve(records))),
    "behaviour": Measure("score of the data", 1, None, _behaviour),
    "normalised": Measure("normalised", 0, None, _normalised),
    "error": Measure("audited error", 3, False, _error),
    "floor": Measure("error of real data", 3, None, _floor),
    "error_by_step": Measure("error by step", 4, False, _error_by_step),
    "floor_by_step": Measure("error of real data by step", 4, None, _floor_by_step),
    "deviation": Measure("action deviation", 3, None, _of_blocks("deviation")),
    "log_likelihood": Measure("action log-likelihood", 2, None, _of_blocks("log_likelihood")),
    "own_log_likelihood": Measure("own log-likelihood", 2, None, _of_blocks("own_log_likelihood")),
    "reward_error": Measure("reward error", 3, False, _of_audits("reward_error")),
    "coverage": Measure("coverage", 3, True, _of_audits("coverage")),
    "legal": Measure("legal share", 3, True, _of_audits("legal")),
    "calls": Measure("network calls", 0, False, _calls),
    "trajectories": Measure("trajectories", 0, None, _trajectories),
    "update_ms": Measure("ms per update", 1, False, _update_ms),
    "seconds": Measure("seconds", 0, False, _seconds),
}

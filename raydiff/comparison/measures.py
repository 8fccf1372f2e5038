"""The numbers of a comparison: what one trial did, and what that says of a condition over its seeds.

Intervals are 95 % bootstrap intervals over seeds (section J). Where there is one seed they are those of the trial
itself, over its evaluation episodes or its blocks, and say so in ``unit``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydiff.comparison.conditions import Condition, Task, Trial
from raydiff.evaluation.statistics import Estimate, bootstrap_interval, mean_over_runs
from raydiff.figures import bound, error_ratio, evaluations, is_warmup
from raydiff.metrics import select
from raydiff.timeline import idle_fraction, interval, learner_wait_fraction, overlap_fraction, training_span

SEED = 0  # of every bootstrap, so that a report made again says the same
BINS = 12  # parts of a run over which blocks and chunks are averaged

Points = Sequence[tuple[float, float]]


@dataclass(frozen=True)
class Curve:
    """A quantity over learner updates, with an interval at each; all arrays ``[n]``."""

    updates: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Band:
    """Mean over seeds on the updates that all seeds have reached; ``unit`` is what its interval runs over."""

    curve: Curve
    seeds: dict[int, Curve]
    unit: str


@dataclass(frozen=True)
class Score:
    """One number of a condition on a task: its mean over ``seeds`` (seed -> value), and an interval over ``unit``."""

    mean: float
    low: float | None
    high: float | None
    seeds: dict[int, float]
    unit: str


@dataclass(frozen=True)
class Measure:
    """What is measured of a trial over updates: name, unit of a single trial's interval, and its curve."""

    title: str
    axis: str
    unit: str
    curve: Callable[[Trial], Curve | None]


def score_key(task: Task) -> str:
    """The key of a record's scores on the scale of the task."""
    return "raw" if task.scale == "raw" else "normalized"


def score_curve(trial: Trial) -> Curve | None:
    """Evaluations of one trial, with their intervals over episodes."""
    key = score_key(trial.task)
    points = [(r["update"], r[key]) for r in evaluations(trial.records, trial.arm, key)]
    if not points:
        return None
    columns = [(u, v["mean"], bound(v, "low"), bound(v, "high")) for u, v in points]
    return Curve(*(np.array(column, dtype=float) for column in zip(*columns, strict=True)))


def error_curve(trial: Trial) -> Curve | None:
    """One-step error of audited synthetic transitions, as a share of persistence."""
    audits = select(trial.records, "audit", trial.arm)
    return _binned([(r["update"], ratio) for r in audits if (ratio := error_ratio(r)) is not None], trial)


def deviation_curve(trial: Trial) -> Curve | None:
    """Squared distance of synthetic actions from the policy they were made for, but for the warm-up's."""
    blocks = [r for r in select(trial.records, "block", trial.arm) if not is_warmup(r)]
    return _binned([(r["update"], r["deviation"]) for r in blocks if r.get("deviation") is not None], trial)


def lag_curve(trial: Trial) -> Curve | None:
    """Mean policy lag of the sampled batches, in updates."""
    chunks = select(trial.records, "train", trial.arm)
    return _binned(
        [(r["update"], mean) for r in chunks if (mean := (r.get("lag") or {}).get("mean")) is not None], trial
    )


QUALITY = (
    Measure("Synthetic dynamics: error in the simulator", "error / persistence error", "audited blocks", error_curve),
    Measure("Synthetic actions: distance from the policy", "mean squared deviation", "blocks", deviation_curve),
    Measure("Policy lag of the sampled batches", "updates behind", "learner chunks", lag_curve),
)

RATES: dict[str, tuple[str, float]] = {  # measure -> (axis, factor)
    "updates": ("updates/s", 1.0),
    "trajectories": ("trajectories/s", 1.0),
    "overlap": ("overlap, %", 100.0),
    "waiting": ("learner waits, %", 100.0),
    "idle": ("generators idle, %", 100.0),
}


def rates(trial: Trial) -> dict[str, float | None]:
    """What the trial did per second between the start of its first learner chunk and the end of its last.

    ``trajectories`` are new and refreshed ones that were delivered in that time; None without generators.
    """
    records, arm, own = trial.run.records, trial.arm, trial.records  # time is shared by seeds that are trained at once
    span = training_span(records, arm)
    if span is None or span[1] <= span[0]:
        return dict.fromkeys(RATES)
    seconds = span[1] - span[0]
    blocks = [(r, pair) for r in select(own, "block", arm) if (pair := interval(r)) is not None]
    made = sum(int(r["trajectories"]) for r, pair in blocks if span[0] < pair[1] <= span[1])
    settings = trial.run.arm_settings(arm)
    paced = settings.get("schedule.kind", "continuous") == "continuous"  # the others have no samples per insert
    target = settings.get("replay.samples_per_insert") if paced else None
    return {
        "updates": sum(int(r["updates"]) for r in select(own, "train", arm)) / seconds,
        "trajectories": made / seconds if blocks else None,
        "overlap": overlap_fraction(records, arm, target),
        "waiting": learner_wait_fraction(records, arm),
        "idle": idle_fraction(records, arm, "generator", *span),
    }


def band(condition: Condition, task: Task, measure: Callable[[Trial], Curve | None], unit: str) -> Band | None:
    """The mean of a measure over seeds, linear between the points of each; None where no trial has any."""
    seeds = {trial.seed: curve for trial in condition.of(task) if (curve := measure(trial)) is not None}
    if not seeds:
        return None
    if len(seeds) == 1:
        return Band(next(iter(seeds.values())), seeds, unit)
    first = max(curve.updates[0] for curve in seeds.values())
    last = min(curve.updates[-1] for curve in seeds.values())
    grid = np.unique(np.concatenate([curve.updates for curve in seeds.values()]))
    grid = grid[(grid >= first) & (grid <= last)]
    values = np.array([np.interp(grid, curve.updates, curve.mean) for curve in seeds.values()])  # [seeds, n]
    found = [mean_over_runs([column], SEED) for column in values.T]
    low, high = ([getattr(e, side) for e in found] for side in ("low", "high"))
    return Band(Curve(grid, values.mean(0), np.array(low, dtype=float), np.array(high, dtype=float)), seeds, "seeds")


def final_scores(condition: Condition, task: Task, key: str) -> Score | None:
    """Scores of the last policies (never of the best); None where no trial has a final evaluation."""
    finals = [value for trial in condition.of(task) if (value := final(trial, key)) is not None]
    means = final_means(condition, task, key)
    if not means:
        return None
    if len(means) == 1:
        value = finals[0]
        return Score(float(value["mean"]), bound(value, "low"), bound(value, "high"), means, "episodes")
    return over_seeds(means)


def final_means(condition: Condition, task: Task, key: str) -> dict[int, float]:
    """The mean return or score of the last policy of every seed that has ended."""
    found = ((trial.seed, final(trial, key)) for trial in condition.of(task))
    return {seed: float(value["mean"]) for seed, value in found if value is not None}


def final(trial: Trial, key: str) -> Mapping[str, Any] | None:
    """The final evaluation of one trial: mean, low, high and episodes."""
    found = [r[key] for r in select(trial.records, "evaluate", trial.arm) if r.get("final") and r.get(key)]
    return found[-1] if found and found[-1].get("mean") is not None else None


def over_seeds(values: Mapping[int, float]) -> Score:
    """The mean of one value per seed, with its interval over seeds."""
    found: Estimate = mean_over_runs([list(values.values())], SEED)
    return Score(found.value, found.low, found.high, dict(values), "seeds")


def mean_rates(condition: Condition, task: Task) -> dict[str, Score]:
    """Every rate that the condition has, over its seeds."""
    found = {trial.seed: rates(trial) for trial in condition.of(task)}
    scores: dict[str, Score] = {}
    for name in RATES:
        values = {seed: value for seed, own in found.items() if (value := own[name]) is not None}
        if values:
            scores[name] = over_seeds(values)
    return scores


def _binned(points: Points, trial: Trial) -> Curve | None:
    """Means over parts of the run, with intervals over the points of each part; parts without points are left out."""
    if not points:
        return None
    length = max((float(r["update"]) for r in select(trial.records, "train", trial.arm)), default=0.0)
    length = max(length, *(update for update, _ in points), 1.0)
    parts: dict[int, list[float]] = {}
    for update, value in points:
        parts.setdefault(min(int(update / length * BINS), BINS - 1), []).append(float(value))
    columns = []
    for part in sorted(parts):
        spread = bootstrap_interval(parts[part], SEED)
        columns.append(((part + 0.5) / BINS * length, spread.mean, spread.low, spread.high))
    return Curve(*(np.array(column) for column in zip(*columns, strict=True)))

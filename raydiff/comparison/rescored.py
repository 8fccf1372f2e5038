"""Runs scored again by one protocol: per task, over all tasks, and pair by pair, as plain values (section J)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from raydiff.checkpoint import arm_and_seed, part_name
from raydiff.comparison.cautions import cautions
from raydiff.comparison.conditions import Comparison, Condition, Task, compare
from raydiff.comparison.measures import SEED, final_means, final_scores, score_key
from raydiff.comparison.runs import Run
from raydiff.comparison.scores import behaviour, on_every_task, pairs, tasks_of
from raydiff.evaluation.evaluate_runs import Played
from raydiff.evaluation.statistics import (
    Estimate,
    iqm_over_runs,
    mean_over_runs,
    median_over_runs,
    median_over_tasks,
    welch_chance,
)

RESAMPLES = 50_000  # as section J has it for tables that are quoted


def rescored(run: Run, played: Mapping[str, Played]) -> Run:
    """The run with what was played now in place of its records: one final evaluation for each arm, or each of its seeds.

    Its own settings of evaluation do not act any more, and so set no conditions apart.
    """
    settings = {key: value for key, value in run.settings.items() if not key.startswith("evaluation.")}
    changes = {
        arm: {key: value for key, value in own.items() if not key.startswith("evaluation.")}
        for arm, own in run.changes.items()
    }
    records = [policy.record(*arm_and_seed(name)) for name, policy in played.items()]
    return replace(run, settings=settings, changes=changes, records=records)


def tabulate(runs: Sequence[Run], played: Sequence[Mapping[str, Played]]) -> dict[str, Any]:
    """Everything that follows from the runs ``played`` again, ready for JSON.

    ``policies``: what each did. ``tasks``: scores of the conditions on each. ``aggregates``: over all tasks of one
    scale, of the conditions that all of them have. ``pairs``: how likely one condition is above another. ``cautions``:
    what must be known before the figures are believed.
    """
    comparison = compare([rescored(run, own) for run, own in zip(runs, played, strict=True)])
    by_name = {run.name: own for run, own in zip(runs, played, strict=True)}
    return {
        "policies": _policies(comparison, by_name),
        "tasks": [_task(comparison, task) for task in comparison.tasks],
        "aggregates": [found for scale in comparison.scales() if (found := _aggregates(comparison, scale))],
        "pairs": [found for scale in comparison.scales() for found in _pairs(comparison, scale)],
        "cautions": cautions(comparison),
    }


def _policies(comparison: Comparison, played: Mapping[str, Mapping[str, Played]]) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for condition in comparison.conditions:
        for trial in condition.trials:
            policies = played[trial.run.name]
            own = policies.get(part_name(trial.arm, trial.seed)) or policies[trial.arm]
            scores = next(r for r in trial.records if r["arm"] == trial.arm)
            rows.append({
                "run": str(trial.run.folder), "arm": trial.arm, "condition": condition.label, **asdict(trial.task),
                "seed": trial.seed, "update": own.version, "random": own.random,
                "normalized": scores["normalized"], "raw": scores["raw"],
                "returns": scores["returns"], "lengths": [int(length) for length in own.lengths],
            })  # fmt: skip
    return rows


def _task(comparison: Comparison, task: Task) -> dict[str, Any]:
    return {
        **asdict(task),
        "title": task.title,
        "behaviour": behaviour(comparison, task).get(score_key(task)),
        "conditions": [_scores(condition, task) for condition in comparison.of(task)],
    }


def _scores(condition: Condition, task: Task) -> dict[str, Any]:
    """Scores over seeds; where there is one seed, its mean with the interval over episodes."""
    score, raw = final_scores(condition, task, score_key(task)), final_scores(condition, task, "raw")
    assert score is not None, "every arm was played"
    assert raw is not None, "returns are always known"
    found: dict[str, Any] = {
        "condition": condition.label,
        "seeds": score.seeds,
        "interval_over": score.unit,
        "mean": {"value": score.mean, "low": score.low, "high": score.high},
        "iqm": None,
        "median": None,
        "return": raw.mean,
    }
    if score.unit == "seeds":
        values = [list(score.seeds.values())]
        statistics = {"mean": mean_over_runs, "iqm": iqm_over_runs, "median": median_over_runs}
        found |= {name: _plain(of(values, SEED, resamples=RESAMPLES)) for name, of in statistics.items()}
    return found


def _aggregates(comparison: Comparison, scale: str) -> dict[str, Any] | None:
    tasks = tasks_of(comparison, scale)
    conditions = on_every_task(comparison, tasks)
    if not conditions:
        return None
    statistics = {"mean": mean_over_runs, "iqm": iqm_over_runs, "median": median_over_tasks}
    rows = []
    for condition in conditions:
        scores = [list(final_means(condition, task, score_key(task)).values()) for task in tasks]
        found = {name: of(scores, SEED, resamples=RESAMPLES) for name, of in statistics.items()}
        rows.append({
            "condition": condition.label, "runs": found["mean"].runs,
            **{name: _plain(estimate) for name, estimate in found.items()},
        })  # fmt: skip
    return {"scale": scale, "tasks": [task.title for task in tasks], "conditions": rows}


def _pairs(comparison: Comparison, scale: str) -> list[dict[str, Any]]:
    rows = []
    for pair in pairs(comparison, scale, RESAMPLES):
        shared = [task for task in tasks_of(comparison, scale) if pair.first.of(task) and pair.second.of(task)]
        sides = [[final_means(c, task, score_key(task)).values() for c in (pair.first, pair.second)] for task in shared]
        rows.append({
            "scale": scale, "first": pair.first.label, "second": pair.second.label,
            "tasks": [task.title for task in shared],
            "probability_of_improvement": _plain(pair.probability),
            "difference": _plain(pair.difference) if pair.difference is not None else None,
            "seeds_won": pair.won, "seeds_shared": pair.shared, "p_of_signs": pair.chance,
            "p_of_welch": [welch_chance(list(first), list(second)) for first, second in sides],
        })  # fmt: skip
    return rows


def _plain(estimate: Estimate) -> dict[str, float | None]:
    return {"value": estimate.value, "low": estimate.low, "high": estimate.high}

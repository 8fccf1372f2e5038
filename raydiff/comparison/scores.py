"""Final scores of conditions against each other: per task, over all tasks, and pair by pair (section J)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from raydiff.comparison.conditions import Comparison, Condition, Task
from raydiff.comparison.measures import SEED, final, final_means, final_scores, score_key
from raydiff.evaluation.statistics import (
    Estimate,
    chance_of_differences,
    iqm_over_runs,
    mean_over_runs,
    probability_of_improvement,
)
from raydiff.findings import interval_text, number
from raydiff.page import Table

SCALE_TITLES = {
    "d4rl": "D4RL-normalised scores",
    "minari": "Minari data, normalised scores",
    "raw": "Returns",
}
SCALE_AXES = {"d4rl": "normalised score", "minari": "normalised score", "raw": "return"}
SCALE_NOTES = {
    "d4rl": "0 is D4RL's random policy, 100 its expert.",
    "minari": "0 is D4RL's random policy, 100 its expert; the data are Minari's, so nothing here belongs beside D4RL's.",
    "raw": "No reference returns are known for these environments: these are undiscounted returns.",
}


DECIDED = 0.05  # a pair is told apart where chance is smaller


@dataclass(frozen=True)
class Pair:
    """How likely a run of ``first`` scores above one of ``second``.

    ``difference`` is over the seeds that both have, seed by seed (first minus second), and ``chance`` the probability
    of one as large under random signs; ``won`` of ``shared`` such seeds were higher for the first. None where they
    share no seed, or for a difference over tasks whose returns have no common scale.
    """

    first: Condition
    second: Condition
    probability: Estimate
    difference: Estimate | None
    chance: float | None
    won: int
    shared: int

    @property
    def decided(self) -> bool:
        """Whether the difference seed by seed is more than chance."""
        return self.chance is not None and self.chance < DECIDED


def tasks_of(comparison: Comparison, scale: str) -> list[Task]:
    return [task for task in comparison.tasks if task.scale == scale]


def task_table(comparison: Comparison, task: Task) -> Table:
    """Final scores of one task: the data's own first, then every condition. IQM only where it is not the mean."""
    finals = {c.label: final_scores(c, task, score_key(task)) for c in comparison.of(task)}
    middles = any(score is not None and len(score.seeds) >= FEWEST_FOR_IQM for score in finals.values())
    columns = ["condition", "each seed", "mean", "95 % interval", *(["IQM", "95 % interval"] if middles else []),
               "interval over", "mean return", "episodes"]  # fmt: skip
    rows = [*_behaviour_rows(comparison, task, middles)]
    for condition in comparison.of(task):
        score, returns = finals[condition.label], final_scores(condition, task, "raw")
        if score is None or returns is None:
            rows.append((condition.label, "not finished", *[""] * (len(columns) - 2)))
            continue
        values = list(score.seeds.values())
        middle = iqm_over_runs([values], SEED) if len(values) >= FEWEST_FOR_IQM else None
        shown = () if not middles else (number(middle.value), interval_text(middle)) if middle else ("–", "–")
        each = ", ".join(number(value) for _, value in sorted(score.seeds.items()))
        over = f"{len(values)} seeds" if score.unit == "seeds" else "episodes"
        rows.append((condition.label, each, number(score.mean), interval_text(score), *shown, over,
                     number(returns.mean), _episodes(condition, task)))  # fmt: skip
    return Table(columns, rows, task.title, left=2)


FEWEST_FOR_IQM = 4  # below, a quarter of the scores is none, and the interquartile mean is the mean


def _behaviour_rows(comparison: Comparison, task: Task, middles: bool) -> Iterator[tuple[str, ...]]:
    """What the data themselves score, from the first finished run on the task."""
    found = behaviour(comparison, task)
    value, returns = found.get(score_key(task)), found.get("raw")
    if value and returns:
        between = f"[{number(value['low'])}, {number(value['high'])}]"
        yield ("behaviour (the data)", "", number(value["mean"]), between, *(("–", "–") if middles else ()),
               "episodes", number(returns["mean"]), f"{value['episodes']:,}")  # fmt: skip


def behaviour(comparison: Comparison, task: Task) -> Mapping[str, Any]:
    """Scores of the data's own episodes by scale, from the first finished run on the task; empty without one."""
    runs = (run for run, own in zip(comparison.runs, comparison.run_tasks, strict=True) if own == task)
    scores = ((run.summary.get("scores") or {}).get("behaviour") for run in runs)
    return next((score for score in scores if score), {})


def _episodes(condition: Condition, task: Task) -> str:
    finals = (final(trial, score_key(task)) for trial in condition.of(task))
    return " or ".join(f"{count:,}" for count in sorted({value["episodes"] for value in finals if value is not None}))


def on_every_task(comparison: Comparison, tasks: Sequence[Task]) -> list[Condition]:
    """Conditions with a final score on each of several tasks of a normalised scale: those that can be aggregated."""
    if len(tasks) < 2 or any(task.scale == "raw" for task in tasks):
        return []
    return [c for c in comparison.conditions if all(_by_seed(c, task) for task in tasks)]


AGGREGATE_COLUMNS = ("condition", "mean", "95 % interval", "IQM", "95 % interval", "runs")


def aggregates(condition: Condition, tasks: Sequence[Task]) -> tuple[Estimate, Estimate]:
    """Mean and interquartile mean over all tasks, with intervals by the stratified bootstrap over seeds."""
    scores = [list(_by_seed(condition, task).values()) for task in tasks]
    return mean_over_runs(scores, SEED), iqm_over_runs(scores, SEED)


def pairs(comparison: Comparison, scale: str, resamples: int = 2000) -> list[Pair]:
    """Pairs of conditions of one arm, and of arms under one setting, on the tasks where both have final scores."""
    found: list[Pair] = []
    for first, second in combinations(comparison.conditions, 2):
        alike = first.arm == second.arm or first.special == second.special or not (first.special and second.special)
        tasks = [t for t in tasks_of(comparison, scale) if _by_seed(first, t) and _by_seed(second, t)]
        if alike and tasks:
            found.append(_pair(first, second, tasks, resamples))
    return found


def _pair(first: Condition, second: Condition, tasks: Sequence[Task], resamples: int) -> Pair:
    ours, theirs = ([_by_seed(side, task) for task in tasks] for side in (first, second))
    ours_alone, theirs_alone = ([[*scores.values()] for scores in side] for side in (ours, theirs))
    probability = probability_of_improvement(ours_alone, theirs_alone, SEED, resamples=resamples)
    both = [[a[seed] - b[seed] for seed in a if seed in b] for a, b in zip(ours, theirs, strict=True)]
    paired = [differences for differences in both if differences]
    comparable = len(tasks) == 1 or tasks[0].scale != "raw"
    return Pair(
        first,
        second,
        probability,
        mean_over_runs(paired, SEED, resamples=resamples) if paired and comparable else None,
        chance_of_differences(np.concatenate(paired), SEED) if paired else None,
        sum(value > 0 for differences in paired for value in differences),
        sum(len(differences) for differences in paired),
    )


PAIR_COLUMNS = (
    "run of", "against", "P(higher)", "95 % interval", "mean difference", "95 % interval", "seeds won", "p",
)  # fmt: skip


def pair_row(pair: Pair) -> tuple[str, ...]:
    difference = pair.difference
    return (
        pair.first.label,
        pair.second.label,
        f"{pair.probability.value:.2f}",
        interval_text(pair.probability, 2),
        f"{difference.value:+,.1f}" if difference is not None else "–",
        interval_text(difference) if difference is not None else "–",
        f"{pair.won} of {pair.shared}" if pair.shared else "none shared",
        f"{pair.chance:.2g}" if pair.chance is not None else "–",
    )


def _by_seed(condition: Condition, task: Task) -> dict[int, float]:
    return final_means(condition, task, score_key(task))

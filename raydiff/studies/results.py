"""What the runs of a study come to: values per seed, and means with intervals over the seeds.

Intervals are Student's over seeds and Welch's for differences (95 %). With three seeds a percentile bootstrap cannot
be wider than the three values themselves and covers the mean far less often than it says; scores of several tasks are
aggregated as ``raydiff.evaluation.statistics`` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from scipy import stats

from raydiff.evaluation.statistics import Estimate

CONFIDENCE = 0.95
Verdict = Literal["win", "tie", "loss"]
Value = float | list[float] | None


@dataclass(frozen=True)
class Row:
    """A condition and its runs: ``runs[seed][measure]``, and the reasons of those that ``failed``."""

    name: str
    label: str
    group: str
    overrides: Mapping[str, Any]
    x: float | None
    runs: Mapping[int, Mapping[str, Value]]
    failed: Mapping[int, str] = field(default_factory=dict)

    def values(self, measure: str) -> list[float]:
        """The values of the finished runs that have this one, by seed."""
        found = [self.runs[seed].get(measure) for seed in sorted(self.runs)]
        return [value for value in found if isinstance(value, int | float)]

    def estimate(self, measure: str) -> Estimate | None:
        """Mean over seeds with its interval, or None where nothing was measured."""
        values = self.values(measure)
        return mean_over_seeds(values) if values else None

    def series(self, measure: str) -> list[Estimate]:
        """A measure that is a list in each run (such as the error by step), entry by entry over the seeds."""
        lists = [value for run in self.runs.values() if isinstance(value := run.get(measure), list)]
        return [mean_over_seeds(entry) for entry in zip(*lists, strict=False)]


@dataclass(frozen=True)
class Results:
    """All of a study that has been run so far. ``facts`` are said of the whole (dataset, seeds); ``learner`` are the
    settings of the learner that conditions may override."""

    study: str
    title: str
    rows: Sequence[Row]
    facts: Mapping[str, Any] = field(default_factory=dict)
    learner: Mapping[str, Any] = field(default_factory=dict)

    def group(self, *names: str) -> list[Row]:
        return [row for row in self.rows if row.group in names and row.runs]

    def row(self, name: str) -> Row | None:
        """The condition of that name, if one of its runs has ended."""
        return next((row for row in self.rows if row.name == name and row.runs), None)


def mean_over_seeds(values: Sequence[float]) -> Estimate:
    """Mean with Student's interval; none of a single value. ``ValueError`` without a value."""
    sample = np.asarray(values, dtype=np.float64)
    if not sample.size:
        raise ValueError("a mean needs at least one value")
    mean = float(sample.mean())
    if sample.size == 1:
        return Estimate(mean, None, None, 1)
    half = float(stats.t.ppf((1 + CONFIDENCE) / 2, sample.size - 1) * sample.std(ddof=1) / np.sqrt(sample.size))
    return Estimate(mean, mean - half, mean + half, int(sample.size))


def difference(first: Sequence[float], second: Sequence[float]) -> Estimate:
    """Mean of ``first`` less that of ``second`` with Welch's interval; none where one of them is a single value."""
    mean, runs = float(np.mean(first) - np.mean(second)), min(len(first), len(second))
    if runs < 2:
        return Estimate(mean, None, None, runs)
    if np.ptp(first) == 0.0 and np.ptp(second) == 0.0:  # Welch's degrees of freedom are undefined
        return Estimate(mean, mean, mean, runs)
    interval = stats.ttest_ind(first, second, equal_var=False).confidence_interval(CONFIDENCE)
    return Estimate(mean, float(interval.low), float(interval.high), runs)


def verdict(found: Estimate, higher_is_better: bool = True) -> Verdict:
    """A win or a loss where the interval of the difference leaves out zero; a tie where it does not, or is unknown."""
    if found.low is None or found.high is None or found.low <= 0.0 <= found.high:
        return "tie"
    return "win" if (found.value > 0.0) == higher_is_better else "loss"

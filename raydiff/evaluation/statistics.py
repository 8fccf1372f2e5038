"""How sure a mean return is: bootstrap intervals over episodes and over seeds, and comparisons of runs (section J).

The aggregates are those of Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(2021): interquartile mean, stratified bootstrap over runs within each task, probability of improvement.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

_QUARTER = 0.25
_AT_ONCE = 2_000  # resamples that are held in memory together


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval ``low .. high`` over ``episodes`` values."""

    mean: float
    low: float
    high: float
    episodes: int

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


@dataclass(frozen=True)
class Estimate:
    """A statistic over ``runs`` seeds with its confidence interval, which is None where no spread can be known."""

    value: float
    low: float | None
    high: float | None
    runs: int


def bootstrap_interval(values: ArrayLike, seed: int, confidence: float = 0.95, resamples: int = 2000) -> Interval:
    """Percentile bootstrap of the mean of ``values [n]``; the same seed gives the same interval.

    One value, or values that are all equal, say nothing about spread: then ``low = high = mean``.
    ``ValueError`` when there is no value or one is not finite.
    """
    sample = _sample(values)
    if np.ptp(sample) == 0.0:
        value = float(sample[0])
        return Interval(value, value, value, sample.size)
    low, high = _percentiles([sample], lambda drawn: drawn[0].mean(-1), seed, confidence, resamples)
    return Interval(float(sample.mean()), low, high, sample.size)


def over_seeds(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean over seeds ``values [n]`` for records and summaries: its 95 % interval ``low .. high`` over them (None where
    no spread can be known), its ``standard_error``, and how many ``seeds`` there are."""
    found = mean_over_runs([values], 0)
    error = float(np.std(values, ddof=1) / len(values) ** 0.5) if len(values) > 1 else None
    return {"mean": found.value, "low": found.low, "high": found.high, "standard_error": error, "seeds": found.runs}


def iqm(scores: ArrayLike) -> float:
    """Interquartile mean: the mean without the lowest and the highest quarter, ``floor(n / 4)`` scores each."""
    return float(stats.trim_mean(_sample(scores), _QUARTER))


def mean_over_runs(tasks: Sequence[ArrayLike], seed: int, confidence: float = 0.95, resamples: int = 2000) -> Estimate:
    """Mean of all scores; ``tasks`` holds the scores ``[runs]`` of each task, one per seed."""
    return _stratified(tasks, lambda drawn: np.concatenate(drawn, -1).mean(-1), seed, confidence, resamples)


def iqm_over_runs(tasks: Sequence[ArrayLike], seed: int, confidence: float = 0.95, resamples: int = 2000) -> Estimate:
    """Interquartile mean of all scores, whatever their task; ``tasks`` holds the scores ``[runs]`` of each task."""

    def statistic(drawn: list[np.ndarray]) -> np.ndarray:
        return np.asarray(stats.trim_mean(np.concatenate(drawn, -1), _QUARTER, axis=-1))

    return _stratified(tasks, statistic, seed, confidence, resamples)


def median_over_runs(
    tasks: Sequence[ArrayLike], seed: int, confidence: float = 0.95, resamples: int = 2000
) -> Estimate:
    """Median of all scores, whatever their task; ``tasks`` holds the scores ``[runs]`` of each task."""

    def statistic(drawn: list[np.ndarray]) -> np.ndarray:
        return np.median(np.concatenate(drawn, -1), axis=-1)

    return _stratified(tasks, statistic, seed, confidence, resamples)


def median_over_tasks(
    tasks: Sequence[ArrayLike], seed: int, confidence: float = 0.95, resamples: int = 2000
) -> Estimate:
    """Median over tasks of the mean of each task's scores ``[runs]``: the median that is usual in tables of papers."""

    def statistic(drawn: list[np.ndarray]) -> np.ndarray:
        return np.median(np.stack([scores.mean(-1) for scores in drawn]), axis=0)

    return _stratified(tasks, statistic, seed, confidence, resamples)


def probability_of_improvement(
    better: Sequence[ArrayLike],
    worse: Sequence[ArrayLike],
    seed: int,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Estimate:
    """``P(X > Y) + P(X = Y) / 2`` of a run X of ``better`` and a run Y of ``worse`` on the same task, over all tasks.

    It is the Mann-Whitney U statistic over ``len(X) * len(Y)``, averaged over tasks. Both hold scores ``[runs]`` of
    each task, in the same order of tasks; runs of the two need not be paired, and their pairing is not used.
    ``runs`` of the result is the smaller of the two numbers. ``ValueError`` when the numbers of tasks differ.
    """
    if len(better) != len(worse):
        raise ValueError(f"{len(better)} tasks cannot be compared with {len(worse)}")

    def statistic(drawn: list[np.ndarray]) -> np.ndarray:
        half = len(drawn) // 2
        return np.mean([_above(x, y) for x, y in zip(drawn[:half], drawn[half:], strict=True)], axis=0)

    found = _stratified([*better, *worse], statistic, seed, confidence, resamples)
    runs = min(sum(np.size(task) for task in side) for side in (better, worse))
    return Estimate(found.value, found.low, found.high, runs)


def chance_of_differences(differences: ArrayLike, seed: int) -> float:
    """Two-sided p of paired ``differences [n]``: how often random signs give a mean at least as far from zero.

    Exact up to 13 differences, whose signs are all tried; beyond, 9,999 random draws (SciPy's permutation test). With
    ``n`` differences it cannot be below ``2 / 2^n``.
    """
    sample = _sample(differences)
    if sample.size == 1:  # both signs are as far from zero; SciPy refuses a single value
        return 1.0
    result = stats.permutation_test(
        (sample,),
        lambda drawn, axis: np.mean(drawn, axis=axis),
        permutation_type="samples",
        vectorized=True,
        n_resamples=9_999,
        rng=np.random.default_rng(seed),
    )
    return float(result.pvalue)


def welch_chance(x: ArrayLike, y: ArrayLike) -> float | None:
    """Two-sided p of Welch's t test, for scores ``[n]`` and ``[m]`` of two conditions on one task, unpaired.

    None where one of them is a single score, or where neither has any spread.
    """
    first, second = _sample(x), _sample(y)
    if min(first.size, second.size) < 2 or (np.ptp(first) == 0.0 and np.ptp(second) == 0.0):
        return None
    return float(stats.ttest_ind(first, second, equal_var=False).pvalue)


def _above(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Share of pairs with ``x > y``, ties by half: ``[..., n]`` and ``[..., m]`` to ``[...]``."""
    first, second = x[..., :, None], y[..., None, :]
    return ((first > second) + 0.5 * (first == second)).mean((-2, -1))


def _stratified(
    strata: Sequence[ArrayLike],
    statistic: Callable[[list[np.ndarray]], np.ndarray],
    seed: int,
    confidence: float,
    resamples: int,
) -> Estimate:
    """A statistic of several samples; every sample is resampled on its own.

    Without two values in every sample the spread of that sample is unknown, and so is the interval. ``statistic``
    maps arrays ``[..., n_i]`` to ``[...]``.
    """
    samples = [_sample(values) for values in strata]
    if not samples:
        raise ValueError("a statistic over tasks needs at least one task")
    value, runs = float(statistic(samples)), sum(sample.size for sample in samples)
    if min(sample.size for sample in samples) < 2:
        return Estimate(value, None, None, runs)
    if all(np.ptp(sample) == 0.0 for sample in samples):
        return Estimate(value, value, value, runs)
    return Estimate(value, *_percentiles(samples, statistic, seed, confidence, resamples), runs)


def _percentiles(
    samples: Sequence[np.ndarray],
    statistic: Callable[[list[np.ndarray]], np.ndarray],
    seed: int,
    confidence: float,
    resamples: int,
) -> tuple[float, float]:
    """Percentile interval by SciPy, which resamples each of several unpaired samples independently."""

    def of_axis(*drawn: np.ndarray, axis: int = -1) -> Any:
        return statistic([np.moveaxis(sample, axis, -1) for sample in drawn])

    result = stats.bootstrap(
        tuple(samples),
        of_axis,
        n_resamples=resamples,
        batch=_AT_ONCE,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return float(interval.low), float(interval.high)


def _sample(values: ArrayLike) -> np.ndarray:
    sample = np.asarray(values, dtype=np.float64).ravel()
    if sample.size == 0:
        raise ValueError("an interval needs at least one value")
    if not np.isfinite(sample).all():
        raise ValueError("an interval needs finite values")
    return sample

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
from scipy import stats

from raydiff.evaluation.statistics import (
    bootstrap_interval,
    chance_of_differences,
    iqm,
    iqm_over_runs,
    mean_over_runs,
    median_over_runs,
    median_over_tasks,
    probability_of_improvement,
    welch_chance,
)


def test_interval_of_normal_values_is_that_of_theory() -> None:
    values = np.random.default_rng(0).normal(10.0, 2.0, size=400)
    interval = bootstrap_interval(values, seed=1)
    half = 1.96 * values.std() / 20.0
    assert interval.mean == pytest.approx(values.mean())
    assert interval.low == pytest.approx(values.mean() - half, abs=0.03)
    assert interval.high == pytest.approx(values.mean() + half, abs=0.03)
    assert interval.episodes == 400


def test_same_seed_same_interval_and_other_seed_another() -> None:
    values = np.random.default_rng(0).normal(size=20)
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)


@pytest.mark.parametrize("values", [[3.5], [2.0, 2.0, 2.0]])
def test_values_without_spread_give_a_point_and_no_warning(values: list[float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        interval = bootstrap_interval(values, seed=0)
    assert interval.as_dict() == {"mean": values[0], "low": values[0], "high": values[0], "episodes": len(values)}


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_no_or_undefined_values_are_refused(values: list[float]) -> None:
    with pytest.raises(ValueError, match="value"):
        bootstrap_interval(values, seed=0)


def test_interquartile_mean_is_that_of_the_middle_half() -> None:
    assert iqm(np.arange(100)) == 49.5  # section J
    assert iqm([0, 1, 2, 3, 4, 5, 1000]) == pytest.approx((1 + 2 + 3 + 4 + 5) / 5)  # floor(7 / 4) = 1 from each side
    assert iqm([5, 1, 9]) == pytest.approx(5)  # a quarter of three scores is none


def test_strata_are_resampled_each_on_its_own() -> None:
    """Tasks of very different scores: mixing them up would give a wide interval, within each there is no spread."""
    found = mean_over_runs([[0.0, 0.0, 0.0], [100.0, 100.0]], seed=0)
    assert (found.value, found.low, found.high, found.runs) == (40.0, 40.0, 40.0, 5)
    wide = mean_over_runs([[0.0, 2.0], [100.0, 100.0]], seed=0)  # only the first varies: means 0, 1 or 2
    assert (wide.value, wide.low, wide.high) == (50.5, 50.0, 51.0)


@pytest.mark.parametrize("values", [[1.0, 4.0], [1.0, 2.0, 6.0]])
def test_interval_over_two_or_three_runs_is_their_range(values: list[float]) -> None:
    found = mean_over_runs([values], seed=1)
    assert (found.low, found.high) == (min(values), max(values))


def test_one_run_has_no_interval() -> None:
    for function in (mean_over_runs, iqm_over_runs):
        found = function([[3.0], [1.0, 5.0]], seed=0)
        assert (found.value, found.low, found.high, found.runs) == (3.0, None, None, 3)
    with pytest.raises(ValueError, match="task"):
        mean_over_runs([], seed=0)


def test_intervals_of_the_interquartile_mean_hold_the_truth_as_often_as_they_say() -> None:
    """Ten runs of nine tasks of N(0, 1): its interquartile mean is zero (section J: close to 95 %, a little below)."""
    rng = np.random.default_rng(0)
    held = 0
    for trial in range(400):
        found = iqm_over_runs(list(rng.normal(size=(9, 10))), seed=trial, resamples=2000)
        assert found.low is not None
        assert found.high is not None
        held += found.low < 0 < found.high
    assert 0.90 <= held / 400 <= 0.97


@pytest.mark.parametrize(("runs", "covers"), [(2, 0.5), (3, 0.75), (4, 0.80), (5, 0.84), (8, 0.89)])
def test_intervals_over_few_runs_are_as_narrow_as_reports_say(runs: int, covers: float) -> None:
    rng = np.random.default_rng(runs)
    trials = 400
    intervals = [mean_over_runs([rng.normal(size=runs)], seed=0, resamples=1000) for _ in range(trials)]
    held = sum(i.low is not None and i.high is not None and i.low < 0 < i.high for i in intervals)
    assert held / trials == pytest.approx(covers, abs=0.06)  # three standard errors at 0.8


def test_probability_of_improvement_is_the_mann_whitney_statistic() -> None:
    x, y = [1.0, 2.0, 3.0, 3.0], [0.0, 2.0, 5.0]
    found = probability_of_improvement([x], [y], seed=0)
    assert found.value == pytest.approx(stats.mannwhitneyu(x, y).statistic / 12)
    assert found.value == pytest.approx(1 - probability_of_improvement([y], [x], seed=0).value)
    assert found.low is not None
    assert found.high is not None
    assert found.low < found.value < found.high
    assert found.runs == 3


def test_probability_of_improvement_is_averaged_over_tasks() -> None:
    above, below = [5.0, 6.0], [1.0, 2.0]
    found = probability_of_improvement([above, below], [below, above], seed=0)
    assert (found.value, found.low, found.high) == (0.5, 0.5, 0.5)
    assert probability_of_improvement([above], [below], seed=0).value == 1.0
    assert probability_of_improvement([above], [above], seed=0).value == 0.5
    assert probability_of_improvement([[1.0]], [[2.0]], seed=0).low is None
    with pytest.raises(ValueError, match="tasks"):
        probability_of_improvement([above], [above, below], seed=0)


def test_chance_of_differences_tries_every_sign() -> None:
    assert chance_of_differences([0.3, 2.0, 1.0, 0.1, 5.0, 0.2], seed=0) == 2 / 2**6
    assert chance_of_differences([1.0, -1.0], seed=0) == 1.0
    assert chance_of_differences([7.0], seed=0) == 1.0
    assert chance_of_differences([0.0, 0.0, 0.0], seed=0) == 1.0
    values = np.array([1.5, -0.5, 2.0, 0.7, -0.1])
    means = [abs(np.mean(values * signs)) for signs in itertools.product((1, -1), repeat=5)]
    want = np.mean(np.array(means) >= abs(values.mean()) - 1e-12)
    assert chance_of_differences(values, seed=0) == pytest.approx(want)
    many = np.random.default_rng(0).normal(0.5, 1.0, size=30)
    assert chance_of_differences(many, seed=1) == chance_of_differences(many, seed=1)
    assert chance_of_differences(many, seed=1) == pytest.approx(stats.ttest_1samp(many, 0.0).pvalue, abs=0.01)


def test_medians_are_of_scores_or_of_the_means_of_tasks() -> None:
    tasks = [[0.0, 1.0, 5.0], [10.0, 30.0], [100.0, 100.0]]
    assert median_over_runs(tasks, seed=0).value == 10.0
    found = median_over_tasks(tasks, seed=0)
    assert (found.value, found.low, found.high) == (20.0, 10.0, 30.0)  # of the means 2, 20 and 100
    assert median_over_runs([[1.0], [2.0]], seed=0).low is None


def test_welch_is_scipys_and_needs_two_scores_with_spread() -> None:
    x, y = [1.0, 2.0, 4.0], [3.0, 7.0]
    assert welch_chance(x, y) == pytest.approx(stats.ttest_ind(x, y, equal_var=False).pvalue)
    assert welch_chance(x, y) != pytest.approx(stats.ttest_ind(x, y).pvalue)
    assert welch_chance([1.0], y) is None
    assert welch_chance([1.0, 1.0], [2.0, 2.0]) is None


def test_more_resamples_than_fit_into_memory_at_once_are_drawn_in_parts() -> None:
    values = list(np.random.default_rng(0).normal(size=(3, 5)))
    few, many = (iqm_over_runs(values, seed=0, resamples=n) for n in (2000, 50_000))
    assert few.low == pytest.approx(many.low, abs=0.05)
    assert many == iqm_over_runs(values, seed=0, resamples=50_000)

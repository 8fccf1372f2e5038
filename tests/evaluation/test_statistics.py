from __future__ import annotations

import warnings

import numpy as np
import pytest

from raydiff.evaluation.statistics import bootstrap_interval


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

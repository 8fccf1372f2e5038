"""Coverage and copies on clouds whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest

from raydiff.evaluation.coverage import NEAR, NEIGHBOURS, Coverage, RealRows, nearest_neighbour_coverage


def cloud(n: int, columns: int = 3, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, columns)).astype(np.float32)


def test_identical_clouds_cover_each_other() -> None:
    assert nearest_neighbour_coverage(cloud(200), cloud(200)) == Coverage(1.0, 1.0)


def test_disjoint_clouds_do_not() -> None:
    assert nearest_neighbour_coverage(cloud(200), cloud(200, seed=1) + 100) == Coverage(0.0, 0.0)


def test_two_draws_of_one_law_expect_the_closed_form() -> None:
    """Naeem et al. 2020, lemma 2, with n = m: 1 - prod_{i<=k} (n - i) / (2n - i), nearly 1 - 2^-k."""
    n = 1000
    expected = 1 - np.prod([(n - i) / (2 * n - i) for i in range(1, NEIGHBOURS + 1)])
    found = [nearest_neighbour_coverage(cloud(n, seed=s), cloud(n, seed=s + 50)) for s in range(8)]
    assert np.mean([one.coverage for one in found if one]) == pytest.approx(expected, abs=0.005)
    assert expected == pytest.approx(1 - 2**-NEIGHBOURS, abs=0.001)


def test_a_dropped_mode_lowers_coverage_by_its_share_and_not_precision() -> None:
    real = cloud(1000)
    real[700:] += 50  # a mode of 30 %
    synthetic = cloud(1000, seed=1)  # the other one alone
    found = nearest_neighbour_coverage(real, synthetic)
    assert found is not None
    assert found.coverage == pytest.approx(0.7, abs=0.03)
    assert found.precision > 0.9


def test_points_where_no_data_are_lower_precision_by_their_share_and_not_coverage() -> None:
    synthetic = cloud(1000, seed=1)
    synthetic[:250] += 50
    found = nearest_neighbour_coverage(cloud(1000), synthetic)
    assert found is not None
    assert found.precision == pytest.approx(0.75 * 0.95, abs=0.04)
    assert found.coverage > 0.9


def test_too_few_points_have_no_coverage_and_unequal_numbers_are_refused() -> None:
    assert nearest_neighbour_coverage(cloud(NEIGHBOURS), cloud(NEIGHBOURS, seed=1)) is None
    with pytest.raises(ValueError, match="one size"):
        nearest_neighbour_coverage(cloud(20), cloud(19))


def test_copies_are_counted_exactly() -> None:
    real, rows = cloud(500, 8), cloud(100, 8, seed=1)
    rows[:20] = real[40:60]  # a fifth is copied
    rows[90:] = rows[50]  # and eleven are one row
    found = RealRows(real, np.ones(8), 0).duplicates(rows)
    assert found is not None
    assert (found.exact, found.near) == (0.2, 0.2)
    assert (found.exact_among, found.near_among) == (0.11, 0.11)


def test_near_copies_are_those_within_a_hundredth_of_a_standard_deviation() -> None:
    scale = np.array([1.0, 10.0, 0.1])
    real = (cloud(300) * scale).astype(np.float32)
    inside, outside = 0.95 * NEAR * scale, 1.05 * NEAR * scale
    index = RealRows(real, scale, 0)
    for offset, share in ((inside, 1.0), (outside, 0.0)):
        found = index.duplicates((real[:1] + offset).astype(np.float32))
        assert found is not None
        assert (found.exact, found.near) == (0.0, share)


def test_real_rows_are_no_copies_of_themselves() -> None:
    real = cloud(300)
    real[10] = real[20]
    real[30] = real[40] + np.float32(1e-3)
    found = RealRows(real, np.ones(3), 0).duplicates(real, own=True)
    assert found is not None
    assert found.exact == pytest.approx(2 / 300)
    assert found.near == pytest.approx(4 / 300)
    assert (found.exact_among, found.near_among) == (found.exact, found.near)


def test_both_zeros_are_one_number_and_no_rows_have_no_copies() -> None:
    index = RealRows(np.zeros((1, 2), dtype=np.float32), np.ones(2), 0)
    found = index.duplicates(np.array([[-0.0, 0.0]], dtype=np.float32))
    assert found is not None
    assert found.exact == 1.0
    assert index.duplicates(np.zeros((0, 2), dtype=np.float32)) is None

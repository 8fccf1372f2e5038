from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raydiff.timeline import (
    Interval,
    idle_fraction,
    intersection,
    intersection_length,
    learner_wait_fraction,
    length,
    overlap,
    overlap_fraction,
    training_span,
    union,
)

CELLS, STEP = 64, 0.125  # a grid of eighths of a second: every end lies on it, and is exact in floating point

edge = st.integers(0, CELLS)
some_intervals = st.lists(st.tuples(edge, edge).map(lambda pair: (pair[0] * STEP, pair[1] * STEP)), max_size=12)


def cells(intervals: list[Interval]) -> np.ndarray:
    """Which cells of the grid the intervals cover."""
    covered = np.zeros(CELLS, dtype=bool)
    for start, end in intervals:
        covered[round(start / STEP) : max(round(start / STEP), round(end / STEP))] = True
    return covered


def train(start: float, end: float, sampled: float = 320, inserted: float = 10, waited: float = 0.0) -> dict[str, Any]:
    time = {"worker": "learner", "start": start, "end": end, "waited": waited}
    return {"kind": "train", "arm": "g", "synthetic_sampled": sampled, "synthetic_inserted": inserted, "time": time}


def block(worker: str, start: float, end: float, arm: str = "g") -> dict[str, Any]:
    return {"kind": "block", "arm": arm, "time": {"worker": worker, "start": start, "end": end}}


@given(some_intervals)
def test_union_is_sorted_disjoint_and_covers_the_same(given_intervals: list[Interval]) -> None:
    merged = union(given_intervals)
    assert all(start < end for start, end in merged)
    assert all(before[1] < after[0] for before, after in pairwise(merged))
    assert (cells(merged) == cells(given_intervals)).all()
    assert length(given_intervals) == cells(given_intervals).sum() * STEP


@given(some_intervals, some_intervals)
def test_intersection_and_overlap_match_a_grid(first: list[Interval], second: list[Interval]) -> None:
    both = cells(first) & cells(second)
    assert (cells(intersection(first, second)) == both).all()
    assert intersection_length(first, second) == both.sum() * STEP
    assert intersection(first, second) == intersection(second, first)
    busy = cells(first).sum()
    assert overlap(first, second) == (both.sum() / busy if busy else 0.0)


@given(
    st.lists(st.tuples(edge, edge, st.integers(0, 50), st.integers(0, 4)), min_size=1, max_size=8),
    some_intervals,
)
@settings(max_examples=200)
def test_overlap_fraction_matches_a_grid(chunks: list[tuple[int, int, int, int]], sampling: list[Interval]) -> None:
    records = [train(a * STEP, b * STEP, 10 * sampled, 10 * inserted) for a, b, sampled, inserted in chunks]
    records += [block("refiner/0", *pair) for pair in sampling]
    busy = cells([(a * STEP, b * STEP) for a, b, _, _ in chunks])
    paced = cells([(a * STEP, b * STEP) for a, b, s, i in chunks if i and 9 * i <= s <= 11 * i])
    got = overlap_fraction(records, "g", 10.0)
    if not busy.any() or not sampling:
        assert got is None
    else:
        assert got == pytest.approx((paced & cells(sampling)).sum() / busy.sum(), abs=1e-12)


def test_nothing_counts_where_generators_idle() -> None:
    refining = block("refiner/0", 0.0, 10.0)
    assert overlap_fraction([train(0, 10), block("generator/0", 0.0, 8.5), refining], "g", 32.0) == 1.0
    assert overlap_fraction([train(0, 10), block("generator/0", 0.0, 7.5), refining], "g", 32.0) == 0.0


def test_chunks_off_the_ratio_do_not_count() -> None:
    sampling = block("generator/0", 0.0, 10.0)
    assert overlap_fraction([train(0, 4), sampling], "g", 32.0) == 1.0
    assert overlap_fraction([train(0, 4), train(4, 8, sampled=384), sampling], "g", 32.0) == 0.5  # 20 % above
    assert overlap_fraction([train(0, 4, sampled=352), sampling], "g", 32.0) == 1.0  # 10 % still counts
    assert overlap_fraction([train(0, 4, inserted=0), sampling], "g", 32.0) == 0.0
    assert overlap_fraction([train(0, 4)], "g", 32.0) is None
    assert overlap_fraction([train(0, 4), block("generator/0", 0, 4, arm="other")], "g", 32.0) is None


@given(st.lists(st.tuples(st.sampled_from(["generator/0", "generator/1", "refiner/0"]), edge, edge), max_size=10))
def test_idle_fraction_matches_a_grid(calls: list[tuple[str, int, int]]) -> None:
    records = [block(worker, a * STEP, b * STEP) for worker, a, b in calls]
    start, end = 8, 56
    names = {worker for worker, _, _ in calls if worker.startswith("generator")}
    got = idle_fraction(records, "g", "generator", start * STEP, end * STEP)
    if not names:
        assert got is None
        return
    busy = sum(cells([(a * STEP, b * STEP) for w, a, b in calls if w == name])[start:end].sum() for name in names)
    assert got == pytest.approx(1 - busy / (len(names) * (end - start)), abs=1e-12)


def test_a_worker_without_blocks_is_idle() -> None:
    up = {"kind": "event", "arm": "g", "event": "worker_up", "worker": "generator/1", "time": {"at": 0.0}}
    records = [block("generator/0", 0, 10), up]
    assert idle_fraction(records, "g", "generator", 0.0, 10.0) == 0.5
    assert idle_fraction(records, "g", "generator", 10.0, 10.0) is None


def test_learner_wait_leaves_the_warm_up_out() -> None:
    records = [train(10, 12, waited=10.0), train(13, 15, waited=1.0), train(15, 20)]
    assert training_span(records, "g") == (10, 20)
    assert learner_wait_fraction(records, "g") == 0.1
    assert learner_wait_fraction([], "g") is None

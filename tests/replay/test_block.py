from __future__ import annotations

import numpy as np

from raydiff.replay.block import RAY_INLINE_BYTES, BlockReport, block_bytes, joint_report, parts_of
from raydiff.types import Agreement, Provenance


def test_bytes_are_those_of_the_array() -> None:
    assert block_bytes(512, 3, 25) == np.zeros((512, 3, 25), np.float32).nbytes
    assert block_bytes(512, 3, 25) > RAY_INLINE_BYTES  # the default block is not inlined


def test_reports_do_not_share_their_counts() -> None:
    origin = Provenance(1, "learner", "generator/0", 0, 0, 0, "", "none", 0.0, 31)
    first, second = BlockReport(origin, 1, 2), BlockReport(origin, 1, 2)
    first.dropped["not finite"] = 3
    assert second.dropped == {}


def report(trajectories: int, transitions: int, fit: Agreement | None = None, **dropped: int) -> BlockReport:
    origin = Provenance(1, "learner", "generator/0", 0, 0, 0, "", "none", 0.0, 31)
    return BlockReport(origin, trajectories, transitions, fit, float(transitions), dropped)


def test_flow_control_counts_the_block_of_one_seed() -> None:
    first = report(8, 16, Agreement(1.0, -3.0, 2.0), late=2)
    assert joint_report([first]) is first
    joint = joint_report([first, report(6, 13, Agreement(2.0, -4.0, 1.0), late=1, wild=3), report(4, 10)])
    assert (joint.trajectories, joint.transitions, joint.reward_mean) == (6, 13, 13.0)
    assert joint.agreement == Agreement(1.5, -3.5, 1.5)
    assert joint.dropped == {"late": 3, "wild": 3}
    assert joint_report([report(1, 2), report(1, 2)]).agreement is None


def test_a_block_without_a_transition_for_some_seed_is_empty() -> None:
    assert joint_report([report(8, 16), report(0, 0, wild=8)]).transitions == 0


def test_parts_are_views_of_the_rows_in_order() -> None:
    rows = np.arange(5 * 2 * 3, dtype=np.float32).reshape(5, 2, 3)
    parts = parts_of(rows, [2, 0, 3])
    assert [len(part) for part in parts] == [2, 0, 3]
    np.testing.assert_array_equal(np.concatenate(parts), rows)
    assert all(part.base is not None for part in parts)
    (whole,) = parts_of(rows, [5])
    np.testing.assert_array_equal(whole, rows)

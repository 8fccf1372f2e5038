from __future__ import annotations

import numpy as np

from raydiff.replay.block import RAY_INLINE_BYTES, BlockReport, block_bytes
from raydiff.types import Provenance


def test_bytes_are_those_of_the_array() -> None:
    assert block_bytes(512, 3, 25) == np.zeros((512, 3, 25), np.float32).nbytes
    assert block_bytes(512, 3, 25) > RAY_INLINE_BYTES  # the default block is not inlined


def test_reports_do_not_share_their_counts() -> None:
    origin = Provenance(1, "learner", "generator/0", 0, 0, 0, "", "none", 0.0, 31)
    first, second = BlockReport(origin, 1, 2), BlockReport(origin, 1, 2)
    first.dropped["not finite"] = 3
    assert second.dropped == {}

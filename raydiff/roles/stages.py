"""Which stage of a learner an update falls into."""

from __future__ import annotations

from collections.abc import Sequence

from raydiff.agents.api import Stage


def stage_at(stages: Sequence[Stage], update: int) -> int:
    """The number of the stage that update ``update``, counted from 0, belongs to; beyond the last one, that."""
    done = 0
    for number, stage in enumerate(stages):
        done += stage.updates
        if update < done:
            return number
    return len(stages) - 1

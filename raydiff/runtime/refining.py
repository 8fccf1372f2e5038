"""Which block is brought up to the current policy next, and how many may be: refinement as work beside generation.

In this order: blocks that arrived too old to be sampled (they are no use as they are), blocks more than
``refiner.max_lag`` behind, the oldest first, and then those whose refresh saves most. All of them together are at most
``refiner.fraction`` trajectories per trajectory generated; work in flight and blocks that wait for it count as done.
"""

from __future__ import annotations

from raydiff.config import Config
from raydiff.replay.block import BlockReport
from raydiff.replay.catalogue import Catalogue, Entry
from raydiff.runtime.flow import Shard
from raydiff.runtime.team import refines


class Refining:
    """The books of one learner's refinement; ``generated`` and ``refined`` count trajectories that came back."""

    def __init__(self, config: Config, catalogue: Catalogue) -> None:
        self.config, self.catalogue, self.able = config.refiner, catalogue, refines(config)
        self.generated = self.refined = 0
        self.stale: dict[int, tuple[BlockReport, Shard]] = {}  # too old on arrival
        self.taken: dict[int, int] = {}  # blocks in the hands of a worker: their trajectories

    @property
    def committed(self) -> int:
        """Trajectories refreshed, being refreshed, or waiting for it."""
        waiting = sum(report.trajectories for block, (report, _) in self.stale.items() if block not in self.taken)
        return self.refined + sum(self.taken.values()) + waiting

    def allows(self, trajectories: int) -> bool:
        """Whether so many more may be refreshed."""
        share = self.config.fraction
        return self.able and (share is None or self.committed + trajectories <= share * self.generated)

    def overdue(self, update: int, front: tuple[int, int] | None) -> int | None:
        """The block that must be refreshed before anything new is made, if there is one and it may be."""
        if not self.able or self.config.max_lag is None:
            return None
        return self._allowed(self.catalogue.oldest(update, self.config.max_lag, front))

    def worthwhile(self, update: int, front: tuple[int, int] | None, timely: bool) -> int | None:
        """The block to refresh in spare time. ``timely``: the policy of ``update`` is not too old to be sampled, so
        that a stale block would not come back as stale."""
        if not self.able:
            return None
        stale = next((block for block in self.stale if timely and block not in self.taken), None)
        if stale is not None:
            return stale
        overdue = self.overdue(update, front)
        return (
            overdue
            if overdue is not None
            else self._allowed(self.catalogue.to_refresh(update, self.config.min_lag, front))
        )

    def _allowed(self, entry: Entry | None) -> int | None:
        return entry.provenance.block if entry is not None and self.allows(entry.trajectories) else None

    def begin(self, parent: int) -> None:
        """A worker takes the block."""
        if parent in self.stale:
            self.taken[parent] = self.stale[parent][0].trajectories
            return
        entry = self.catalogue.entries[parent]
        entry.refining, self.taken[parent] = True, entry.trajectories

    def end(self, parent: int, readable: bool = True) -> None:
        """The block's refreshed self has come back, or will not come, or the block was gone before it was read."""
        self.taken.pop(parent, None)
        if parent in self.catalogue.entries:
            entry = self.catalogue.entries[parent]
            entry.refining, entry.readable = False, entry.readable and readable

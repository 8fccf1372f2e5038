"""Blocks on their way into the learner's table: what each brings, what it drives out, and what if it never arrives."""

from __future__ import annotations

from dataclasses import dataclass

from raydiff.replay.block import BlockReport
from raydiff.replay.catalogue import Catalogue, Entry
from raydiff.runtime.flow import Shard


@dataclass
class Arrival:
    """A block that the learner was asked to take. ``shard`` is None for a refreshed block, which is no insert;
    ``replaced`` is whose rows are in its slot until then."""

    block: int
    shard: Shard | None
    transitions: int
    replaced: Entry | None


class Landings:
    """Arrivals by the number of their call."""

    def __init__(self, catalogue: Catalogue) -> None:
        self.catalogue = catalogue
        self.arrivals: dict[int, Arrival] = {}

    def place(
        self, call: int, report: BlockReport, shard: Shard | None, strength: float | None
    ) -> tuple[int, int | None]:
        """Give the block its slot; a refreshed one (no shard) takes its parent's. Returns the slot, and the number of
        the block that it replaces."""
        origin = report.provenance
        entry, replaced = self.catalogue.place(origin, report.transitions, report.trajectories)
        entry.strength = strength
        self.arrivals[call] = Arrival(origin.block, shard, report.transitions, replaced)
        return entry.slot, replaced.provenance.block if replaced is not None else None

    def landed(self, call: int) -> Arrival:
        """The learner has the block's rows."""
        arrival = self.arrivals.pop(call)
        if arrival.block in self.catalogue.entries:
            self.catalogue.entries[arrival.block].landed = True
        return arrival

    def lost(self, call: int) -> Shard | None:
        """The block has gone before the learner could read it, which keeps what it has. Returns what must be made
        again (nothing, for a refreshed block)."""
        arrival = self.arrivals.pop(call)
        for later in self.arrivals.values():
            # A later block that is to drive out the lost one drives out what that one was to replace.
            if later.replaced is not None and later.replaced.provenance.block == arrival.block:
                later.replaced = arrival.replaced
        self.catalogue.withdraw(arrival.block, arrival.replaced)
        return arrival.shard

    def leaving(self) -> list[int]:
        """Policy versions of the blocks that are in the learner's table still and in the catalogue no more."""
        return [a.replaced.provenance.policy_version for a in self.arrivals.values() if a.replaced is not None]

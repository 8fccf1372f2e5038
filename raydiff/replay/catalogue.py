"""Which block is in which slot of the learner's table, where it came from, and which one leaves next.

Slots are filled in turn, so the oldest block is replaced first: a trajectory stays for ``lifetime`` generations.
A refreshed block takes the slot of its parent and leaves when the parent would have left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raydiff.types import Provenance


@dataclass
class Entry:
    """One block of the catalogue. ``landed`` is set once the learner has its rows."""

    provenance: Provenance
    transitions: int
    trajectories: int
    slot: int
    landed: bool = False
    refining: bool = False


@dataclass
class Catalogue:
    """The blocks of one learner, keyed by block number; ``slots`` is the capacity of its table."""

    slots: int
    entries: dict[int, Entry] = field(default_factory=dict)
    in_slot: dict[int, int] = field(default_factory=dict)
    cursor: int = 0

    def place(self, provenance: Provenance, transitions: int, trajectories: int) -> tuple[Entry, Entry | None]:
        """Give the block a slot (its live parent's, else the next in turn) and return it with what it replaces."""
        parent = provenance.parent_block
        if parent is not None and parent in self.entries:
            slot = self.entries[parent].slot
        else:
            slot, self.cursor = self.cursor, (self.cursor + 1) % self.slots
        replaced = self.entries.pop(self.in_slot[slot]) if slot in self.in_slot else None
        entry = Entry(provenance, transitions, trajectories, slot)
        self.entries[provenance.block] = entry
        self.in_slot[slot] = provenance.block
        return entry, replaced

    def remaining(self, entry: Entry) -> int:
        """Inserts until the entry's slot is overwritten."""
        return (entry.slot - self.cursor) % self.slots + 1

    def oldest_version(self) -> int | None:
        """The smallest policy version of any block that holds or awaits a slot."""
        return min((entry.provenance.policy_version for entry in self.entries.values()), default=None)

    def to_refresh(self, version: int, min_lag: int) -> Entry | None:
        """The landed block whose refresh saves most: its lag times the inserts for which it will still be there."""
        best, best_gain = None, 0
        for entry in self.entries.values():
            lag = version - entry.provenance.policy_version
            if entry.landed and not entry.refining and lag >= min_lag:
                gain = lag * self.remaining(entry)
                if gain > best_gain:
                    best, best_gain = entry, gain
        return best

"""Which block is in which slot of the learner's table, where it came from, and which one leaves next.

Slots are filled in turn, so the oldest block is replaced first: a trajectory stays for ``lifetime`` generations.
A refreshed block takes the slot of its parent and leaves when the parent would have left.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from raydiff.types import Provenance


@dataclass
class Entry:
    """One block of the catalogue. ``landed`` is set once the learner has its rows, ``readable`` is false where they are
    left in its table alone; ``strength`` is what a new block was commanded with where it is automatic (0: unguided)."""

    provenance: Provenance
    transitions: int
    trajectories: int
    slot: int
    landed: bool = False
    readable: bool = True
    refining: bool = False
    audited: bool = False
    strength: float | None = None


@dataclass
class Catalogue:
    """The blocks of one learner, keyed by block number; ``slots`` is the capacity of its table."""

    slots: int
    entries: dict[int, Entry] = field(default_factory=dict)
    in_slot: dict[int, int] = field(default_factory=dict)
    cursor: int = 0
    vacant: list[int] = field(default_factory=list)

    def place(self, provenance: Provenance, transitions: int, trajectories: int) -> tuple[Entry, Entry | None]:
        """Give the block a slot (its live parent's, else the next in turn) and return it with what it replaces."""
        parent = provenance.parent_block
        if parent is not None and parent in self.entries:
            slot = self.entries[parent].slot
        elif self.vacant:
            slot = self.vacant.pop(0)
        else:
            slot, self.cursor = self.cursor, (self.cursor + 1) % self.slots
        replaced = self.entries.pop(self.in_slot[slot]) if slot in self.in_slot else None
        entry = Entry(provenance, transitions, trajectories, slot)
        self.entries[provenance.block] = entry
        self.in_slot[slot] = provenance.block
        return entry, replaced

    def withdraw(self, block: int, replaced: Entry | None) -> None:
        """Undo ``place`` for a block that never reached the learner, whose rows there are still those of ``replaced``.

        What was replaced can be sampled but not read any more, so nobody may refine it. The slot of a new block is the
        next to be filled; that of a refreshed one goes back to its parent.
        """
        entry = self.entries.pop(block, None)
        if entry is None or self.in_slot[entry.slot] != block:  # a later block has taken the slot meanwhile
            return
        if replaced is None:
            del self.in_slot[entry.slot]
        else:
            replaced.readable = False
            self.entries[replaced.provenance.block] = replaced
            self.in_slot[entry.slot] = replaced.provenance.block
        if replaced is None or replaced.provenance.block != entry.provenance.parent_block:
            self.vacant.append(entry.slot)

    def remaining(self, entry: Entry) -> int:
        """Inserts until the entry's slot is overwritten."""
        return (entry.slot - self.cursor) % self.slots + 1

    def oldest_version(self) -> int | None:
        """The smallest policy version of any block that holds or awaits a slot."""
        return min((entry.provenance.policy_version for entry in self.entries.values()), default=None)

    def to_refresh(self, version: int, min_lag: int, slots: tuple[int, int] | None = None) -> Entry | None:
        """The landed block whose refresh saves most: its lag times the inserts for which it will still be there.

        ``slots`` limits the choice to a range (first, one past the last).
        """
        waiting = self._behind(version, min_lag, slots)
        return max(
            waiting, key=lambda entry: (version - entry.provenance.policy_version) * self.remaining(entry), default=None
        )

    def oldest(self, version: int, max_lag: int, slots: tuple[int, int] | None = None) -> Entry | None:
        """The landed block of the oldest policy, of those at least ``max_lag`` updates behind."""
        waiting = self._behind(version, max_lag, slots)
        return min(waiting, key=lambda entry: (entry.provenance.policy_version, self.remaining(entry)), default=None)

    def _behind(self, version: int, lag: int, slots: tuple[int, int] | None) -> list[Entry]:
        """Landed blocks so far behind that can be read and that nobody refines yet."""
        return [
            entry
            for entry in self.entries.values()
            if entry.landed
            and entry.readable
            and not entry.refining
            and version - entry.provenance.policy_version >= lag
            and (slots is None or slots[0] <= entry.slot < slots[1])
        ]

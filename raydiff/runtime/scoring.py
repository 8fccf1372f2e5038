"""When policies are evaluated, and which block is audited next."""

from __future__ import annotations

from raydiff.replay.catalogue import Entry
from raydiff.runtime import messages as m


class Scoring:
    """Evaluations are due where the updates pass a multiple of ``every``, and a final one after the last; audits take
    the block that landed last."""

    def __init__(self, every: int) -> None:
        self.every = every
        self.due = self.final_done = False
        self.newest_block: int | None = None

    def trained(self, before: int, after: int) -> None:
        """The learner went from ``before`` to ``after`` updates."""
        self.due = self.due or after // self.every > before // self.every

    def evaluated(self, command: m.Call) -> None:
        self.final_done = self.final_done or (isinstance(command, m.Evaluate) and command.final)

    def lost(self, command: m.Evaluate) -> None:
        """It will be made again; a final one is, as long as it is not done."""
        self.due = not command.final

    def wants(self, learned: bool) -> bool:
        """Whether an evaluation is wanted; the final one once the learner has ``learned``."""
        return (learned and not self.final_done) or self.due

    def next_audit(self, entries: dict[int, Entry], unguided_first: bool) -> int | None:
        """The block to audit, once: the one that landed last; or an unguided one, to hold the others against."""
        if unguided_first:
            for block, entry in entries.items():
                if entry.landed and entry.readable and not entry.audited and entry.strength == 0.0:
                    return block
        newest, self.newest_block = self.newest_block, None
        found = entries.get(newest) if newest is not None else None
        return newest if found is not None and found.readable and not found.audited else None

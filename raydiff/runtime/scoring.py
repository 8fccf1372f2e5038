"""When policies are evaluated, and which block is audited next."""

from __future__ import annotations

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

    def take_block(self) -> int | None:
        """The block to audit, once."""
        block, self.newest_block = self.newest_block, None
        return block

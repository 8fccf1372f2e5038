"""Flow control between generation and learning, as arithmetic without a clock.

The limiter keeps ``sampled`` close to ``samples_per_insert * inserted`` (both in synthetic transitions, counted
after the warm-up): generation may run ahead of the ratio by ``ahead`` samples, learning by ``behind``. Both sides
ask before they issue work, and work in flight counts as done.
"""

from __future__ import annotations

from raydiff.errors import UserError


class SampleLimiter:
    """Decides whether to insert and whether to sample; ``why_*`` say in one sentence what is waited for."""

    def __init__(
        self, samples_per_insert: float, ahead: float, behind: float, chunk_samples: int, where: str = "replay"
    ) -> None:
        """``ahead`` and ``behind`` are in samples; ``chunk_samples`` is what one learner call draws.

        Raises ``UserError`` where both sides could block each other for ever: generation blocked means a lead of at
        least ``ahead``, learning blocked a lead below ``chunk_samples - behind``.
        """
        if ahead + behind < chunk_samples:
            raise UserError(
                f"{where}: these limits would stall the run: generation stops once it leads by {ahead:g} samples, but "
                f"the learner needs a lead of {chunk_samples - behind:g} to draw its next {chunk_samples}. Raise "
                f"replay.ahead or replay.behind until they allow {chunk_samples} samples together, raise "
                f"generator.batch, or lower learner.chunk."
            )
        self.samples_per_insert, self.ahead, self.behind = samples_per_insert, ahead, behind
        self.chunk_samples = chunk_samples
        self.inserted = 0
        self.inserting = 0
        self.sampled = 0

    @property
    def lead(self) -> float:
        """Samples that landed inserts allow beyond those already drawn or being drawn."""
        return self.inserted * self.samples_per_insert - self.sampled

    def may_insert(self) -> bool:
        return self.lead + self.inserting * self.samples_per_insert < self.ahead

    def may_sample(self, samples: int) -> bool:
        return samples <= self.lead + self.behind

    @property
    def achieved(self) -> float | None:
        """Samples per insert so far, or ``None`` before the first insert."""
        return self.sampled / self.inserted if self.inserted else None

    def why_not_insert(self) -> str:
        return (
            f"generation leads by {self.lead:.0f} samples, {self.inserting} transitions are on their way, and "
            f"replay.ahead allows {self.ahead:.0f}"
        )

    def why_not_sample(self, samples: int) -> str:
        return (
            f"the next {samples} samples need more inserts: {self.inserted} transitions inserted allow "
            f"{self.inserted * self.samples_per_insert + self.behind:.0f} at {self.samples_per_insert:g} per insert, "
            f"and {self.sampled} are drawn"
        )

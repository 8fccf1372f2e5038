"""Which shards make up a dataset of a given size: arithmetic without a clock.

The dataset is the first ``transitions`` transitions (in whole trajectories) of shards 0, 1, 2 and so on. What it
holds therefore depends neither on how many generators made it, nor on the order in which they finished.
"""

from __future__ import annotations

from raydiff.errors import RunFailed

EMPTY_IN_A_ROW = 20


class Shards:
    """Hand out shard numbers until enough transitions are sure to come; ``done`` maps shards to their transitions."""

    def __init__(self, wanted: int, expected: int, done: dict[int, int]) -> None:
        """``expected``: transitions of a shard of which nothing is dropped."""
        self.wanted, self.expected, self.done = wanted, expected, dict(done)
        self.issued: set[int] = set()

    def next(self) -> int | None:
        """A shard to make; None while those done or being made are expected to be enough."""
        total, shard = 0, 0
        while total < self.wanted:
            if shard in self.done:
                total += self.done[shard]
            elif shard in self.issued:
                total += self.expected
            else:
                self.issued.add(shard)
                return shard
            shard += 1
        return None

    def finish(self, shard: int, transitions: int) -> None:
        """Raises ``RunFailed`` when nothing usable comes any more."""
        self.issued.discard(shard)
        self.done[shard] = transitions
        tail = [self.done[number] for number in sorted(self.done)[-EMPTY_IN_A_ROW:]]
        if len(tail) == EMPTY_IN_A_ROW and not any(tail):
            raise RunFailed(
                f"{EMPTY_IN_A_ROW} shards in a row came back empty: the model does not make usable trajectories. Train "
                "it longer (denoiser.steps), or lower guidance.strength."
            )

    def lose(self, shard: int) -> None:
        """It will be handed out again."""
        self.issued.discard(shard)

    @property
    def count(self) -> int:
        """Transitions of the unbroken run of finished shards from 0 on."""
        return sum(self.done[shard] for shard in self._run())

    @property
    def complete(self) -> list[int] | None:
        """The shards of the finished dataset in order; None while it is not."""
        total, chosen = 0, list[int]()
        for shard in self._run():
            chosen.append(shard)
            total += self.done[shard]
            if total >= self.wanted:
                return chosen
        return None

    def _run(self) -> list[int]:
        run: list[int] = []
        while len(run) in self.done:
            run.append(len(run))
        return run

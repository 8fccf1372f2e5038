"""Real and synthetic transitions in one batch, in a fixed share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from raydiff.replay.table import Table
from raydiff.types import Batch


@dataclass(frozen=True)
class Lag:
    """How many updates the policies behind the sampled synthetic rows were behind the learner."""

    mean: float
    max: int


class Mixture:
    """Batches of ``batch_size``: ``real_per_batch`` rows from the real table, the rest from the synthetic one.

    Without a synthetic table every row is real.
    """

    def __init__(self, real: Table, synthetic: Table | None, batch_size: int, real_fraction: float) -> None:
        self.real, self.synthetic, self.batch_size = real, synthetic, batch_size
        self.real_per_batch = real_rows(batch_size, real_fraction) if synthetic is not None else batch_size

    def chunk(
        self,
        updates: int,
        first_update: int,
        generator: torch.Generator,
        front: tuple[int, int] | None = None,
        real_only: bool = False,
    ) -> tuple[Iterator[Batch], Lag | None]:
        """Draw the batches of ``updates`` consecutive updates at once; the first of them is ``first_update``.

        Drawing them together costs one random call and one gather instead of ``updates`` of each. ``front`` limits
        the synthetic rows to a range of slots; with ``real_only`` there are none.
        """
        total = self.batch_size
        real = total if real_only else self.real_per_batch
        buffer = torch.empty(updates, total, self.real.columns, device=self.real.device)
        lag = None
        if real:
            records, _ = self.real.gather(updates * real, generator)
            buffer[:, :real] = records.view(updates, real, -1)
        if total > real and self.synthetic is not None:
            records, versions = self.synthetic.gather(updates * (total - real), generator, front)
            buffer[:, real:] = records.view(updates, total - real, -1)
            at = torch.arange(first_update, first_update + updates, device=versions.device)
            behind = at[:, None] - versions.view(updates, -1)
            lag = Lag(mean=float(behind.double().mean()), max=int(behind.max()))
        return (self.real.split(buffer[i]) for i in range(updates)), lag


def real_rows(batch_size: int, real_fraction: float) -> int:
    """Real transitions in a batch: the share rounded to the nearest whole number."""
    return round(batch_size * real_fraction)

"""Real and synthetic transitions in one batch, in a fixed share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
        buffer = torch.empty(updates, self.batch_size, self.real.columns, device=self.real.device)
        lag = self.fill(buffer, first_update, generator, front, real_only)
        return (self.real.split(buffer[i]) for i in range(updates)), lag

    def fill(
        self,
        buffer: torch.Tensor,
        first_update: int,
        generator: torch.Generator,
        front: tuple[int, int] | None,
        real_only: bool,
    ) -> Lag | None:
        """Draw as ``chunk`` does, into records ``[updates, batch_size, columns]``."""
        updates, total = buffer.shape[:2]
        real = total if real_only else self.real_per_batch
        if real:
            records, _ = self.real.gather(updates * real, generator)
            buffer[:, :real] = records.view(updates, real, -1)
        if total == real or self.synthetic is None:
            return None
        records, versions = self.synthetic.gather(updates * (total - real), generator, front)
        buffer[:, real:] = records.view(updates, total - real, -1)
        at = torch.arange(first_update, first_update + updates, device=versions.device)
        behind = at[:, None] - versions.view(updates, -1)
        return Lag(mean=float(behind.double().mean()), max=int(behind.max()))


def joint_chunk(
    mixtures: Sequence[Mixture],
    updates: int,
    first_update: int,
    generators: Sequence[torch.Generator],
    front: tuple[int, int] | None = None,
    real_only: bool = False,
) -> tuple[Iterator[Batch], list[Lag | None]]:
    """As ``Mixture.chunk`` of each seed with the generator of that seed, in batches of fields ``[N, B, ...]`` that all
    of them share, and the lag of each. A single seed gives ``[B, ...]``."""
    if len(mixtures) == 1:
        drawn, lag = mixtures[0].chunk(updates, first_update, generators[0], front, real_only)
        return drawn, [lag]
    real, size = mixtures[0].real, mixtures[0].batch_size
    buffer = torch.empty(updates, len(mixtures), size, real.columns, device=real.device)
    lags = [
        mixture.fill(buffer[:, seed], first_update, generator, front, real_only)
        for seed, (mixture, generator) in enumerate(zip(mixtures, generators, strict=True))
    ]
    return (real.split(buffer[i]) for i in range(updates)), lags


def real_rows(batch_size: int, real_fraction: float) -> int:
    """Real transitions in a batch: the share rounded to the nearest whole number."""
    return round(batch_size * real_fraction)

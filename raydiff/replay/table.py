"""The learner's own copy of the data: preallocated, one row-major record per transition.

A table is divided into slots; a block fills one slot and overwriting the slot evicts the block. Records of
terminated trajectories are fewer than a slot holds, so sampling goes through an index of the live rows, rebuilt
when their number changes. Writes come from the ingestion thread in bounded slices, each under the lock that a
gather takes, so that a batch never sees half a record. Until its slice is written, a row of the block before stays
live: a table of a single slot is never empty while a new block comes in.
"""

from __future__ import annotations

import threading

import numpy as np
import torch

from raydiff.types import Batch, Transitions

SLICE_ROWS = 8_192


class Table:
    """``slots`` times ``slot_rows`` transition records on ``device``; ``2S + A + 2`` float32 columns, and ``A`` more
    where the learner asks for the data's ``next_action``."""

    def __init__(
        self,
        slots: int,
        slot_rows: int,
        observation_size: int,
        action_size: int,
        device: str = "cpu",
        next_action: bool = False,
    ) -> None:
        self.observation_size, self.action_size, self.next_action = observation_size, action_size, next_action
        self.slots, self.slot_rows, self.device = slots, slot_rows, torch.device(device)
        self.columns = 2 * observation_size + action_size + 2 + next_action * action_size
        self.records = torch.zeros(slots * slot_rows, self.columns, device=self.device)
        self.versions = torch.zeros(slots * slot_rows, dtype=torch.int64, device=self.device)
        self._counts = np.zeros(slots, dtype=np.int64)
        self._live = torch.zeros(0, dtype=torch.int64, device=self.device)
        self._lock = threading.Lock()

    @classmethod
    def from_transitions(cls, data: Transitions, device: str = "cpu", next_action: bool = False) -> Table:
        """A table that holds exactly ``data`` (the real experience), version 0. Raises ``ValueError`` where it is to
        hold next actions and ``data`` has none."""
        table = cls(1, len(data), data.observation.shape[1], data.action.shape[1], device, next_action)
        table.write(0, data, policy_version=0)
        return table

    def __len__(self) -> int:
        return len(self._live)

    def write(self, slot: int, data: Transitions, policy_version: int) -> None:
        """Replace what the slot holds by ``data`` (at most ``slot_rows`` transitions)."""
        if len(data) > self.slot_rows:
            raise ValueError(f"{len(data)} transitions do not fit a slot of {self.slot_rows}")
        start, held = slot * self.slot_rows, int(self._counts[slot])
        rows = torch.from_numpy(data.rows(self.next_action))
        for low in range(0, len(data), SLICE_ROWS):
            piece = rows[low : low + SLICE_ROWS]
            high = low + len(piece)
            with self._lock:
                self.records[start + low : start + high].copy_(piece)
                self.versions[start + low : start + high] = policy_version
                self._set_count(slot, max(held, high))
        with self._lock:
            self._set_count(slot, len(data))

    def _set_count(self, slot: int, count: int) -> None:
        if self._counts[slot] == count:
            return
        self._counts[slot] = count
        parts = [np.arange(c) + s * self.slot_rows for s, c in enumerate(self._counts) if c]
        live = np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)
        self._live = torch.from_numpy(live).to(self.device)

    def gather(
        self, count: int, generator: torch.Generator, slots: tuple[int, int] | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """``count`` uniform draws with replacement: records ``[count, columns]`` and policy versions ``[count]``.

        ``slots`` limits them to the slots from the first up to, not including, the second. Raises ``ValueError``
        where there is nothing to draw from.
        """
        with self._lock:
            start, stop = 0, len(self._live)
            if slots is not None:  # live rows stand in the order of their slots
                start, stop = (int(self._counts[:slot].sum()) for slot in slots)
            if start == stop:
                raise ValueError("the table is empty: nothing was ingested yet")
            draws = torch.randint(start, stop, (count,), generator=generator, device=self.device)
            index = self._live.index_select(0, draws)
            return self.records.index_select(0, index), self.versions.index_select(0, index)

    def split(self, records: torch.Tensor) -> Batch:
        """View records ``[..., columns]`` as a ``Batch`` without copying."""
        s, a = self.observation_size, self.action_size
        end = 2 * s + a + 2
        return Batch(
            observation=records[..., :s],
            action=records[..., s : s + a],
            reward=records[..., s + a],
            terminal=records[..., s + a + 1],
            next_observation=records[..., s + a + 2 : end],
            next_action=records[..., end:] if self.next_action else None,
        )

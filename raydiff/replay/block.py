"""A block: the unit of transport and of bookkeeping. Its payload is one contiguous float32 array
``[n, L, C]`` in environment units; everything else that is known of it is this small report."""

from __future__ import annotations

from dataclasses import dataclass, field

from raydiff.types import Agreement, Provenance

# Ray copies returned objects up to this size into the heap of the process that owns them.
RAY_INLINE_BYTES = 100 * 1024


@dataclass(frozen=True)
class BlockReport:
    """What a generator says of a block it returns: its provenance, size, and quality.

    ``transitions`` counts the valid ones. ``agreement`` tells how well its actions fit the policy of that moment
    (``None`` without a valid transition). ``dropped`` counts trajectories by reason.
    """

    provenance: Provenance
    trajectories: int
    transitions: int
    agreement: Agreement | None = None
    reward_mean: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)


def block_bytes(trajectories: int, length: int, columns: int) -> int:
    """Payload bytes of a block of ``trajectories`` windows ``[length, columns]``."""
    return trajectories * length * columns * 4

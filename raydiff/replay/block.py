"""A block: the unit of transport and of bookkeeping. Its payload is one contiguous float32 array
``[n, L, C]`` in environment units; everything else that is known of it is this small report."""

from __future__ import annotations

from dataclasses import dataclass, field

from raydiff.types import Provenance

# Ray copies returned objects up to this size into the heap of the process that owns them.
RAY_INLINE_BYTES = 100 * 1024


@dataclass(frozen=True)
class BlockReport:
    """What a generator says of a block it returns: its provenance, size, and quality.

    ``transitions`` counts the valid ones. ``deviation`` is the mean squared distance of its actions from the
    policy it was made for (``None`` where no policy was involved). ``dropped`` counts trajectories by reason.
    """

    provenance: Provenance
    trajectories: int
    transitions: int
    deviation: float | None = None
    reward_mean: float = 0.0
    dropped: dict[str, int] = field(default_factory=dict)


def block_bytes(trajectories: int, length: int, columns: int) -> int:
    """Payload bytes of a block of ``trajectories`` windows ``[length, columns]``."""
    return trajectories * length * columns * 4

"""A block: the unit of transport and of bookkeeping. Its payload is one contiguous float32 array
``[n, L, C]`` in environment units; everything else that is known of it is this small report. Where several seeds are
trained at once, a block holds a part for each, one after the other, and there is a report of each part."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np

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


def joint_report(reports: Sequence[BlockReport]) -> BlockReport:
    """What flow control reckons with: the figures of one seed. Where seeds differ, as trajectories are dropped or end
    early, that is their mean; a block without a transition for some seed counts as empty. Dropped are those of all."""
    if len(reports) == 1:
        return reports[0]
    fits = [report.agreement for report in reports if report.agreement is not None]
    whole = all(report.transitions for report in reports)
    fit = Agreement(*(float(np.mean(values)) for values in zip(*map(_values, fits), strict=True))) if fits else None
    return replace(
        reports[0],
        trajectories=round(np.mean([report.trajectories for report in reports])),
        transitions=round(np.mean([report.transitions for report in reports])) if whole else 0,
        agreement=fit,
        reward_mean=float(np.mean([report.reward_mean for report in reports])),
        dropped=dict(sum((Counter(report.dropped) for report in reports), Counter())),
    )


def _values(fit: Agreement) -> tuple[float, float, float]:
    return fit.deviation, fit.log_likelihood, fit.own


def parts_of(rows: np.ndarray, sizes: Sequence[int]) -> list[np.ndarray]:
    """The rows of each seed ``[n_i, L, C]`` of a block ``[sum n_i, L, C]``, as views."""
    return np.split(rows, np.cumsum(sizes)[:-1])


def block_bytes(trajectories: int, length: int, columns: int) -> int:
    """Payload bytes of a block of ``trajectories`` windows ``[length, columns]``."""
    return trajectories * length * columns * 4

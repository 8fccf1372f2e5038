"""Keep what could be data: finite trajectories within reach of the real ones."""

from __future__ import annotations

import numpy as np
import torch

from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.types import Trajectories


def validate(
    trajectories: Trajectories, normalizer: TrajectoryNormalizer, limit: float
) -> tuple[Trajectories, dict[str, int]]:
    """The trajectories whose rows are finite and within ``limit`` standard deviations of the data in every column,
    and how many were dropped for which reason (``not_finite``, ``out_of_range``; a reason that did not occur is left
    out)."""
    rows = torch.from_numpy(trajectories.rows).to(normalizer.mean.device)
    finite = rows.isfinite().all(-1).all(-1)
    near = (normalizer.encode(rows).abs() <= limit).all(-1).all(-1)
    counts = {"not_finite": int((~finite).sum()), "out_of_range": int((finite & ~near).sum())}
    dropped = {reason: count for reason, count in counts.items() if count}
    if not dropped:
        return trajectories, dropped
    keep = np.flatnonzero((finite & near).cpu().numpy())
    kept = Trajectories(trajectories.rows[keep], trajectories.observation_size, trajectories.action_size)
    return kept, dropped

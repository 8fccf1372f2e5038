"""Keep what could be data: finite trajectories within reach of the real ones."""

from __future__ import annotations

import numpy as np
import torch

from raydiff.data.normalizer import TrajectoryNormalizer
from raydiff.types import Trajectories


def validate(
    trajectories: Trajectories, normalizer: TrajectoryNormalizer, limit: float
) -> tuple[Trajectories, dict[str, int]]:
    """The trajectories that are finite and whose transitions are within ``limit`` standard deviations of the data in
    every column, and how many were dropped for which reason (``not_finite``, ``out_of_range``; a reason that did not
    occur is left out).

    What no transition uses may be anything finite: rows behind a terminal, and the last row but for its observation.
    """
    rows = torch.from_numpy(trajectories.rows).to(normalizer.mean.device)
    finite = rows.isfinite().all(-1).all(-1)
    near = normalizer.encode(rows).abs() <= limit
    valid = torch.from_numpy(trajectories.valid()).to(rows.device)
    of_transitions = (near[:, :-1].all(-1) & near[:, 1:, : trajectories.observation_size].all(-1)) | ~valid
    reachable = of_transitions.all(-1)
    counts = {"not_finite": int((~finite).sum()), "out_of_range": int((finite & ~reachable).sum())}
    dropped = {reason: count for reason, count in counts.items() if count}
    if not dropped:
        return trajectories, dropped
    keep = np.flatnonzero((finite & reachable).cpu().numpy())
    kept = Trajectories(trajectories.rows[keep], trajectories.observation_size, trajectories.action_size)
    return kept, dropped

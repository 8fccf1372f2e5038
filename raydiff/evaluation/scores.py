"""D4RL's normalised scores: 0 is its random policy, 100 its expert (section J)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

# Returns of D4RL's random and expert policies, (R_min, R_max); the same for its v0, v1 and v2 data.
REFERENCE_SCORES: dict[str, tuple[float, float]] = {
    "hopper": (-20.272305, 3234.3),
    "halfcheetah": (-280.178953, 12135.0),
    "walker2d": (1.629008, 4592.3),
}


def normalized_score(environment: str, returns: ArrayLike) -> np.ndarray:
    """``100 (R - R_min) / (R_max - R_min)`` of each return, float64, in the shape of ``returns``.

    ``environment`` is one of ``REFERENCE_SCORES``; ``ValueError`` otherwise. The scale is D4RL's own (section J),
    measured with its simulator: on other data or another simulator it is a scale and no comparison.
    """
    if environment not in REFERENCE_SCORES:
        raise ValueError(f"no reference scores for {environment!r}; known: {', '.join(sorted(REFERENCE_SCORES))}")
    low, high = REFERENCE_SCORES[environment]
    return 100.0 * (np.asarray(returns, dtype=np.float64) - low) / (high - low)

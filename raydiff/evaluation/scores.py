"""D4RL's normalised scores: 0 is its random policy, 100 its expert (section J)."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from raydiff.data.catalogue import REFERENCE_SCORES

__all__ = ["REFERENCE_SCORES", "normalized_score"]


def normalized_score(reference: str, returns: ArrayLike) -> np.ndarray:
    """``100 (R - R_min) / (R_max - R_min)`` of each return, float64, in the shape of ``returns``.

    ``reference`` is a key of ``REFERENCE_SCORES``, such as ``hopper``, ``maze2d-umaze-dense``, ``antmaze``, ``pen``
    or ``kitchen``; ``ValueError`` otherwise. The scale is D4RL's own (section J), measured with its simulator: on
    other data or another simulator it is a scale and no comparison.
    """
    if reference not in REFERENCE_SCORES:
        raise ValueError(f"no reference scores for {reference!r}; known: {', '.join(sorted(REFERENCE_SCORES))}")
    low, high = REFERENCE_SCORES[reference]
    return 100.0 * (np.asarray(returns, dtype=np.float64) - low) / (high - low)

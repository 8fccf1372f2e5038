"""How much of the real data synthetic data cover, and how much of them is copied.

Rows are points: states, or states with actions, divided by the real data's standard deviations. Distances in them
mean something only beside those between real rows, so every figure here is to be read beside that of real data
which was kept apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

NEIGHBOURS = 5
NEAR = 0.01
"""Rows are near duplicates where they differ by so many standard deviations (root mean square over the columns)."""

_MOST_IN_TREE = 100_000


@dataclass(frozen=True)
class Coverage:
    """Two clouds of equal size. Round each real point lies a ball that reaches its ``NEIGHBOURS``-th real neighbour.

    ``coverage``: share of the balls that hold a synthetic point (Naeem et al. 2020, eq. 5); modes that are missing
    lower it. ``precision``: share of the synthetic points inside any ball (Kynkaanniemi et al. 2019, eq. 2); points
    where no data are lower it. Of two draws from one continuous distribution coverage expects nearly 1 - 2^-5.
    """

    coverage: float
    precision: float


def nearest_neighbour_coverage(real: np.ndarray, synthetic: np.ndarray) -> Coverage | None:
    """Compare points ``[n, D]`` with as many others, in equal units; None for fewer than are needed for the balls.

    Raises ``ValueError`` where the sizes differ: both shares would depend on that.
    """
    if real.shape != synthetic.shape:
        raise ValueError(f"clouds must be of one size, got {real.shape} and {synthetic.shape}")
    if len(real) <= NEIGHBOURS:
        return None
    # One more than asked for: the nearest is the point itself.
    radii = cKDTree(real).query(real, k=NEIGHBOURS + 1)[0][:, -1]
    held = cKDTree(synthetic).query_ball_point(real, radii)
    inside = np.zeros(len(synthetic), dtype=bool)
    for members in held:
        inside[members] = True
    return Coverage(float(np.mean([len(members) > 0 for members in held])), float(inside.mean()))


@dataclass(frozen=True)
class Duplicates:
    """Shares of rows: equal bit by bit to a real row, or to another row of their own; and within ``NEAR`` of one."""

    exact: float
    near: float
    exact_among: float
    near_among: float


class RealRows:
    """Real rows ``[N, D]`` to find copies of. Exact ones are sought among all of them, near ones among up to 100,000,
    drawn by ``seed``. ``scale [D]`` is their standard deviation, as a divisor."""

    def __init__(self, rows: np.ndarray, scale: np.ndarray, seed: int) -> None:
        self._scale = scale
        self._keys = np.sort(_keys(rows))
        chosen = np.random.default_rng(seed).permutation(len(rows))[:_MOST_IN_TREE]
        self._tree = cKDTree(rows[chosen] / scale)

    def duplicates(self, rows: np.ndarray, own: bool = False) -> Duplicates | None:
        """Of ``rows [n, D]``; None for no rows. ``own``: they are among the real rows themselves, where each is found
        once without being a copy."""
        if not len(rows):
            return None
        keys, points = _keys(rows), rows / self._scale
        exact = np.searchsorted(self._keys, keys, "right") - np.searchsorted(self._keys, keys, "left") > own
        near = _near(self._tree, points)
        _, which, counts = np.unique(keys, return_inverse=True, return_counts=True)
        repeated = counts[which] > 1
        return Duplicates(
            exact=float(exact.mean()),
            # A row is no near copy of itself, at distance 0; what else is there, is an exact one.
            near=float((exact | ((near > 0).any(axis=1) if own else (near >= 0).any(axis=1))).mean()),
            exact_among=float(repeated.mean()),
            near_among=float((repeated | (_near(cKDTree(points), points) > 0).any(axis=1)).mean()),
        )


def _near(tree: cKDTree, points: np.ndarray) -> np.ndarray:
    """Distances ``[n, 2]`` to the nearest two points of the tree, -1 where they are not near."""
    reach = NEAR * np.sqrt(points.shape[1])
    # The bound is exclusive, hence the factor.
    distance, _ = tree.query(points, k=2, distance_upper_bound=reach * (1 + 1e-9))
    return np.where(np.isfinite(distance), distance, -1.0)


def _keys(rows: np.ndarray) -> np.ndarray:
    """One 64-bit hash per row of float32; the two zeros are one number."""
    plain = np.ascontiguousarray(rows, dtype=np.float32) + np.float32(0.0)
    records = plain.view(f"V{plain.shape[1] * 4}").ravel().tolist()
    return np.fromiter(map(hash, records), dtype=np.int64, count=len(records))

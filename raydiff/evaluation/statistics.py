"""How sure a mean return is: bootstrap intervals over episodes (section J)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean with its confidence interval ``low .. high`` over ``episodes`` values."""

    mean: float
    low: float
    high: float
    episodes: int

    def as_dict(self) -> dict[str, float | int]:
        return asdict(self)


def bootstrap_interval(values: ArrayLike, seed: int, confidence: float = 0.95, resamples: int = 2000) -> Interval:
    """Percentile bootstrap of the mean of ``values [n]``; the same seed gives the same interval.

    One value, or values that are all equal, say nothing about spread: then ``low = high = mean``.
    ``ValueError`` when there is no value or one is not finite.
    """
    sample = np.asarray(values, dtype=np.float64).ravel()
    if sample.size == 0:
        raise ValueError("an interval needs at least one value")
    if not np.isfinite(sample).all():
        raise ValueError("an interval needs finite values")
    if np.ptp(sample) == 0.0:
        value = float(sample[0])
        return Interval(value, value, value, sample.size)
    result = stats.bootstrap(
        (sample,),
        np.mean,
        n_resamples=resamples,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    interval = result.confidence_interval
    return Interval(float(sample.mean()), float(interval.low), float(interval.high), sample.size)

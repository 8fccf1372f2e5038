from __future__ import annotations

import numpy as np
import pytest

from raydiff.evaluation.scores import REFERENCE_SCORES, normalized_score


@pytest.mark.parametrize("reference", REFERENCE_SCORES)
def test_reference_policies_score_0_and_100(reference: str) -> None:
    np.testing.assert_allclose(normalized_score(reference, REFERENCE_SCORES[reference]), [0.0, 100.0], atol=1e-12)


@pytest.mark.parametrize(
    ("reference", "low", "high"),
    [
        ("halfcheetah", -280.178953, 12135.0),
        ("hopper", -20.272305, 3234.3),
        ("walker2d", 1.629008, 4592.3),
        ("maze2d-umaze", 23.85, 161.86),
        ("maze2d-medium", 13.13, 277.39),
        ("maze2d-large", 6.7, 273.99),
        ("maze2d-umaze-dense", 68.537689, 193.662856),
        ("maze2d-medium-dense", 44.264742, 297.455255),
        ("maze2d-large-dense", 30.569041, 303.485738),
        ("antmaze", 0, 1),
        ("kitchen", 0, 4),
        ("pen", 96.262799, 3076.833102),
    ],
)
def test_reference_scores_are_the_published_ones(reference: str, low: float, high: float) -> None:
    assert REFERENCE_SCORES[reference] == pytest.approx((low, high), rel=1e-8)


@pytest.mark.parametrize(
    ("reference", "value", "score"),
    [("halfcheetah", 5000, 42.53), ("maze2d-umaze", 205, 131.26), ("antmaze", 0.6, 60.0), ("kitchen", 1.0, 25.0)],
)
def test_known_values(reference: str, value: float, score: float) -> None:
    assert round(float(normalized_score(reference, value)), 2) == score


def test_shape_is_kept_and_unknown_family_is_refused() -> None:
    assert normalized_score("hopper", np.zeros((2, 3))).shape == (2, 3)
    with pytest.raises(ValueError, match="humanoid"):
        normalized_score("humanoid", [1.0])

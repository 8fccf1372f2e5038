from __future__ import annotations

import numpy as np
import pytest

from raydiff.evaluation.scores import REFERENCE_SCORES, normalized_score


@pytest.mark.parametrize("environment", ["hopper", "halfcheetah", "walker2d"])
def test_reference_policies_score_0_and_100(environment: str) -> None:
    np.testing.assert_allclose(normalized_score(environment, REFERENCE_SCORES[environment]), [0.0, 100.0], atol=1e-12)


def test_known_value() -> None:
    assert round(float(normalized_score("halfcheetah", 5000)), 2) == 42.53


def test_shape_is_kept_and_unknown_environment_is_refused() -> None:
    assert normalized_score("hopper", np.zeros((2, 3))).shape == (2, 3)
    with pytest.raises(ValueError, match="humanoid"):
        normalized_score("humanoid", [1.0])

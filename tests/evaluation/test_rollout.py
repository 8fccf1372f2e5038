from __future__ import annotations

import numpy as np
import pytest

from raydiff.envs.registry import make_env
from raydiff.evaluation.rollout import rollout_returns


def _policy(action_size: int, scale: float) -> object:
    # Row by row arithmetic only, so that a batch gives the very bits of a single call.
    return lambda observation: (scale * np.sin(3.0 * observation[:, -action_size:])).astype(np.float32)


@pytest.mark.parametrize(("environment", "action_size"), [("hopper", 3), ("walker2d", 6), ("halfcheetah", 6)])
def test_equals_plain_gymnasium_loop(environment: str, action_size: int) -> None:
    act = _policy(action_size, scale=1.5)  # Beyond the bounds at times, so clipping is tested too.
    seeds = [5, 17, 99]
    result = rollout_returns(act, environment, seeds)
    env = make_env(environment)
    for i, seed in enumerate(seeds):
        observation, _ = env.reset(seed=seed)
        total, length, done = 0.0, 0, False
        while not done:
            action = np.clip(act(observation[None].astype(np.float32))[0], -1.0, 1.0)
            observation, reward, terminated, truncated, _ = env.step(action)
            total, length, done = total + float(reward), length + 1, terminated or truncated
        assert result.returns[i] == total
        assert result.lengths[i] == length
    if environment == "halfcheetah":
        assert (result.lengths == 1000).all()
    else:
        assert (result.lengths < 1000).all()
        assert len(set(result.lengths.tolist())) > 1


def test_same_seeds_same_returns_in_any_company() -> None:
    act = _policy(3, scale=1.0)
    first = rollout_returns(act, "Hopper-v5", [1, 2, 3])
    again = rollout_returns(act, "Hopper-v5", [3, 1])
    np.testing.assert_array_equal(first.returns[[2, 0]], again.returns)
    assert first.returns[0] != first.returns[1]


def test_policy_sees_only_running_episodes() -> None:
    seen: list[int] = []

    def act(observation: np.ndarray) -> np.ndarray:
        seen.append(len(observation))
        assert observation.dtype == np.float32
        return np.ones((len(observation), 3), dtype=np.float32)

    result = rollout_returns(act, "hopper", [0, 1, 2, 3])
    assert sum(seen) == result.lengths.sum()
    assert seen[0] == 4
    assert sorted(seen, reverse=True) == seen


def test_bad_policy_output_is_named() -> None:
    with pytest.raises(ValueError, match=r"\(2, 3\)"):
        rollout_returns(lambda observation: np.zeros((len(observation), 2)), "hopper", [0, 1])
    with pytest.raises(ValueError, match="finite"):
        rollout_returns(lambda observation: np.full((len(observation), 3), np.nan), "hopper", [0])

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest

from raydiff.evaluation.envs import environment_id, environment_spec, make_env


@pytest.mark.parametrize(
    ("environment", "sizes"), [("hopper", (11, 3)), ("halfcheetah", (17, 6)), ("walker2d", (17, 6))]
)
@pytest.mark.parametrize("version", ["v4", "v5"])
def test_sizes_bounds_and_limit(environment: str, sizes: tuple[int, int], version: str) -> None:
    spec = environment_spec(environment, version)
    assert (spec.observation_size, spec.action_size) == sizes
    assert spec.id == environment_id(environment, version)
    assert spec.max_episode_steps == 1000
    np.testing.assert_array_equal(spec.action_low, -np.ones(sizes[1]))
    np.testing.assert_array_equal(spec.action_high, np.ones(sizes[1]))
    assert spec.mujoco_version.count(".") >= 1


def test_names() -> None:
    assert environment_id("halfcheetah", "v4") == "HalfCheetah-v4"
    assert environment_id("walker2d", "v5") == "Walker2d-v5"
    for name, version in (("humanoid", "v4"), ("hopper", "v2")):
        with pytest.raises(ValueError, match="unknown environment"):
            environment_id(name, version)


def test_making_one_is_silent_and_leaves_no_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_env("halfcheetah", "v4")
    env.reset(seed=0)
    for step in range(1000):
        truncated = env.step(np.zeros(6, dtype=np.float32))[3]
        assert truncated == (step == 999)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []

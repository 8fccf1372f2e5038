from __future__ import annotations

import warnings
from pathlib import Path

import gymnasium
import numpy as np
import pytest

from raydiff.envs.registry import ALIASES, canonical, environment_spec, make_env, make_simulator, step_limit
from raydiff.errors import UserError


@pytest.mark.parametrize(
    ("name", "sizes"), [("Hopper", (11, 3)), ("HalfCheetah", (17, 6)), ("Walker2d", (17, 6))]
)  # fmt: skip
@pytest.mark.parametrize("version", ["v4", "v5"])
def test_sizes_bounds_and_limit(name: str, sizes: tuple[int, int], version: str) -> None:
    spec = environment_spec(f"{name}-{version}")
    assert (spec.observation_size, spec.action_size) == sizes
    assert spec.id == f"{name}-{version}"
    assert spec.max_episode_steps == 1000
    assert spec.reference == (name.lower() if version == "v4" else None)
    np.testing.assert_array_equal(spec.action_low, -np.ones(sizes[1]))
    np.testing.assert_array_equal(spec.action_high, np.ones(sizes[1]))
    assert spec.mujoco_version.count(".") >= 1


def test_names() -> None:
    assert canonical("halfcheetah") == "HalfCheetah-v4"
    assert canonical("maze2d-umaze") == "maze2d-umaze-v1"
    assert canonical("pen") == "pen-v1"
    assert canonical("Walker2d-v5") == "Walker2d-v5"
    assert canonical("PointMaze_UMaze-v3") == "PointMaze_UMaze-v3"  # Gymnasium-Robotics' own ids, too
    assert all(canonical(name) == name for name in ALIASES.values())
    with pytest.raises(UserError, match=r"no environment 'halfchetah'.*halfcheetah"):
        canonical("halfchetah")


def test_other_action_bounds_become_one() -> None:
    """Pendulum's torque is within ±2: an action of 0.5 is a torque of 1."""
    spec, env = environment_spec("Pendulum-v1"), make_simulator("Pendulum-v1")
    assert (spec.action_low, spec.action_high, spec.max_episode_steps, spec.reference) == (-1, 1, 200, None)
    env.reset(seed=0)
    env.step(np.array([0.5], np.float32))
    assert env.unwrapped.last_u == pytest.approx(1.0)  # type: ignore[attr-defined]


def test_goal_environments_are_flat() -> None:
    spec, env = environment_spec("PointMaze_UMaze-v3"), make_simulator("PointMaze_UMaze-v3")
    assert spec.observation_size == 6
    observation, _ = env.reset(seed=1)
    inner = env.unwrapped  # type: ignore[attr-defined]
    np.testing.assert_array_equal(observation[4:], inner.goal)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["CartPole-v1", "Blackjack-v1"])
def test_spaces_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=name):
        make_env(name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Hopper-v2", r"cannot be made here.*mujoco_py.*\)\. Newer versions are .*Hopper-v4, Hopper-v5\.$"),
        ("GymV21Environment-v0", r"shimmy.*Install what it needs, or use another one\.$"),
    ],
)
def test_an_environment_that_cannot_be_made_is_refused_in_one_paragraph(name: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as refused:
        make_simulator(name)
    assert "\n" not in str(refused.value)


def test_whatever_a_construction_raises_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some of Gymnasium-Robotics' models fail with a bare assertion on current MuJoCo."""

    def fail(**_: object) -> None:
        raise AssertionError

    gymnasium.register("Odd-v0", entry_point=fail)
    try:
        with pytest.raises(UserError, match=r"Odd-v0 .*\(AssertionError\)\. Install"):
            make_simulator("Odd-v0")
    finally:
        del gymnasium.registry["Odd-v0"]


@pytest.mark.parametrize("name", ["halfcheetah", "PointMaze_UMaze-v3"])
def test_making_one_is_silent_and_leaves_no_log(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = make_env(name)
    env.reset(seed=0)
    limit = step_limit(name)
    for step in range(limit):
        truncated = env.step(np.zeros(env.action_space.shape, dtype=np.float32))[3]
        assert truncated == (step == limit - 1)
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []

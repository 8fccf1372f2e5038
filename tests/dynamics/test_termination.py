"""Every rule against the simulator's own flags, exactly, on both sides of its bounds."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch

from raydiff.dynamics.termination import _RULES, _family, termination_of
from raydiff.envs.quiet import quiet_mujoco
from raydiff.envs.registry import make_simulator
from raydiff.errors import UserError

FALLING = ["Hopper-v4", "Walker2d-v4", "Ant-v4", "Humanoid-v4", "InvertedPendulum-v4", "InvertedDoublePendulum-v4"]
OTHER_VERSIONS = ["Hopper-v5", "Walker2d-v5", "Ant-v5", "ant-v2"]
ENDLESS = [
    "HalfCheetah-v4",
    "Swimmer-v4",
    "Reacher-v4",
    "Pusher-v5",
    "HumanoidStandup-v4",
    "Pendulum-v1",
    "maze2d-umaze-v1",
]
ROBOTICS = ["door-v1", "hammer-v1", "relocate-v1", "PointMaze_UMaze-v3", "AntMaze_UMaze-v4", "AdroitHandDoor-v1",
            "AdroitHandHammer-v1", "AdroitHandPen-v1", "AdroitHandRelocate-v1"]  # fmt: skip
BY_THEMSELVES = ["MountainCarContinuous-v0", "pen-v1"]


def flags(name: str, action: torch.Tensor, before: torch.Tensor, after: torch.Tensor) -> np.ndarray:
    return termination_of(name)(before, action, after).numpy()


def simulate(name: str, steps: int, shake: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Observations, actions, successors and the simulator's own terminals of random steps, started anew at each
    terminal; with ``shake`` from positions and velocities far from those of a reset."""
    rng = np.random.default_rng(0)
    with warnings.catch_warnings(), quiet_mujoco():
        warnings.simplefilter("ignore")
        env: Any = make_simulator(name)
        observation, _ = env.reset(seed=0)
        rows = []
        for step in range(steps):
            if shake and step % 2 == 0:
                base = env.unwrapped
                position = base.init_qpos + rng.normal(0, 0.15, base.init_qpos.shape)
                position[:3] += rng.normal(0, 0.5, len(position[:3]))
                base.set_state(position, rng.normal(0, 2.0, base.init_qvel.shape))
            action = rng.uniform(-1, 1, env.action_space.shape)
            if name.startswith("MountainCar"):
                action[:] = np.sign(observation[1])  # the way out
            successor, _, terminated, _, _ = env.step(action.astype(env.action_space.dtype))
            rows.append((observation, action, successor, terminated))
            observation = env.reset()[0] if terminated else successor
        env.close()
    before, actions, after, terminal = (np.asarray(column) for column in zip(*rows, strict=True))
    return before, actions, after, terminal.astype(bool)


def check(name: str, steps: int, shake: bool) -> np.ndarray:
    before, action, after, terminal = simulate(name, steps, shake)
    tensors = [torch.from_numpy(np.asarray(part, dtype=np.float64)) for part in (action, before, after)]
    np.testing.assert_array_equal(flags(name, *tensors), terminal)
    return terminal


@pytest.mark.parametrize("name", FALLING + OTHER_VERSIONS)
def test_falls_end_as_in_the_simulator(name: str) -> None:
    terminal = check(name, 300, shake=True)
    assert 20 < terminal.sum() < 280


@pytest.mark.parametrize("name", FALLING[:2])
def test_random_episodes_end_as_in_the_simulator(name: str) -> None:
    assert check(name, 1500, shake=False).sum() > 10


@pytest.mark.parametrize("name", BY_THEMSELVES)
def test_goals_and_drops_end_as_in_the_simulator(name: str) -> None:
    if not name.startswith("MountainCar"):
        pytest.importorskip("gymnasium_robotics")
    assert 0 < check(name, 400, shake=False).sum() < 400


@pytest.mark.parametrize("name", ENDLESS + ROBOTICS)
def test_endless_environments_never_end(name: str) -> None:
    if name in ROBOTICS:
        pytest.importorskip("gymnasium_robotics")
    assert not check(name, 100, shake=False).any()


def test_every_rule_is_tested() -> None:
    assert {_family(name) for name in FALLING + OTHER_VERSIONS + ENDLESS + ROBOTICS + BY_THEMSELVES} == set(_RULES)


def hopper(*changes: tuple[int, float]) -> torch.Tensor:
    state = torch.zeros(len(changes), 11)
    state[:, 0] = 1.25
    for row, (column, value) in enumerate(changes):
        state[row, column] = value
    return state


def test_hopper_is_bounded_on_both_sides() -> None:
    states = hopper((2, 0.0), (0, 0.7), (1, 0.2), (1, -0.2), (5, 99.0), (5, -99.0), (5, 101.0), (5, -101.0), (0, 1e9))
    states = torch.cat([states, hopper((0, torch.nan), (0, torch.inf), (10, torch.nan), (10, -torch.inf))])
    ended = flags("hopper", states[:, :3], states, states)
    expected = [False, True, True, True, False, False, True, True, False, True, True, True, True]
    np.testing.assert_array_equal(ended, expected)


@pytest.mark.parametrize("name", [*FALLING, "InvertedPendulum-v5"])
def test_states_that_are_not_finite_end_where_falls_do(name: str) -> None:
    states = torch.full((1, 27), torch.nan)
    assert bool(flags(name, states, states, states)[0]) is not name.startswith("InvertedDouble")


@pytest.mark.parametrize(
    ("name", "why"),
    [("antmaze-umaze-v2", "not observed"), ("kitchen-mixed-v0", "not observed"), ("BipedalWalker-v3", "no such rule"),
     ("FrankaKitchen-v1", "not observed"), ("HopperX-v1", "no such rule")],
)  # fmt: skip
def test_unknown_rules_are_refused(name: str, why: str) -> None:
    with pytest.raises(UserError, match=why) as caught:
        termination_of(name)
    assert name in str(caught.value)
    assert "generator.method=pgd" in str(caught.value)
    assert "walker2d" in str(caught.value)

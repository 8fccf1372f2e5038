"""MuJoCo put into the state that an observation tells (section I.3).

That needs observations that hold the whole state. Those of the mazes do; those of the walkers lack only the place
on the ground, on which neither dynamics nor reward depend. Hopper and Walker2d clip velocities to +-10; a state at
that limit cannot be set.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol, cast

import mujoco
import numpy as np

from raydiff.envs.maze2d import Maze2dEnv
from raydiff.envs.quiet import quiet_mujoco
from raydiff.envs.registry import canonical, make_env
from raydiff.errors import UserError

# Leading positions of the simulator that the observation leaves out, by family.
_HIDDEN = {"HalfCheetah": 1, "Hopper": 1, "Walker2d": 1, "Ant": 2, "ant": 2, "maze2d": 0, "antmaze": 0}
_VELOCITY_LIMIT = {"Hopper": 10.0, "Walker2d": 10.0}
_LIMIT_MARGIN = 1e-6
_BREAKDOWNS = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)


class Step(NamedTuple):
    """What one action led to: ``observation [S]``, the reward, and whether the episode would end there."""

    observation: np.ndarray
    reward: float
    terminal: bool


class Simulator(Protocol):
    """Anything that data can be held against."""

    def set_state(self, observation: np.ndarray) -> bool:
        """Go to the state of ``observation [S]``; False where the observation does not tell it."""
        ...

    def step(self, action: np.ndarray) -> Step | None:
        """Take the action ``[A]``; None where the simulation broke down."""
        ...


class MujocoSimulator:
    """One environment without its time limit; it goes on behind what would end an episode.

    ``environment`` is an id or alias. Raises ``UserError`` where it is not ``auditable``.
    """

    def __init__(self, environment: str) -> None:
        family = _family(environment)
        if family not in _HIDDEN:
            raise UserError(
                f"{environment}: data cannot be replayed here, because the observations do not hold the whole state of "
                "the simulator. Those of maze2d, antmaze, hopper, halfcheetah, walker2d and ant do. In a run, set "
                "audit.count=0."
            )
        self._env = cast(Any, make_env(environment).unwrapped)
        self._limit = _VELOCITY_LIMIT.get(family)
        self._hidden = _HIDDEN[family]
        self._positions = self._env.model.nq - self._hidden
        self._velocities = slice(self._positions, self._positions + self._env.model.nv)

    def set_state(self, observation: np.ndarray) -> bool:
        state = observation.astype(np.float64)
        if not np.isfinite(state).all() or (
            self._limit is not None and np.abs(state[self._velocities]).max() >= self._limit - _LIMIT_MARGIN
        ):
            return False
        if isinstance(self._env, Maze2dEnv):
            self._env.set_state(state)
            return True
        # Reset first: the solver's warm start, the clock and the controls are state too.
        mujoco.mj_resetData(self._env.model, self._env.data)
        position = np.concatenate([np.zeros(self._hidden), state[: self._positions]])
        with quiet_mujoco():
            self._env.set_state(position, state[self._velocities])
        return True

    def step(self, action: np.ndarray) -> Step | None:
        space = self._env.action_space
        position = self._env.data.qpos[:2].copy()
        with quiet_mujoco():
            observation, reward, terminal, _, _ = self._env.step(np.clip(action, space.low, space.high))
        # MuJoCo resets a simulation that blows up by itself and only counts it; the observation is then void.
        if any(self._env.data.warning[int(kind)].number for kind in _BREAKDOWNS):
            return None
        if isinstance(self._env, Maze2dEnv):
            # D4RL's maze data are labelled by the state acted in, its environment by the state reached.
            reward = self._env.maze.reward(position, self._env.dense)
        return Step(observation, float(reward), bool(terminal))

    def close(self) -> None:
        self._env.close()


def auditable(environment: str) -> bool:
    """Whether an environment's observations hold its whole state, so that a ``MujocoSimulator`` can be made for it."""
    return _family(environment) in _HIDDEN


def _family(environment: str) -> str:
    return canonical(environment).partition("-")[0]

"""How true synthetic data is: put the simulator into each generated state, replay the action, compare (section I.3).

That needs observations that hold the whole state. Those of the mazes do; those of the walkers lack only the place
on the ground, on which neither dynamics nor reward depend. Hopper and Walker2d clip velocities to +-10; a state at
that limit cannot be set and is left out and counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, cast

import mujoco
import numpy as np

from raydiff.envs.maze2d import IDS as MAZE2D_IDS
from raydiff.envs.maze2d import Maze2dEnv, maze_of
from raydiff.envs.quiet import quiet_mujoco
from raydiff.envs.registry import canonical, make_env
from raydiff.errors import UserError
from raydiff.types import Trajectories, Transitions

# Leading positions of the simulator that the observation leaves out, by family.
_HIDDEN = {"HalfCheetah": 1, "Hopper": 1, "Walker2d": 1, "Ant": 2, "ant": 2, "maze2d": 0, "antmaze": 0}
_VELOCITY_LIMIT = {"Hopper": 10.0, "Walker2d": 10.0}
_LIMIT_MARGIN = 1e-6
_TRIMMED_SHARE = 0.05


@dataclass(frozen=True)
class ErrorSummary:
    """Mean, median and mean without the largest 5 % of one error per transition; ``nan`` when there is none.

    A generated state may lie inside the ground, and the contact force then dominates a plain mean.
    """

    mean: float
    median: float
    trimmed_mean: float

    @staticmethod
    def of(errors: np.ndarray) -> ErrorSummary:
        if len(errors) == 0:
            return ErrorSummary(float("nan"), float("nan"), float("nan"))
        kept = np.sort(errors)[: max(1, len(errors) - int(_TRIMMED_SHARE * len(errors)))]
        return ErrorSummary(float(errors.mean()), float(np.median(errors)), float(kept.mean()))


@dataclass(frozen=True)
class AuditResult:
    """One-step truth of ``count`` transitions.

    ``dynamics_error``: squared error of the next observation over the data's variance, averaged over dimensions.
    ``persistence_error``: the same of the prediction that nothing changes. ``reward_error``: mean absolute.
    ``not_invertible``: share of the transitions left out because their state cannot be set in the simulator, or
    because a value of theirs is not finite; ``unstable``: share left out because the simulation broke down there.
    """

    count: int
    not_invertible: float
    unstable: float
    dynamics_error: ErrorSummary
    persistence_error: ErrorSummary
    reward_error: float

    @property
    def ratio(self) -> float:
        """Dynamics error over that of persistence, both trimmed means: 0 is the simulator, 1 knows nothing."""
        return self.dynamics_error.trimmed_mean / self.persistence_error.trimmed_mean if self.count else float("nan")

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON; what is undefined is ``None``."""
        return _without_nan({**asdict(self), "ratio": self.ratio})


@dataclass(frozen=True)
class ReplayResult:
    """Multi-step truth of ``count`` trajectories: mean squared error after ``1 .. H`` steps, ``raw [H]`` and
    ``normalized [H]`` (over the data's variance), and the same shares left out as in ``AuditResult``."""

    count: int
    not_invertible: float
    unstable: float
    raw: np.ndarray
    normalized: np.ndarray


def auditable(environment: str) -> bool:
    """Whether an environment's observations hold its whole state, so that an ``Auditor`` can be made for it."""
    return _family(environment) in _HIDDEN


def legal_share(environment: str, trajectories: Trajectories) -> float | None:
    """Share of the trajectories that never touch the inside of a wall or leave the maze; ``None`` where no maze is."""
    name = canonical(environment)
    if name not in MAZE2D_IDS or not len(trajectories):
        return None
    return float(maze_of(name).is_legal(trajectories.observation[..., :2]).all(axis=1).mean())


class Auditor:
    """One simulator to hold data against. Terminations and the time limit are ignored.

    ``environment`` is an id or alias. Raises ``UserError`` where it is not ``auditable``.
    """

    def __init__(self, environment: str) -> None:
        family = _family(environment)
        if family not in _HIDDEN:
            raise UserError(
                f"{environment}: synthetic data cannot be replayed here, because the observations do not hold the whole "
                f"state of the simulator. Set evaluation.audit=0."
            )
        self._env = cast(Any, make_env(environment).unwrapped)
        self._limit = _VELOCITY_LIMIT.get(family)
        self._hidden = _HIDDEN[family]
        self._positions = self._env.model.nq - self._hidden
        self._velocities = slice(self._positions, self._positions + self._env.model.nv)

    def audit(self, transitions: Transitions, variance: np.ndarray) -> AuditResult:
        """Replay each transition for one step; ``variance [S]`` is that of the real observations."""
        scale = _scale(variance)
        usable = self._invertible(transitions.observation) & np.isfinite(transitions.rows()).all(axis=1)
        states = transitions.observation[usable]
        simulated = np.empty(states.shape)
        rewards, stable = np.empty(len(states)), np.empty(len(states), dtype=bool)
        with quiet_mujoco():
            for i, (state, action) in enumerate(zip(states, transitions.action[usable], strict=True)):
                self._set_state(state)
                simulated[i], rewards[i] = self._step(action)
                stable[i] = self._stable()
        simulated, rewards, states = simulated[stable], rewards[stable], states[stable]
        claimed = transitions.next_observation[usable][stable]
        claimed_reward = transitions.reward[usable][stable]
        total = max(1, len(transitions))
        return AuditResult(
            count=int(stable.sum()),
            not_invertible=float((~usable).sum() / total),
            unstable=float((~stable).sum() / total),
            dynamics_error=ErrorSummary.of(((claimed - simulated) ** 2 / scale).mean(axis=1)),
            persistence_error=ErrorSummary.of(((states - simulated) ** 2 / scale).mean(axis=1)),
            reward_error=float(np.abs(claimed_reward - rewards).mean()) if stable.any() else float("nan"),
        )

    def replay_error(self, trajectories: Trajectories, variance: np.ndarray) -> ReplayResult:
        """Set the simulator to each first state, replay all actions, compare every later observation.

        Rows behind a terminal are not compared; a step with no trajectory left has error ``nan``.
        """
        scale, horizon = _scale(variance), trajectories.length - 1
        usable = self._invertible(trajectories.observation[:, 0]) & np.isfinite(trajectories.rows).all(axis=(1, 2))
        rows, valid = trajectories.rows[usable], trajectories.valid()[usable]
        size, actions = trajectories.observation_size, trajectories.action[usable]
        squared = np.full((len(rows), horizon, size), np.nan)
        stable = np.ones(len(rows), dtype=bool)
        with quiet_mujoco():
            for i in range(len(rows)):
                self._set_state(rows[i, 0, :size])
                for t in range(int(valid[i].sum())):
                    squared[i, t] = (rows[i, t + 1, :size] - self._step(actions[i, t])[0]) ** 2
                stable[i] = self._stable()
        total = max(1, len(trajectories))
        return ReplayResult(
            count=int(stable.sum()),
            not_invertible=float((~usable).sum() / total),
            unstable=float((~stable).sum() / total),
            raw=_mean_over_trajectories(squared[stable].mean(axis=2)),
            normalized=_mean_over_trajectories((squared[stable] / scale).mean(axis=2)),
        )

    def close(self) -> None:
        self._env.close()

    def _invertible(self, observation: np.ndarray) -> np.ndarray:
        """Which states ``[n]`` can be set in the simulator: those with no velocity at the clip."""
        if self._limit is None:
            return np.ones(len(observation), dtype=bool)
        return (np.abs(observation[:, self._velocities]) < self._limit - _LIMIT_MARGIN).all(axis=1)

    def _set_state(self, observation: np.ndarray) -> None:
        state = observation.astype(np.float64)
        if isinstance(self._env, Maze2dEnv):
            self._env.set_state(state)
            return
        # Reset first: the solver's warm start, the clock and the controls are state too.
        mujoco.mj_resetData(self._env.model, self._env.data)
        position = np.concatenate([np.zeros(self._hidden), state[: self._positions]])
        self._env.set_state(position, state[self._velocities])

    def _step(self, action: np.ndarray) -> tuple[np.ndarray, float]:
        space = self._env.action_space
        position = self._env.data.qpos[:2].copy()
        observation, reward, _, _, _ = self._env.step(np.clip(action, space.low, space.high))
        if isinstance(self._env, Maze2dEnv):
            # D4RL's maze data are labelled by the state acted in, its environment by the state reached.
            reward = self._env.maze.reward(position, self._env.dense)
        return observation, float(reward)

    def _stable(self) -> bool:
        """MuJoCo resets a simulation that blows up by itself and only counts it; the observation is then void."""
        kinds = (mujoco.mjtWarning.mjWARN_BADQPOS, mujoco.mjtWarning.mjWARN_BADQVEL, mujoco.mjtWarning.mjWARN_BADQACC)
        return not any(self._env.data.warning[int(kind)].number for kind in kinds)


def _family(environment: str) -> str:
    return canonical(environment).partition("-")[0]


def _scale(variance: np.ndarray) -> np.ndarray:
    scale = np.asarray(variance, dtype=np.float64)
    return np.where(scale > 0, scale, 1.0)


def _mean_over_trajectories(errors: np.ndarray) -> np.ndarray:
    present = np.isfinite(errors)
    count = present.sum(axis=0)
    total = np.where(present, errors, 0.0).sum(axis=0)
    return np.divide(total, count, out=np.full(errors.shape[1], np.nan), where=count > 0)


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    return None if isinstance(value, float) and np.isnan(value) else value

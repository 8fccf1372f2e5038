"""D4RL's Adroit: a hand with 24 joints turns a pen, opens a door, drives in a nail or carries a ball.

The simulators, their observations and their starts are Gymnasium-Robotics' (``AdroitHand*-v1``), whose compiled
models equal D4RL's. Rewards and endings are D4RL's (``d4rl/hand_manipulation_suite``): Gymnasium-Robotics 1.2.1 to
1.4.2 reward the palm for keeping away from door, hammer and ball, and go on when the pen has been dropped.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

import gymnasium
import numpy as np
from gymnasium.wrappers import TimeLimit

from raydiff.envs.quiet import load_gymnasium_robotics, quiet_mujoco
from raydiff.errors import UserError

STEP_LIMITS = {"pen-v1": 100, "door-v1": 200, "hammer-v1": 200, "relocate-v1": 200}
IDS = tuple(STEP_LIMITS)

DIFFERENCES = (
    "MuJoCo is the installed release, where D4RL ran 2.x by mujoco-py; compiled models, observations, rewards, endings "
    "and limits are D4RL's. Replayed action by action on MuJoCo 3.17, the 25 human door demonstrations return 809 on "
    "average, against 794 as recorded.",
    "Starts are drawn from D4RL's distributions by the generator of reset(seed=...): equal seeds give other episodes.",
)


class Adroit(gymnasium.Env):
    """D4RL's task around one of Gymnasium-Robotics' simulators. Actions ``[A]`` in ±1 set the joints' targets.

    Observations begin with the joint angles; sizes of observation and action are pen 45 and 24, door 39 and 28,
    hammer 46 and 26, relocate 39 and 30. Only a dropped pen ends an episode.
    """

    def __init__(self, task: str, render_mode: str | None = None) -> None:
        load_gymnasium_robotics()
        module = import_module(f"gymnasium_robotics.envs.adroit_hand.adroit_{task}")
        self.simulator = getattr(module, f"AdroitHand{task.capitalize()}Env")(render_mode=render_mode)
        self.observation_space = self.simulator.observation_space
        self.action_space = self.simulator.action_space
        self.metadata = self.simulator.metadata
        self.render_mode = render_mode
        self._reward = _REWARDS[task]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[np.ndarray, dict]:
        super().reset(seed=seed)
        return self.simulator.reset(seed=seed, options=options)

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        observation, _, _, _, info = self.simulator.step(action)
        reward, terminated = self._reward(observation, self.simulator)
        return observation, float(reward), terminated, False, info

    def render(self) -> Any:
        return self.simulator.render()

    def close(self) -> None:
        self.simulator.close()


def make(name: str, render_mode: str | None = None) -> gymnasium.Env:
    """The environment that D4RL evaluates ``pen-*-v1`` and the like in, with its time limit.

    Raises ``UserError`` for an unknown id and where gymnasium-robotics is missing.
    """
    limit = step_limit(name)
    with quiet_mujoco():
        return TimeLimit(Adroit(name.partition("-")[0], render_mode), limit)


def step_limit(name: str) -> int:
    """Steps after which D4RL cuts an episode."""
    if name not in STEP_LIMITS:
        raise UserError(f"{name!r} is not an Adroit task. They are {', '.join(IDS)}.")
    return STEP_LIMITS[name]


# Rewards [reward, terminated] of the state after a step. Thresholds and weights: the step() of D4RL's *_v0.py.


def _pen(observation: np.ndarray, simulator: Any) -> tuple[float, bool]:
    position, orientation, desired = observation[24:27], observation[33:36], observation[36:39]
    distance = np.linalg.norm(observation[39:42])
    similarity = orientation @ desired
    dropped = bool(position[2] < 0.075)
    near = distance < 0.075
    bonus = 10 * (near and similarity > 0.9) + 50 * (near and similarity > 0.95)
    return -distance + similarity + bonus - 5 * dropped, dropped


def _door(observation: np.ndarray, simulator: Any) -> tuple[float, bool]:
    angle, to_handle = observation[28], observation[35:38]
    speed = simulator.data.qvel
    cost = 0.1 * np.linalg.norm(to_handle) + 0.1 * (angle - 1.57) ** 2 + 1e-5 * (speed @ speed)
    return 2 * (angle > 0.2) + 8 * (angle > 1.0) + 10 * (angle > 1.35) - cost, False


def _hammer(observation: np.ndarray, simulator: Any) -> tuple[float, bool]:
    palm, hammer, nail = observation[33:36], observation[36:39], observation[42:45]
    sites = simulator.data.site_xpos
    head, goal = sites[simulator.tool_site_id], sites[simulator.goal_site_id]
    out = np.linalg.norm(nail - goal)
    cost = 0.1 * np.linalg.norm(palm - hammer) + np.linalg.norm(head - nail) + 10 * out
    lifted = hammer[2] > 0.04 and head[2] > 0.04
    bonus = 2 * lifted + 25 * (out < 0.020) + 75 * (out < 0.010)
    return bonus - cost - 1e-2 * np.linalg.norm(simulator.data.qvel), False


def _relocate(observation: np.ndarray, simulator: Any) -> tuple[float, bool]:
    palm_to_ball, palm_to_target, ball_to_target = np.linalg.norm(observation[30:39].reshape(3, 3), axis=1)
    reward = -0.1 * palm_to_ball + 10 * (ball_to_target < 0.1) + 20 * (ball_to_target < 0.05)
    if simulator.data.xpos[simulator.obj_body_id, 2] > 0.04:
        reward += 1.0 - 0.5 * palm_to_target - 0.5 * ball_to_target
    return reward, False


_REWARDS = {"pen": _pen, "door": _door, "hammer": _hammer, "relocate": _relocate}

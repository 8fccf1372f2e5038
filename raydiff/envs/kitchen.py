"""D4RL's Franka kitchen: a robot arm that has four things to set right, each worth 1 once.

The simulated kitchen is the one that Gymnasium-Robotics carries (``FrankaKitchen-v1``), made to collide as D4RL's
does; controls, noise, goals, rewards and observations are D4RL's (``d4rl/kitchen``). Gymnasium-Robotics' own code
around it has D4RL's observation noise a tenth to a two-hundredth as strong, gives dictionaries, and does not start
on MuJoCo releases whose enumerations no longer equal integers from the right (3.17, 4.0).
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import gymnasium
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from raydiff.envs.quiet import quiet_mujoco
from raydiff.errors import UserError

GOALS: dict[str, tuple[slice, tuple[float, ...]]] = {
    "bottom burner": (slice(11, 13), (-0.88, -0.01)),
    "light switch": (slice(17, 19), (-0.69, -0.05)),
    "slide cabinet": (slice(19, 20), (0.37,)),
    "microwave": (slice(22, 23), (-0.75,)),
    "kettle": (slice(23, 30), (-0.23, 0.75, 1.62, 0.99, 0.0, 0.0, -0.06)),
}
"""Per subtask: which of the 30 positions have to come near which values (``kitchen_envs.py``)."""

DONE_WITHIN = 0.3
_SLIDER = ("microwave", "kettle", "light switch", "slide cabinet")
TASKS = {
    "kitchen-complete-v0": _SLIDER,
    "kitchen-partial-v0": _SLIDER,
    "kitchen-mixed-v0": ("microwave", "kettle", "bottom burner", "light switch"),
}
"""What D4RL evaluates each dataset on; complete and partial differ only in their data."""

IDS = tuple(TASKS)
STEP_LIMIT = 280
ROBOT = 9
"""Joints of the arm and its fingers: the first of the 30 positions, and the actions."""

_POSITIONS = 30
_ACTION_SPEED = 2.0
_NOISE_RATIO = 0.1
_START = np.array(
    [0.148388023, -1.76848573, 1.84390296, -2.4768576, 0.260252026, 0.712533105, 1.59515394, 0.0479267505, 0.0371350919,
     -2.6627985e-4, -5.18043486e-5, 3.1287722e-5, -4.51199853e-5, -3.90842156e-6, -4.22629655e-5, 6.28065475e-5,
     4.04984708e-5, 4.62730939e-4, -2.26906415e-4, -4.65501369e-4, -6.44129196e-3, -1.77048263e-3, 1.08009684e-3,
     -0.26939744, 0.350383255, 1.61944683, 1.00618764, 4.06395120e-3, -6.62095997e-3, -2.68278933e-4]
)  # fmt: skip

DIFFERENCES = (
    "MuJoCo is the installed release, where D4RL ran 2.x by dm_control; the model behaves as D4RL's does on the same "
    "release, step for step.",
    "Observation noise has D4RL's size but comes from the generator of reset(seed=...): equal seeds give other noise.",
    "An episode's return counts each subtask once, 4 at most, as in D4RL; the rewards stored in D4RL's datasets count "
    "at every step how many subtasks are done (relabelled without removing them), so that dataset returns are larger.",
)


class Kitchen(MujocoEnv):
    """Observations ``[60]``: nine positions of the robot, 21 of the objects, both with noise, and the 30 goal
    positions (zero where nothing is asked). Actions ``[9]`` in ±1 are joint speeds of up to 2 rad/s.

    The reward is the number of subtasks done for the first time; the episode ends with the last one.
    """

    metadata = MujocoEnv.metadata | {
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"],
        "render_fps": 12,
    }

    def __init__(self, tasks: tuple[str, ...], render_mode: str | None = None) -> None:
        assets = _assets()
        observations = Box(-np.inf, np.inf, (2 * _POSITIONS,), np.float64)
        camera: dict[str, Any] = {
            "distance": 2.2,
            "lookat": np.array([-0.2, 0.5, 2.0]),
            "azimuth": 70.0,
            "elevation": -35.0,
        }
        model = assets / "kitchen_assets" / "kitchen_env_model.xml"
        super().__init__(str(model), 40, observations, render_mode, default_camera_config=camera)
        self.action_space = Box(-1.0, 1.0, (ROBOT,), np.float32)
        self.tasks = tasks
        self.pending = set(tasks)
        self.goal = np.zeros(_POSITIONS)
        for task in tasks:
            where, values = GOALS[task]
            self.goal[where] = values
        bounds, amplitudes = _joint_specs(assets / "franka_assets" / "franka_config.xml")
        self._low, self._high = bounds[:ROBOT].T
        self._noise = _NOISE_RATIO * amplitudes
        self._observed = _START

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model, data = super()._initialize_simulation()
        # The robot's pedestal is only drawn in D4RL (class panda_viz), but solid in Gymnasium-Robotics.
        pedestal = (model.geom_type == int(mujoco.mjtGeom.mjGEOM_CYLINDER)) & (model.geom_size[:, 1] == 0.9)
        model.geom_contype[pedestal] = 0
        model.geom_conaffinity[pedestal] = 0
        return model, data

    def reset_model(self) -> np.ndarray:
        self.pending = set(self.tasks)
        qpos = _START.copy()
        # MuJoCo 2 wrote the unit quaternion back to qpos, hence into D4RL's observations; MuJoCo 3 does not.
        qpos[26:30] /= np.linalg.norm(qpos[26:30])
        self.set_state(qpos, np.zeros(self.model.nv))
        return self._observation()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.float64, bool, bool, dict[str, np.float64]]:
        # The target is taken from the noisy observation, as D4RL's Robot_VelAct does.
        target = self._observed[:ROBOT] + _ACTION_SPEED * np.clip(action, -1.0, 1.0) * self.dt
        self.do_simulation(np.clip(target, self._low, self._high), self.frame_skip)
        observation = self._observation()
        done = [task for task in self.tasks if task in self.pending and self._is_done(task)]
        self.pending.difference_update(done)
        return observation, np.float64(len(done)), not self.pending, False, {}

    def _is_done(self, task: str) -> bool:
        where, values = GOALS[task]
        return bool(np.linalg.norm(self._observed[where] - values) < DONE_WITHIN)

    def _observation(self) -> np.ndarray:
        self._observed = self.data.qpos + self._noise * self.np_random.uniform(-1.0, 1.0, _POSITIONS)
        return np.concatenate([self._observed, self.goal])


def make(name: str, render_mode: str | None = None) -> gymnasium.Env:
    """The environment that D4RL evaluates ``kitchen-*-v0`` in, with its time limit.

    Raises ``UserError`` for an unknown id and where gymnasium-robotics is missing.
    """
    limit = step_limit(name)
    with quiet_mujoco():
        return TimeLimit(Kitchen(TASKS[name], render_mode), limit)


def step_limit(name: str) -> int:
    """Steps after which D4RL cuts an episode."""
    if name not in TASKS:
        raise UserError(f"{name!r} is not a kitchen task. They are {', '.join(IDS)}.")
    return STEP_LIMIT


def _assets() -> Path:
    """Where gymnasium-robotics keeps the kitchen; its code stays unused."""
    package = find_spec("gymnasium_robotics")
    if package is None or package.origin is None:
        raise UserError(
            "The kitchen's model is part of gymnasium-robotics, which is not installed. Install it with "
            "pip install 'gymnasium-robotics>=1.3,<2'."
        )
    return Path(package.origin).parent / "envs" / "assets" / "kitchen_franka"


def _joint_specs(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Bounds ``[30, 2]`` of the commanded positions and noise amplitudes ``[30]``, from the robot's configuration."""
    root = ElementTree.parse(path).getroot()
    joints = [root.find(f"qpos{i}") for i in range(_POSITIONS)]
    bounds = [[float(x) for x in joint.attrib["pos_bound"].split()] for joint in joints if joint is not None]
    amplitudes = [float(joint.attrib["pos_noise_amp"]) for joint in joints if joint is not None]
    return np.array(bounds), np.array(amplitudes)

"""D4RL's AntMaze: an ant that has to walk to the far end of a maze, rewarded only on arrival.

The maze, the goal, the ant and the time step are D4RL's (``antmaze-*-v2``; ``d4rl/locomotion``): the ant of
Gymnasium with weaker motors, softer contacts and steps of 0.1 s. Gymnasium-Robotics' AntMaze is another task: its
motors are five times as strong, its steps half as long, and its maze is D4RL's mirror image.
"""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import gymnasium.envs.mujoco
import mujoco
import numpy as np
from gymnasium.envs.mujoco import MujocoEnv
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from raydiff.envs.quiet import quiet_mujoco
from raydiff.errors import UserError

CELL = 4.0
"""Width of a cell in metres; the centre of the start cell, row 1 and column 1, is the origin."""

WALL_HEIGHT = 2.0
GOAL_RADIUS = 0.5
GOAL_NOISE = (0.25 * CELL, 0.125 * CELL)
"""The goal is the centre of its cell plus, along each axis, two uniform draws from zero to these."""

MAZES = {
    "umaze": ("#####", "#R  #", "### #", "#G  #", "#####"),
    "medium": (
        "########",
        "#R ##  #",
        "#  #   #",
        "##   ###",
        "#  #   #",
        "# #  # #",
        "#   # G#",
        "########",
    ),
    "large": (
        "############",
        "#R   #     #",
        "# ## # # # #",
        "#      #   #",
        "# #### ### #",
        "#  # #     #",
        "## # # # ###",
        "#  #   # G #",
        "############",
    ),
}
"""Walls ``#``, start ``R`` and goal ``G``; rows run along y, columns along x."""

IDS = tuple(
    f"antmaze-{maze}-v2"
    for maze in ("umaze", "umaze-diverse", "medium-play", "medium-diverse", "large-play", "large-diverse")
)
_STEP_LIMITS = {"umaze": 700, "medium": 1000, "large": 1000}
_ANT = Path(gymnasium.envs.mujoco.__file__).parent / "assets" / "ant.xml"

DIFFERENCES = (
    "MuJoCo is the installed release, where D4RL ran 2.x by mujoco-py; maze, ant, time step and rules are D4RL's. "
    "MuJoCo of that time approximated the mass of capsules: by its rule the ant weighed 0.879 kg, now 0.911 kg.",
    "Start and goal are drawn from D4RL's distributions by the generator of reset(seed=...); D4RL drew goals from "
    "NumPy's global generator, so that equal seeds give other goals.",
)


class AntMaze(MujocoEnv):
    """Observations ``[29]``: position (x, y, z), quaternion and eight joint angles, then the 14 velocities. The goal
    is not observed. Actions ``[8]`` in ±1 are torques of up to 30 N m.

    The reward is 1 within ``GOAL_RADIUS`` of the goal, which ends the episode, and 0 elsewhere; a fall ends nothing.
    """

    metadata = MujocoEnv.metadata | {
        "render_modes": ["human", "rgb_array", "depth_array", "rgbd_tuple"],
        "render_fps": 10,
    }

    def __init__(self, maze: str, render_mode: str | None = None) -> None:
        self.maze = MAZES[maze]
        observations = Box(-np.inf, np.inf, (29,), np.float64)
        super().__init__(str(_ANT), 5, observations, render_mode, default_camera_config={"distance": 40.0})
        self.goal = cell_centre(self.maze, "G")

    def _initialize_simulation(self) -> tuple[mujoco.MjModel, mujoco.MjData]:
        model = mujoco.MjModel.from_xml_string(_model(self.maze))
        return model, mujoco.MjData(model)

    def reset_model(self) -> np.ndarray:
        draw = self.np_random.uniform
        goal = cell_centre(self.maze, "G") + draw(0, GOAL_NOISE[0], 2) + draw(0, GOAL_NOISE[1], 2)
        self.goal = np.maximum(goal, 0.0)
        qpos = self.init_qpos + draw(-0.1, 0.1, self.model.nq)
        # MuJoCo 2 wrote the unit quaternion back to qpos, hence into D4RL's observations; MuJoCo 3 does not.
        qpos[3:7] /= np.linalg.norm(qpos[3:7])
        self.set_state(qpos, self.init_qvel + 0.1 * self.np_random.standard_normal(self.model.nv))
        return self._observation()

    def step(self, action: np.ndarray) -> tuple[np.ndarray, np.float64, bool, bool, dict[str, np.float64]]:
        self.do_simulation(np.clip(action, -1.0, 1.0), self.frame_skip)
        arrived = bool(np.linalg.norm(self.data.qpos[:2] - self.goal) <= GOAL_RADIUS)
        return self._observation(), np.float64(arrived), arrived, False, {}

    def _observation(self) -> np.ndarray:
        return np.concatenate([self.data.qpos, self.data.qvel])


def cell_centre(maze: tuple[str, ...], mark: str) -> np.ndarray:
    """``[2]`` x and y in metres of the one cell that is marked so."""
    row = next(i for i, line in enumerate(maze) if mark in line)
    return CELL * np.array([maze[row].index(mark) - 1.0, row - 1.0])


def make(name: str, render_mode: str | None = None) -> gymnasium.Env:
    """The environment that D4RL evaluates an id in, with its time limit. Raises ``UserError`` for an unknown one.

    The ids of one maze share it: play and diverse say how their data were collected.
    """
    with quiet_mujoco():
        return TimeLimit(AntMaze(_maze(name), render_mode), step_limit(name))


def step_limit(name: str) -> int:
    """Steps after which D4RL cuts an episode."""
    return _STEP_LIMITS[_maze(name)]


def _maze(name: str) -> str:
    if name not in IDS:
        raise UserError(f"{name!r} is not an AntMaze. They are {', '.join(IDS)}.")
    return name.split("-")[1]


def _model(maze: tuple[str, ...]) -> str:
    """MJCF of D4RL's ant (``d4rl/locomotion/assets/ant.xml``) among the walls of a maze."""
    root = ElementTree.parse(_ANT).getroot()
    _first(root, "option").set("timestep", "0.02")
    contact = _first(root, "default/geom")
    contact.set("solref", ".02 1")
    contact.set("solimp", ".8 .8 .01")
    for motor in root.iterfind("actuator/motor"):
        motor.set("gear", "30")
    world = _first(root, "worldbody")
    size = f"{CELL / 2} {CELL / 2} {WALL_HEIGHT / 2}"
    for row, line in enumerate(maze):
        for column in (column for column, mark in enumerate(line) if mark == "#"):
            x, y = CELL * (column - 1), CELL * (row - 1)
            wall = {"name": f"wall_{row}_{column}", "type": "box", "pos": f"{x} {y} {WALL_HEIGHT / 2}", "size": size}
            ElementTree.SubElement(world, "geom", wall | {"conaffinity": "1", "rgba": ".7 .5 .3 1"})
    return ElementTree.tostring(root, encoding="unicode")


def _first(root: ElementTree.Element, path: str) -> ElementTree.Element:
    element = root.find(path)
    assert element is not None, f"Gymnasium's ant.xml has no {path}"
    return element

"""D4RL's maze2d: a ball is pushed through a maze towards a goal that never moves, in D4RL's own coordinates.

An observation ``[x, y, vx, vy]`` is the whole state: x counts the rows of the layout and y its columns. D4RL puts
the ball's body at (1.2, 1.2) and the wall of cell (r, c) at (r + 1, c + 1) (d4rl/pointmaze/maze_model.py), so that
this wall spans [r - 0.7, r + 0.3] x [c - 0.7, c + 0.3] here, although goals and starts are at whole numbers.
Gymnasium-Robotics' PointMaze is the same ball in the same layouts, turned by a quarter and centred elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from math import exp, hypot
from typing import Any

import gymnasium
import mujoco
import numpy as np
from gymnasium.spaces import Box
from gymnasium.wrappers import TimeLimit

from raydiff.errors import UserError

GOAL_RADIUS = 0.5
WALL_START = -0.7
"""Where the wall of cell 0 begins, along both axes; it is 1 wide."""

DIFFERENCES = (
    "D4RL's layouts, coordinates, rewards, starts and step limits on current MuJoCo, where D4RL used mujoco-py: "
    "contacts with walls differ slightly.",
    "Scores may exceed 100: the published reference controller keeps its first episode's path for all others, and "
    "one that plans each episode anew reaches 144, 156 and 206 in umaze, medium and large.",
)
_NOISE = 0.1
_VELOCITY_LIMIT = 5.0


@dataclass(frozen=True)
class Maze:
    """A layout (``#`` wall, ``O`` empty, ``G`` goal; one string per row) and its limit on the steps of an episode."""

    name: str
    layout: tuple[str, ...]
    limit: int

    @cached_property
    def walls(self) -> np.ndarray:
        """Which cells ``[rows, columns]`` are walls."""
        return np.array([[tile == "#" for tile in row] for row in self.layout])

    @cached_property
    def goal(self) -> np.ndarray:
        """The fixed goal ``[2]``: the whole numbers of its cell."""
        return np.argwhere([[tile == "G" for tile in row] for row in self.layout])[0].astype(np.float64)

    @cached_property
    def cells(self) -> np.ndarray:
        """Cells ``[n, 2]`` that starts and targets are drawn from, in D4RL's order: the empty ones, then the goal."""
        empty = np.argwhere([[tile == "O" for tile in row] for row in self.layout])
        return np.concatenate([empty.astype(np.float64), self.goal[None]])

    def is_legal(self, position: np.ndarray) -> np.ndarray:
        """Which positions ``[..., 2]`` of the ball's centre are outside all walls and inside the maze: ``[...]``."""
        position = np.asarray(position, dtype=np.float64)
        shifted = np.where(np.isfinite(position), position - WALL_START, -1.0)
        inside = np.asarray(((shifted >= 0) & (shifted < self.walls.shape)).all(axis=-1))
        cell = np.where(inside[..., None], shifted, 0.0).astype(np.int64)
        return np.asarray(inside & ~self.walls[cell[..., 0], cell[..., 1]])

    def reward(self, position: np.ndarray, dense: bool) -> np.ndarray:
        """Rewards ``[...]`` of positions ``[..., 2]``: ``exp(-distance)``, or 1 within 0.5 of the goal, else 0."""
        distance = np.linalg.norm(np.asarray(position, dtype=np.float64) - self.goal, axis=-1)
        return np.exp(-distance) if dense else (distance <= GOAL_RADIUS).astype(np.float64)


MAZES = {
    maze.name: maze
    for maze in (
        Maze("umaze", ("#####", "#GOO#", "###O#", "#OOO#", "#####"), 300),
        Maze(
            "medium",
            ("########", "#OO##OO#", "#OO#OOO#", "##OOO###", "#OO#OOO#", "#O#OO#O#", "#OOO#OG#", "########"),
            600,
        ),
        Maze(
            "large",
            ("############", "#OOOO#OOOOO#", "#O##O#O#O#O#", "#OOOOOO#OOO#", "#O####O###O#", "#OO#O#OOOOO#",
             "##O#O#O#O###", "#OO#OOO#OGO#", "############"),
            800,
        ),
    )
}  # fmt: skip
IDS = tuple(f"maze2d-{name}{dense}-v1" for name in MAZES for dense in ("", "-dense"))


def maze_of(name: str) -> Maze:
    """The maze of an id such as ``maze2d-umaze-dense-v1``. Raises ``UserError`` for any other name."""
    if name not in IDS:
        raise UserError(f"{name!r} is not a maze. The mazes are {', '.join(IDS)}.")
    return MAZES[name.split("-")[1]]


def make(name: str) -> gymnasium.Env:
    """The environment of an id, cut after the maze's limit of steps. Raises ``UserError`` for an unknown one."""
    maze = maze_of(name)
    return TimeLimit(Maze2dEnv(maze, dense=name.endswith("-dense-v1")), maze.limit)


def step_limit(name: str) -> int:
    """Steps after which an episode is cut."""
    return maze_of(name).limit


class Maze2dEnv(gymnasium.Env):
    """The maze without a limit on steps; it never terminates.

    Actions ``[2]`` are forces, clipped to ±1; a step is 0.01 s. The reward is that of the state reached.
    """

    def __init__(self, maze: Maze, dense: bool = False) -> None:
        self.maze = maze
        self.dense = dense
        self.observation_space = Box(-np.inf, np.inf, (4,), np.float64)
        self.action_space = Box(-1.0, 1.0, (2,), np.float32)
        self.model = mujoco.MjModel.from_xml_string(_mjcf(maze))
        self.data = mujoco.MjData(self.model)
        # Views that stay those of the simulator's memory: asking MjData for them anew costs as much as a step.
        self._position, self._velocity, self._control = self.data.qpos, self.data.qvel, self.data.ctrl
        self._goal = (float(maze.goal[0]), float(maze.goal[1]))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[np.ndarray, dict[str, Any]]:
        """Start within ±0.1 of a random free cell's numbers, with velocities of standard deviation 0.1."""
        super().reset(seed=seed)
        cell = self.maze.cells[self.np_random.integers(len(self.maze.cells))]
        position = cell + self.np_random.uniform(-_NOISE, _NOISE, size=2)
        self.set_state(np.concatenate([position, _NOISE * self.np_random.standard_normal(2)]))
        return self._observation(), {}

    def set_state(self, observation: np.ndarray) -> None:
        """Put the ball where ``observation [4]`` says, exactly, and forget the solver's warm start."""
        mujoco.mj_resetData(self.model, self.data)
        self._position[:] = observation[:2]
        self._velocity[:] = observation[2:]

    def step(self, action: np.ndarray) -> tuple[np.ndarray, float, bool, bool, dict[str, Any]]:
        np.clip(action, -1.0, 1.0, out=self._control)
        # Before the step, not after it: an observed velocity may be a little beyond the limit, as in D4RL.
        np.clip(self._velocity, -_VELOCITY_LIMIT, _VELOCITY_LIMIT, out=self._velocity)
        mujoco.mj_step(self.model, self.data)
        observation = self._observation()
        distance = hypot(observation[0] - self._goal[0], observation[1] - self._goal[1])
        reward = exp(-distance) if self.dense else float(distance <= GOAL_RADIUS)
        return observation, reward, False, False, {}

    def _observation(self) -> np.ndarray:
        return np.concatenate((self._position, self._velocity))


def _mjcf(maze: Maze) -> str:
    """D4RL's model, without the ground and the looks: nothing can move across the ground, so it never acts."""
    walls = "".join(
        f'<geom type="box" pos="{row + 1} {column + 1} 0" size="0.5 0.5 0.2"/>'
        for row, column in np.argwhere(maze.walls)
    )
    return f"""<mujoco model="{maze.name}">
  <compiler inertiafromgeom="true" angle="radian"/>
  <option timestep="0.01" gravity="0 0 0" iterations="20" integrator="Euler"/>
  <default>
    <joint type="slide" damping="1" limited="false"/>
    <geom friction="0.5 0.1 0.1" density="1000" margin="0.002" condim="1" contype="2" conaffinity="1"/>
    <motor ctrlrange="-1 1" ctrllimited="true" gear="100"/>
  </default>
  <worldbody>
    <body name="particle" pos="1.2 1.2 0">
      <geom type="sphere" size="0.1" contype="1"/>
      <joint name="x" axis="1 0 0"/>
      <joint name="y" axis="0 1 0"/>
    </body>
    {walls}
  </worldbody>
  <actuator><motor joint="x"/><motor joint="y"/></actuator>
</mujoco>"""

"""D4RL's maze2d data: a controller walks from one random target to the next and is never set back.

The procedure is that of D4RL's generate_maze2d_datasets.py and relabel_maze2d_rewards.py, the controller that of
d4rl/pointmaze/waypoint_controller.py: a path over the cells by Q-iteration, followed by a PD law.
"""

from __future__ import annotations

from collections.abc import Callable
from math import hypot

import numpy as np

from raydiff.envs.maze2d import Maze, Maze2dEnv, make, maze_of
from raydiff.errors import UserError
from raydiff.seeds import key_seed

Progress = Callable[[int, int], None]
Point = tuple[float, float]
Cell = tuple[int, int]

_GAIN = 10.0
_REACHED = 0.1  # both a distance and a displacement since the last step
_WAYPOINT_NOISE = 0.2
_SWEEPS, _DISCOUNT = 50, 0.99
_LONGEST_PATH = 100
_MOVES = np.array([(0, 0), (0, -1), (0, 1), (-1, 0), (1, 0)])  # in D4RL's order, which decides between equal paths
_TARGET_NOISE = 0.1
_ACTION_NOISE = 0.5
_REPORT_EVERY = 10_000


class WaypointController:
    """D4RL's controller of one maze; ``rng`` scatters the waypoints."""

    def __init__(self, maze: Maze, rng: np.random.Generator) -> None:
        self._maze = maze
        self._rng = rng
        self._successors: dict[Cell, np.ndarray] = {}
        self._target: Cell | None = None
        self._waypoints: list[Point] = []
        self._index = 0
        self._previous: Point = (0.0, 0.0)

    def act(self, position: Point, velocity: Point, target: Point) -> tuple[Point, bool]:
        """The action within ±1, and whether the cell of ``target`` is reached (its whole numbers, not its noise)."""
        cell = _cell(target)
        if cell != self._target:
            self._plan(position, cell)
        moved = hypot(self._previous[0] - position[0], self._previous[1] - position[1])
        reached = hypot(position[0] - cell[0], position[1] - cell[1]) < _REACHED and moved < _REACHED
        waypoint = cell if reached else self._waypoints[self._index]
        ahead = (waypoint[0] - position[0], waypoint[1] - position[1])
        if not reached and hypot(*ahead) < _REACHED and moved < _REACHED:
            self._index += 1
        self._previous = position
        return (_unit(_GAIN * ahead[0] - velocity[0]), _unit(_GAIN * ahead[1] - velocity[1])), reached

    def _plan(self, position: Point, target: Cell) -> None:
        if target not in self._successors:
            self._successors[target] = _successors(self._maze, target)
        successor = self._successors[target]
        start = cell = _cell(position)
        self._waypoints = []
        while len(self._waypoints) < _LONGEST_PATH:
            cell = (int(successor[cell][0]), int(successor[cell][1]))
            if cell == target:
                self._waypoints.append(target)
                break
            scatter = self._rng.uniform(size=2) * _WAYPOINT_NOISE
            self._waypoints.append((cell[0] - float(scatter[0]), cell[1] - float(scatter[1])))
        self._target, self._index, self._previous = target, 0, start


def collect_waypoint(
    environment_id: str, transitions: int, seed: int, noisy: bool = False, progress: Progress | None = None
) -> dict[str, np.ndarray]:
    """Walk for ``transitions`` rows in a maze and return D4RL's arrays, float32 and bool, one row per step.

    ``observations [N, 4]``, ``actions [N, 2]``, ``rewards [N]``, ``terminals [N]`` (never), ``timeouts [N]``,
    ``infos/goal [N, 2]``, ``infos/qpos [N, 2]`` and ``infos/qvel [N, 2]``. It is one unbroken trajectory:
    ``timeouts`` marks the rows in which the controller reached its target or spent the maze's limit on it. There a
    new target is drawn and the next row has the same observation. D4RL's script steps its simulator even then, so
    that its next row is one step older than the simulator; here it waits, and every other row is a true transition.

    Rewards belong to the maze's own goal, wherever the controller was going, and to ``observations[t]`` rather than
    to the state reached. ``noisy`` adds noise of standard deviation 0.5 to the actions. The same arguments and the
    same MuJoCo give the same bytes. Raises ``UserError`` for what is not a maze and for less than one row.
    """
    maze = maze_of(environment_id)
    if transitions < 1:
        raise UserError(f"cannot collect {transitions} transitions; ask for at least one.")
    env = make(environment_id).unwrapped
    assert isinstance(env, Maze2dEnv)
    rng = np.random.default_rng(key_seed(seed, "targets"))
    noise = np.random.default_rng(key_seed(seed, "noise"))
    controller = WaypointController(maze, np.random.default_rng(key_seed(seed, "waypoints")))
    observations = np.empty((transitions, 4), dtype=np.float32)
    actions = np.empty((transitions, 2), dtype=np.float32)
    goals = np.empty((transitions, 2), dtype=np.float32)
    timeouts = np.zeros(transitions, dtype=bool)
    target = _draw_target(maze, rng)
    state = env.reset(seed=key_seed(seed, "start"))[0]
    x, y, vx, vy = state.tolist()
    steps = 0
    for t in range(transitions):
        action, reached = controller.act((x, y), (vx, vy), target)
        if noisy:
            scatter = _ACTION_NOISE * noise.standard_normal(2)
            action = (_unit(action[0] + float(scatter[0])), _unit(action[1] + float(scatter[1])))
        observations[t], actions[t], goals[t] = state, action, target
        if reached or steps >= maze.limit:
            timeouts[t] = True
            target = _draw_target(maze, rng)
            steps = 0
        else:
            state = env.step(actions[t])[0]
            x, y, vx, vy = state.tolist()
            steps += 1
        if progress is not None and ((t + 1) % _REPORT_EVERY == 0 or t + 1 == transitions):
            progress(t + 1, transitions)
    return {
        "observations": observations,
        "actions": actions,
        "rewards": maze.reward(observations[:, :2], env.dense).astype(np.float32),
        "terminals": np.zeros(transitions, dtype=bool),
        "timeouts": timeouts,
        "infos/goal": goals,
        "infos/qpos": observations[:, :2].copy(),
        "infos/qvel": observations[:, 2:].copy(),
    }


def _draw_target(maze: Maze, rng: np.random.Generator) -> Point:
    x, y = maze.cells[rng.integers(len(maze.cells))] + rng.uniform(-_TARGET_NOISE, _TARGET_NOISE, size=2)
    return float(x), float(y)


def _successors(maze: Maze, target: Cell) -> np.ndarray:
    """The next cell ``[rows, columns, 2]`` on the way to ``target``, by Q-iteration on the deterministic grid.

    Walls count as cells too: a ball pressed against a wall is nearer to that wall's whole numbers than to its own.
    """
    cells = np.moveaxis(np.indices(maze.walls.shape), 0, -1)
    following = cells[None] + _MOVES[:, None, None]  # [moves, rows, columns, 2]
    inside = ((following >= 0) & (following < maze.walls.shape)).all(axis=-1)
    following = np.where(inside[..., None], following, cells)
    free = inside & ~maze.walls[following[..., 0], following[..., 1]]
    following = np.where(free[..., None], following, cells)
    reward = np.zeros(maze.walls.shape)
    reward[target] = 1.0
    values = np.zeros((len(_MOVES), *maze.walls.shape))
    for _ in range(_SWEEPS):
        best = values.max(axis=0)
        values = reward + _DISCOUNT * best[following[..., 0], following[..., 1]]
    return np.take_along_axis(following, values.argmax(axis=0)[None, ..., None], axis=0)[0]


def _cell(position: Point) -> Cell:
    return round(position[0]), round(position[1])


def _unit(value: float) -> float:
    return min(max(value, -1.0), 1.0)

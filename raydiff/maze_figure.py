"""Trajectories in a maze, drawn where the ball was: real, unguided and guided ones side by side.

The picture shows the layout as it is written: x, the row, runs down, and y, the column, runs to the right, both in
D4RL's coordinates.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection, PatchCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Circle, Patch, Rectangle

from raydiff.envs.maze2d import GOAL_RADIUS, WALL_START, Maze, maze_of
from raydiff.envs.registry import canonical
from raydiff.figures import GREY, INK, VERMILION, arm_style, new_figure, pretty, style

_SHOWN_ROWS = 3_000  # per panel; more of them hide one another
_FEWEST = 12
_PANEL_WIDTH = 3.3
_CUT = 0.6  # of the outer walls, which tell nothing
_WALL, _ILLEGAL = "#c9c9c9", INK


def maze_trajectories(maze_id: str, groups: Mapping[str, np.ndarray]) -> Figure:
    """One panel per group of trajectories ``[n, L, 2 or more]``, which begin with the position ``[x, y]``.

    Panels share their axes. Each draws trajectories spread evenly over its group, dots where they start, and says
    which share of the whole group never enters a wall. Groups are named as in the run: ``real``, ``unguided``,
    ``guided``. Raises ``UserError`` for what is not a maze and ``ValueError`` for arrays of another shape.
    """
    maze = maze_of(canonical(maze_id))
    for name, group in groups.items():
        if group.ndim != 3 or group.shape[2] < 2 or not len(group):
            raise ValueError(f"{name}: trajectories must be [n, L, 2 or more] with n > 0, got {group.shape}")
    if not groups:
        raise ValueError("no trajectories to draw")
    rows, columns = maze.walls.shape
    legend_columns = 4 if len(groups) > 2 else len(groups)
    height = _PANEL_WIDTH * (rows - 2 * _CUT) / (columns - 2 * _CUT) + 0.6 + 0.9 / legend_columns
    figure = new_figure(_PANEL_WIDTH * len(groups), height)
    panels = figure.subplots(1, len(groups), sharex=True, sharey=True, squeeze=False)[0]
    for place, (axes, (name, group)) in enumerate(zip(panels, groups.items(), strict=True)):
        _draw_maze(axes, maze)
        _draw_trajectories(axes, maze, np.asarray(group[..., :2], dtype=np.float64), _colour(name, list(groups)))
        legal = float(maze.is_legal(group[..., :2]).all(axis=1).mean())
        style(axes, pretty(name), "y (column)", "x (row)" if place == 0 else "")
        axes.set_title(f"{legal:.1%} legal", loc="right", fontsize=9, color=GREY)
        axes.grid(visible=False)
    _draw_legend(figure, legend_columns)
    return figure


def _draw_maze(axes: Axes, maze: Maze) -> None:
    corners = np.argwhere(maze.walls) + WALL_START
    walls = [Rectangle((float(y), float(x)), 1.0, 1.0) for x, y in corners]
    axes.add_collection(PatchCollection(walls, facecolor=_WALL, edgecolor=_WALL, linewidth=0.5, zorder=0))
    goal = (float(maze.goal[1]), float(maze.goal[0]))
    axes.add_patch(Circle(goal, GOAL_RADIUS, facecolor="none", edgecolor=INK, linestyle=(0, (3, 2)), zorder=4))
    axes.plot(*goal, marker="*", color=INK, markersize=7, linestyle="none", zorder=4)
    rows, columns = maze.walls.shape
    axes.set_xlim(WALL_START + _CUT, WALL_START + columns - _CUT)
    axes.set_ylim(WALL_START + rows - _CUT, WALL_START + _CUT)  # downwards
    axes.set_xticks(range(columns))
    axes.set_yticks(range(rows))
    axes.set_aspect("equal")


def _draw_trajectories(axes: Axes, maze: Maze, positions: np.ndarray, colour: str) -> None:
    count = min(len(positions), max(_FEWEST, _SHOWN_ROWS // positions.shape[1]))
    chosen = positions[np.linspace(0, len(positions) - 1, count).astype(np.int64)]
    legal = maze.is_legal(chosen).all(axis=1)
    for lines, shade, width in ((chosen[legal], colour, 0.9), (chosen[~legal], _ILLEGAL, 1.3)):
        paths = list(lines[..., ::-1])
        axes.add_collection(LineCollection(paths, colors=shade, linewidths=width, alpha=0.65, zorder=2))
        axes.plot(lines[:, 0, 1], lines[:, 0, 0], ".", color=shade, markersize=3, markeredgewidth=0, zorder=3)


def _colour(name: str, groups: list[str]) -> str:
    """Real data have the colour of the arm that trains on them alone."""
    return VERMILION if name == "real" else arm_style(name, [group for group in groups if group != "real"])[0]


def _draw_legend(figure: Figure, columns: int) -> None:
    entries = [
        Patch(facecolor=_WALL, label="wall"),
        Line2D([], [], linestyle="none", marker="*", color=INK, markersize=7, label="goal, rewarded within the circle"),
        Line2D([], [], linestyle="none", marker=".", color=GREY, label="start of a trajectory"),
        Line2D([], [], color=_ILLEGAL, linewidth=1.3, label="enters a wall"),
    ]
    figure.legend(handles=entries, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)

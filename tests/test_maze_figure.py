from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from raydiff.data.waypoint import collect_waypoint
from raydiff.errors import UserError
from raydiff.figures import BLUE, GREEN, INK, VERMILION, save
from raydiff.maze_figure import maze_trajectories


@pytest.fixture(scope="module")
def windows() -> np.ndarray:
    return collect_waypoint("maze2d-medium-v1", 6400, 0)["observations"].reshape(200, 32, 4)


def _lines(figure: Figure, panel: int) -> dict[str, list[np.ndarray]]:
    """Drawn paths ``[L, 2]`` by colour."""
    found = [item for item in figure.axes[panel].collections if isinstance(item, LineCollection)]
    return {to_hex(item.get_colors()[0]).upper(): item.get_segments() for item in found if len(item.get_segments())}


def test_panels_share_axes_and_show_each_group_in_its_colour(windows: np.ndarray, tmp_path: Path) -> None:
    away = windows.copy()
    away[:50, :, 0] -= 9.0
    figure = maze_trajectories("maze2d-medium", {"real": windows, "unguided": away, "guided": windows[:5]})
    assert [axes.get_title(loc="left") for axes in figure.axes] == ["real", "unguided", "guided"]
    assert [axes.get_title(loc="right") for axes in figure.axes] == ["100.0% legal", "75.0% legal", "100.0% legal"]
    assert len({axes.get_xlim() for axes in figure.axes}) == len({axes.get_ylim() for axes in figure.axes}) == 1
    assert [next(iter(_lines(figure, panel))) for panel in range(3)] == [VERMILION, GREEN, BLUE]
    assert set(_lines(figure, 1)) == {GREEN, INK.upper()}
    save(figure, tmp_path / "maze.png", dpi=80)
    assert (tmp_path / "maze.png").read_bytes().startswith(b"\x89PNG")


def test_rows_run_down_and_columns_to_the_right(windows: np.ndarray) -> None:
    path = np.array([[[1.0, 2.0], [1.0, 1.0], [2.0, 1.0]]])
    figure = maze_trajectories("maze2d-large-dense-v1", {"guided": path})
    assert [line.tolist() for line in _lines(figure, 0)[BLUE]] == [[[2.0, 1.0], [1.0, 1.0], [1.0, 2.0]]]
    axes = figure.axes[0]
    assert axes.yaxis_inverted()
    assert not axes.xaxis_inverted()
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("y (column)", "x (row)")
    star = next(line for line in axes.lines if line.get_marker() == "*")
    assert (star.get_xdata()[0], star.get_ydata()[0]) == (9.0, 7.0)  # type: ignore[index]


def test_what_is_drawn_is_bounded_and_spread_over_the_group(windows: np.ndarray) -> None:
    many = np.tile(windows, (10, 1, 1))
    lines = _lines(maze_trajectories("maze2d-medium-v1", {"real": many}), 0)[VERMILION]
    assert len(lines) == 3000 // 32
    np.testing.assert_array_equal(lines[0], many[0, :, 1::-1])
    np.testing.assert_array_equal(lines[-1], many[-1, :, 1::-1])
    assert len(_lines(maze_trajectories("maze2d-medium-v1", {"real": windows[:3]}), 0)[VERMILION]) == 3


def test_bad_requests(windows: np.ndarray) -> None:
    with pytest.raises(UserError, match="not a maze"):
        maze_trajectories("HalfCheetah-v4", {"real": windows})
    for groups in ({"real": windows[0]}, {"real": windows[:0]}, {"real": windows[..., :1]}, {}):
        with pytest.raises(ValueError, match="trajectories"):
            maze_trajectories("maze2d-medium-v1", groups)

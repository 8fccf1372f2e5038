"""``figure.png`` of a study: each measure of its table with intervals, and curves where there is something to follow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from raydiff.figures import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, SKY, VERMILION, new_figure, style
from raydiff.studies.api import Study
from raydiff.studies.results import Results, Row

if TYPE_CHECKING:
    from raydiff.studies.computed import Computed

COLOURS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, INK)
MARKERS = "os^DvPX"
ROW_INCHES, PANEL_INCHES, MARGIN_INCHES = 0.26, 3.6, 1.3
LINES = ("-", "--", ":", "-.")


def study_figure(results: Results, study: Study | Computed) -> Figure | None:
    """One panel per column; a line per group over ``x`` where every condition has one; the error by step below.

    None where no run has ended.
    """
    rows = [row for row in results.rows if row.runs]
    columns = [name for name in study.columns if any(row.values(name) for row in rows)]
    if not columns:
        return None
    curves = bool(study.x) and all(row.x is not None for row in rows)
    stepped = [row for row in rows if len(row.series("error_by_step")) > 1] if "error_by_step" in study.columns else []
    height = 3.4 if curves else MARGIN_INCHES + ROW_INCHES * len(rows)
    figure = new_figure(PANEL_INCHES * len(columns) + (0 if curves else 2.4), height + (3.4 if stepped else 0))
    grid = figure.add_gridspec(2 if stepped else 1, len(columns), height_ratios=[height, 3.4] if stepped else [1])
    for place, name in enumerate(columns):
        axes = figure.add_subplot(grid[0, place])
        if curves:
            _curves(axes, rows, name, study.measures[name].label, study.x)
        else:
            _dots(axes, rows, name, study.measures[name].label, first=place == 0)
    if stepped:
        _steps(figure.add_subplot(grid[1, :]), stepped)
    return figure


def _dots(axes: Axes, rows: Sequence[Row], name: str, label: str, first: bool) -> None:
    """A dot with its interval per condition, coloured by group, the first at the top."""
    groups = list(dict.fromkeys(row.group for row in rows))
    for place, row in enumerate(rows):
        found, index = row.estimate(name), groups.index(row.group) % len(COLOURS)
        if found is None:
            continue
        if found.low is not None and found.high is not None:
            axes.plot([found.low, found.high], [place, place], color=COLOURS[index], linewidth=1.6)
        axes.plot(found.value, place, MARKERS[index], color=COLOURS[index], markersize=5)
        axes.plot(row.values(name), [place] * len(row.values(name)), "|", color=COLOURS[index], alpha=0.6)
    style(axes, label, "mean and 95 % interval over seeds", "")
    axes.set_ylim(len(rows) - 0.5, -0.5)
    labels = [row.label if row.group == row.label else f"{row.group}: {row.label}" for row in rows]
    axes.set_yticks(range(len(rows)), labels if first else [""] * len(rows), fontsize=8)


def _curves(axes: Axes, rows: Sequence[Row], name: str, label: str, x: str) -> None:
    for index, group in enumerate(dict.fromkeys(row.group for row in rows)):
        points = sorted((row.x, e) for row in rows if row.group == group and row.x is not None
                        and (e := row.estimate(name)) is not None)  # fmt: skip
        if not points:
            continue
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axes.plot([p for p, _ in points], [e.value for _, e in points], marker + "-", color=colour, label=group)
        known = [(p, e.low, e.high) for p, e in points if e.low is not None and e.high is not None]
        if known:
            xs, lows, highs = zip(*known, strict=True)
            axes.fill_between(xs, lows, highs, color=colour, alpha=0.15, linewidth=0)
    style(axes, label, x, "")
    axes.legend(fontsize=8, frameon=False)


def _steps(axes: Axes, rows: Sequence[Row]) -> None:
    """A line per condition: colours tell groups apart, or the conditions of a single group; strokes those within one."""
    groups = list(dict.fromkeys(row.group for row in rows))
    for index, row in enumerate(rows):
        series, within = row.series("error_by_step"), [other for other in rows if other.group == row.group].index(row)
        place, stroke = (groups.index(row.group), within) if len(groups) > 1 else (index, 0)
        colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
        steps, label = range(1, len(series) + 1), row.label if row.group == row.label else f"{row.group}: {row.label}"
        axes.plot(steps, [e.value for e in series], marker + LINES[stroke % len(LINES)], color=colour, label=label,
                  markersize=4)  # fmt: skip
        known = [(step, e.low, e.high) for step, e in enumerate(series, 1) if e.low is not None and e.high is not None]
        if known:
            where, lows, highs = zip(*known, strict=True)
            axes.fill_between(where, lows, highs, color=colour, alpha=0.15, linewidth=0)
    floor = next((found for row in rows if (found := row.series("floor_by_step"))), [])
    axes.plot(range(1, len(floor) + 1), [e.value for e in floor], "--", color=GREY, label="real data")
    style(axes, "Error against the simulator by step", "step", "squared error over the data's variance")
    axes.set_yscale("log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(fontsize=8, frameon=False, loc="center left", bbox_to_anchor=(1.0, 0.5))

"""Who was busy when, in little: one panel per run, one line per role, filled as far as its workers were busy."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from raydiff.comparison.conditions import Comparison
from raydiff.comparison.figures import looks
from raydiff.comparison.runs import Run
from raydiff.figures import GREY, INK, new_figure, style
from raydiff.gantt import SHARED, Row, rows
from raydiff.timeline import Interval, union

ROLES = {"pretrain": "pretrainer", "learner": "learner", "generator": "generators", "refiner": "refiners",
         "evaluator": "evaluators"}  # fmt: skip
_PARTS = 480  # along the time axis, about two pixels each
_HEIGHT = 0.86  # of a line, whose place is one high


def timelines(comparison: Comparison) -> Figure | None:
    """Panels of all runs with timed records over one time axis, so that their lengths can be compared."""
    lines = {run.name: rows(run.records, run.arms) for run in comparison.runs}
    shown = [run for run in comparison.runs if lines[run.name]]
    if not shown:
        return None
    end = max(span[1] for run in shown for row in lines[run.name] if (span := row.span()) is not None)
    roles = {run.name: _roles(lines[run.name]) for run in shown}
    heights = [0.55 + 0.2 * len(roles[run.name]) for run in shown]
    figure = new_figure(9.6, sum(heights) + 0.9)
    panels = figure.subplots(len(shown), 1, sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for run, axes in zip(shown, panels, strict=True):
        style(axes, "", "seconds from the start" if axes is panels[-1] else "", "")
        axes.set_title(run.name, loc="left", fontsize=9, color=INK, fontweight="bold")
        _draw(axes, comparison, run, roles[run.name], end)
    labels = dict.fromkeys(comparison.condition_of(run, arm).label for run in shown for arm in run.arms)
    styles = looks(comparison)
    handles = [Patch(color=styles[label][0], label=label) for label in labels]
    handles.append(Patch(color=GREY, label="pretraining"))
    figure.legend(handles=handles, loc="outside lower center", ncols=min(len(handles), 4), frameon=False, fontsize=9)
    return figure


def _draw(axes: Axes, comparison: Comparison, run: Run, roles: dict[str, list[Row]], end: float) -> None:
    edges = np.linspace(0.0, end, _PARTS + 1)
    lanes = _lanes([row for own in roles.values() for row in own], edges)
    for place, own in enumerate(roles.values()):
        base = np.full(_PARTS, place + _HEIGHT / 2)
        for arm in dict.fromkeys(row.arm for row in own):
            colour = GREY if arm == SHARED else looks(comparison)[comparison.condition_of(run, arm).label][0]
            top = base - _HEIGHT * busy([row for row in own if row.arm == arm], edges) * lanes[arm]
            axes.fill_between(edges, np.append(base, base[-1]), np.append(top, top[-1]), step="post", color=colour,
                              linewidth=0)  # fmt: skip
            base = base - _HEIGHT * lanes[arm]  # the next arm's lane stands on this one's
        axes.axhline(place + _HEIGHT / 2, color=GREY, linewidth=0.5)
    axes.set_yticks(range(len(roles)), list(roles), fontsize=8)
    axes.set_ylim(len(roles) - 0.5, -0.55)
    axes.set_xlim(0, end)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)


def busy(lines: Sequence[Row], edges: np.ndarray) -> np.ndarray:
    """Share of the workers that is busy in each part of time ``[len(edges) - 1]``."""
    total = np.zeros(len(edges) - 1)
    for line in lines:
        calls = np.array(union(pair for group in line.bars.values() for pair in group))  # [calls, 2], disjoint
        if len(calls):
            seconds = np.cumsum(calls[:, 1] - calls[:, 0])  # busy up to the end of each call
            before = np.stack([seconds - (calls[:, 1] - calls[:, 0]), seconds], axis=1)
            total += np.diff(np.interp(edges, calls.ravel(), before.ravel())) / np.diff(edges)
    return total / max(len(lines), 1)


def _lanes(lines: Sequence[Row], edges: np.ndarray) -> dict[str, np.ndarray]:
    """The share of a line's height that each arm has in each part of time: arms at once divide it, others have none."""
    spans: dict[str, list[Interval]] = {}
    for line in lines:
        span = line.span()
        if span is not None:
            spans.setdefault(line.arm, []).append(span)
    present = {
        arm: (edges[:-1] < max(s[1] for s in own)) & (edges[1:] > min(s[0] for s in own)) for arm, own in spans.items()
        if arm != SHARED
    }  # fmt: skip
    together = np.maximum(sum((p.astype(float) for p in present.values()), np.zeros(len(edges) - 1)), 1.0)
    return {arm: here / together for arm, here in present.items()} | {SHARED: np.ones(len(edges) - 1)}


def _roles(lines: Sequence[Row]) -> dict[str, list[Row]]:
    """Lines by role, in the order of ``ROLES``; only the roles that the run has."""
    found = {name: [row for row in lines if key in row.worker] for key, name in ROLES.items()}
    return {name: own for name, own in found.items() if own}

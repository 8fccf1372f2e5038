"""The pictures of a comparison: curves, final scores, pairs, quality of the data and speed, with their intervals.

Every condition keeps its colour, marker and dashes in all of them. Thin lines and small dots are single seeds.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, MaxNLocator

from raydiff.comparison.conditions import Comparison, Task
from raydiff.comparison.measures import (
    QUALITY,
    RATES,
    Band,
    Score,
    band,
    final_scores,
    mean_rates,
    score_curve,
    score_key,
)
from raydiff.comparison.scores import SCALE_AXES, Pair, behaviour, tasks_of
from raydiff.figures import FIXED, GREY, INK, OTHERS, VERMILION, new_figure, rescale, style, thousands
from raydiff.findings import number

_DASHES: tuple[object, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)))
_WIDTH = 9.6
_LABEL_INCHES = 0.075  # of a character beside an axis

Look = tuple[str, str, object]


def looks(comparison: Comparison) -> dict[str, Look]:
    """Colour, marker and dashes of every condition by its label; an arm's first condition looks as in a run's report."""
    arms = {condition.arm for condition in comparison.conditions}
    free = [*OTHERS, *(look for arm, look in FIXED.items() if arm not in arms)]
    found: dict[str, Look] = {}
    seen: set[str] = set()
    others = 0
    for condition in comparison.conditions:
        if condition.arm in FIXED and condition.arm not in seen:
            found[condition.label] = (*FIXED[condition.arm], _DASHES[0])
        else:
            found[condition.label] = (*free[others % len(free)], _DASHES[others // len(free) % len(_DASHES)])
            others += 1
        seen.add(condition.arm)
    return found


def learning_curves(comparison: Comparison, scale: str) -> Figure | None:
    """Score against updates, one panel per task: mean over seeds, its interval, and every seed."""
    tasks = tasks_of(comparison, scale)
    bands = {task: _bands(comparison, task) for task in tasks}
    if not any(bands.values()):
        return None
    figure, panels = _grid(len(tasks), 3.7)
    for task, axes in zip(tasks, panels, strict=True):
        style(axes, "", "learner updates", SCALE_AXES[scale])
        _titled(axes, task)
        for label, found in bands[task].items():
            _draw_band(axes, found, looks(comparison)[label])
        level = _behaviour(comparison, task)
        if level is not None:
            axes.axhline(level, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2)
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
        axes.margins(y=0.1)
    _legend(figure, comparison, {label for found in bands.values() for label in found}, behaviour=True)
    return figure


def final_figure(comparison: Comparison, scale: str) -> Figure | None:
    """Scores of the last policies: every seed, their mean and its interval, one panel per task."""
    tasks = [task for task in tasks_of(comparison, scale) if _finals(comparison, task)]
    if not tasks:
        return None
    most = max(len(_finals(comparison, task)) for task in tasks)
    figure, panels = _grid(len(tasks), 1.3 + 0.34 * most)
    for task, axes in zip(tasks, panels, strict=True):
        finals = _finals(comparison, task)
        style(axes, "", SCALE_AXES[scale], "")
        _titled(axes, task)
        _draw_scores(axes, finals, looks(comparison), digits=1)
        level = _behaviour(comparison, task)
        if level is not None:
            axes.axvline(level, color=GREY, linestyle=(0, (5, 3)), linewidth=1.2, zorder=1)
            axes.annotate("behaviour", (level, 1.0), (3, -3), xycoords=("data", "axes fraction"),
                          textcoords="offset points", fontsize=8, color=GREY, va="top")  # fmt: skip
    return figure


def improvement(found: Sequence[Pair]) -> Figure | None:
    """Probability that a run of the first condition of each pair scores above one of the second."""
    if not found:
        return None
    figure = new_figure(_WIDTH, 1.3 + 0.36 * len(found))
    axes = figure.subplots()
    style(axes, "Which of two runs scores higher?", "probability that the first scores higher", "")
    for place, pair in enumerate(found):
        p, colour = pair.probability, INK if pair.decided else GREY
        if p.low is not None and p.high is not None:
            axes.plot([p.low, p.high], [place, place], color=colour, linewidth=2.2, solid_capstyle="butt")
        axes.plot([p.value], [place], "o", color=colour, markersize=7)
    axes.axvline(0.5, color=VERMILION, linewidth=1.2, zorder=1)
    axes.set_yticks(range(len(found)), [f"{pair.first.label}  over  {pair.second.label}" for pair in found], fontsize=9)
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xlim(-0.02, 1.02)
    axes.grid(visible=False, axis="y")
    return figure


def data_quality(comparison: Comparison, task: Task) -> Figure | None:
    """Truth, distance from the policy and age of the synthetic data over updates, of every condition that has any."""
    found = []
    for measure in QUALITY:
        bands = {c.label: b for c in comparison.of(task) if (b := band(c, task, measure.curve, measure.unit))}
        if bands:
            found.append((measure, bands))
    if not found:
        return None
    figure = new_figure(_WIDTH, 0.6 + 2.6 * len(found))
    panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    for axes, (measure, bands) in zip(panels, found, strict=True):
        style(axes, measure.title, "learner updates" if axes is panels[-1] else "", measure.axis)
        for label, own in bands.items():
            _draw_band(axes, own, looks(comparison)[label])
        rescale(axes, [float(v) for own in bands.values() for c in own.seeds.values() for v in c.mean])
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    panels[-1].xaxis.set_major_formatter(FuncFormatter(thousands))
    _legend(figure, comparison, {label for _, bands in found for label in bands})
    return figure


def throughput(comparison: Comparison, task: Task) -> Figure | None:
    """How fast each condition learned and generated, and who waited."""
    conditions = comparison.of(task)
    speeds = {condition.label: mean_rates(condition, task) for condition in conditions}
    names = [name for name in RATES if any(name in own for own in speeds.values())]
    if not names:
        return None
    widest = max(len(label) for label in speeds)
    figure = new_figure(max(_WIDTH, widest * _LABEL_INCHES + 1.9 * len(names)), 1.2 + 0.34 * len(speeds))
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        label, factor = RATES[name]
        style(axes, "", "", "")
        axes.set_title(label, loc="left", fontsize=9.5, color=INK, fontweight="bold")
        shown = {key: _times(own[name], factor) if name in own else None for key, own in speeds.items()}
        _draw_scores(axes, shown, looks(comparison), digits=0 if factor == 1 else 1)
        most = 100.0 if factor != 1 else 1.15 * max(max(v.mean, v.high or 0.0) for v in shown.values() if v is not None)
        axes.set_xlim(-0.06 * most, 1.06 * most)
        axes.xaxis.set_major_locator(MaxNLocator(3))
        axes.xaxis.set_major_formatter(FuncFormatter(thousands))
    return figure


def _behaviour(comparison: Comparison, task: Task) -> float | None:
    """Mean score of the data's own episodes."""
    value = behaviour(comparison, task).get(score_key(task))
    return float(value["mean"]) if value else None


def _bands(comparison: Comparison, task: Task) -> dict[str, Band]:
    return {c.label: b for c in comparison.of(task) if (b := band(c, task, score_curve, "episodes")) is not None}


def _finals(comparison: Comparison, task: Task) -> dict[str, Score]:
    key = score_key(task)
    return {c.label: s for c in comparison.of(task) if (s := final_scores(c, task, key)) is not None}


def _draw_band(axes: Axes, found: Band, look: Look) -> None:
    colour, marker, dashes = look
    if len(found.seeds) > 1:
        for curve in found.seeds.values():
            axes.plot(curve.updates, curve.mean, color=colour, linewidth=0.7, alpha=0.45, zorder=2)
    curve = found.curve
    axes.fill_between(curve.updates, curve.low, curve.high, color=colour, alpha=0.14, linewidth=0, zorder=1)
    axes.plot(curve.updates, curve.mean, color=colour, linestyle=dashes, linewidth=1.9, marker=marker, markersize=4.5,
              markeredgecolor="white", markeredgewidth=0.5, zorder=3)  # fmt: skip


def _draw_scores(axes: Axes, scores: Mapping[str, Score | None], styles: Mapping[str, Look], digits: int) -> None:
    """One line per condition: dots of the seeds, the mean, its interval, and its value in figures above."""
    for place, (label, score) in enumerate(scores.items()):
        colour, marker, _ = styles[label]
        if score is None:
            axes.text(0.02, place, "none", transform=axes.get_yaxis_transform(), va="center", fontsize=8, color=GREY)
            continue
        if score.low is not None and score.high is not None:
            axes.plot([score.low, score.high], [place, place], color=colour, linewidth=2.4, alpha=0.55, zorder=2)
        if len(score.seeds) > 1:
            values = list(score.seeds.values())
            axes.plot(values, [place] * len(values), "|", color=colour, markersize=9, markeredgewidth=1.2, zorder=3)
        axes.plot([score.mean], [place], marker, color=colour, markersize=8, markeredgecolor="white", zorder=4)
        axes.annotate(number(score.mean, digits), (score.mean, place), (0, 7), textcoords="offset points",
                      ha="center", fontsize=8, color=INK, zorder=5)  # fmt: skip
    axes.set_yticks(range(len(scores)), list(scores), fontsize=9)
    axes.set_ylim(len(scores) - 0.5, -0.65)
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.12)


def _grid(count: int, height: float) -> tuple[Figure, list[Axes]]:
    """Panels side by side, at most two in a row."""
    columns = min(count, 2)
    rows = math.ceil(count / columns)
    figure = new_figure(_WIDTH, height * rows + 0.5)
    panels = list(np.ravel(figure.subplots(rows, columns, squeeze=False)))
    for axes in panels[count:]:
        axes.set_axis_off()
    return figure, panels[:count]


def _titled(axes: Axes, task: Task) -> None:
    """The name of the environment, and its data in small type below."""
    axes.set_title(task.environment, loc="left", fontsize=11, color=INK, fontweight="bold", pad=17)
    axes.annotate(task.data if task.data != task.environment else "", (0, 1), (0, 5), xycoords="axes fraction",
                  textcoords="offset points", fontsize=8, color=GREY)  # fmt: skip


def _legend(figure: Figure, comparison: Comparison, labels: set[str], behaviour: bool = False) -> None:
    styles = looks(comparison)
    handles = [
        Line2D([], [], color=styles[label][0], marker=styles[label][1], linestyle=styles[label][2],  # type: ignore[arg-type]
               linewidth=1.9, markersize=5, label=label)
        for label in (condition.label for condition in comparison.conditions) if label in labels
    ]  # fmt: skip
    if behaviour:
        handles.append(Line2D([], [], color=GREY, linestyle=(0, (5, 3)), linewidth=1.2, label="behaviour (the data)"))
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (longest * _LABEL_INCHES + 0.6))))
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


def _times(score: Score, factor: float) -> Score:
    low, high = (None if side is None else side * factor for side in (score.low, score.high))
    return Score(score.mean * factor, low, high, {k: v * factor for k, v in score.seeds.items()}, score.unit)

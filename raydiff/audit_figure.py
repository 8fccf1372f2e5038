"""The picture of an audit: how far synthetic trajectories drift from the simulator, step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

from raydiff.figures import GREY, INK, VERMILION, arm_style, new_figure, pretty, rescale, style

_HEIGHT, _WIDTH = 4.4, 7.2
# References this far below the synthetic data are named with their size, not drawn: they would take all the room.
_FAR_BELOW = 1e3
_NEAR_VARIANCE = 0.05
_MANY_DECADES = 1e4


def error_by_step(found: Mapping[str, Any]) -> Figure | None:
    """Error over the data's variance after 1 .. H steps, of what ``raydiff audit`` found (its JSON): each arm and the
    floor, as trimmed means with a band from there to the median; None where nothing was replayed."""
    arms = list(found["arms"])
    curves = [(pretty(arm), found["arms"][arm], *arm_style(arm, arms)) for arm in arms]
    curves = [curve for curve in curves if _points(curve[1].get("error_by_step"))[0]]
    least = min((min(_points(record["error_by_step"])[1]) for _, record, _, _ in curves), default=0.0)
    numerical = found.get("numerical_floor") or {}
    references = [("real data (floor)", found["floor"], VERMILION, "s"), ("simulator, in float32", numerical, GREY, "")]
    references = [curve for curve in references if _points(curve[1].get("error_by_step"))[0]]
    if not curves and not references:
        return None
    figure = new_figure(_WIDTH, _HEIGHT)
    axes: Axes = figure.subplots()
    shown = [record for _, record, _, _ in curves]
    for label, record, colour, marker in curves:
        _draw(axes, label, record, colour, marker)
    for label, record, colour, marker in references:
        most = max(_points(record["error_by_step"])[1])
        if most * _FAR_BELOW < least:
            axes.plot([], [], linestyle="none", label=f"{label}: at most {most:.1g}")
        else:
            _draw(axes, label, record, colour, marker)
            shown.append(record)
    values = [value for record in shown for value in _points(record["error_by_step"])[1]]
    if max(values) > _NEAR_VARIANCE:
        _mark_variance(axes)
    style(axes, f"Error in the simulator: {found['environment']}", "steps replayed", "squared error / data variance")
    rescale(axes, values)
    if max(values) / min(values) > _MANY_DECADES:
        axes.yaxis.set_major_locator(LogLocator(numticks=9))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=10))
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return figure


def _mark_variance(axes: Axes) -> None:
    """A line where the error is as large as the data are wide, which is what a guess would have."""
    axes.axhline(1.0, color=INK, linewidth=0.8, linestyle=":")
    place: Any = ("axes fraction", "data")
    axes.annotate("variance of\nthe data", (1.01, 1.0), xycoords=place, ha="left", va="center", fontsize=8, color=GREY)


def _draw(axes: Axes, label: str, record: Mapping[str, Any], colour: str, marker: str) -> None:
    steps, trimmed = _points(record["error_by_step"])
    axes.plot(steps, trimmed, color=colour, marker=marker, markersize=4.0, linewidth=1.8, label=label)
    medians = dict(zip(*_points(record.get("error_by_step_median")), strict=True))
    both = [(step, medians[step], value) for step, value in zip(steps, trimmed, strict=True) if step in medians]
    if both:
        places, low, high = zip(*both, strict=True)
        axes.fill_between(places, low, high, color=colour, alpha=0.13, linewidth=0)


def _points(errors: Any) -> tuple[list[int], list[float]]:
    """Steps from 1 and their errors, where there is one that a logarithmic axis can show."""
    found = [(step, value) for step, value in enumerate(errors or [], start=1) if value is not None and value > 0]
    return [step for step, _ in found], [value for _, value in found]
